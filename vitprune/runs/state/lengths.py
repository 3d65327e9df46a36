"""How many units of each block the path of an image has: `criterion.t`, and what `auto` comes to.

Algorithm 3 of the paper keeps as many units as its paths have: t is `keep` of a block's hidden units. Blocks of different
sizes share one t, that of the smallest, so that no path asks a block for more than it has. A budget of the whole model
says nothing of a block, and what ranks by the mean needs no t: PLAIN there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from vitprune.criteria.catalog import CRITERIA
from vitprune.runs.state.run import Run

PLAIN = 50


def needs_t(criterion: str) -> bool:
    """Whether a criterion's scores depend on how long the paths are."""
    row = CRITERIA.get(criterion)
    return row is not None and row.score is not None and (row.ranks_by == "frequency" or row.path_dependent)


def length(asked: int | Literal["auto"], criterion: str, keep: int | float | None, smallest: int) -> int:
    """Units per block on a path: what is `asked` for; `auto`: `keep` of the `smallest` block's units, 1 at least."""
    if asked != "auto":
        return asked
    if keep is None or not needs_t(criterion):
        return min(PLAIN, smallest)
    return min(max(keep if isinstance(keep, int) else round(keep * smallest), 1), smallest)


def of(run: Run, criterion: str, keep: int | float | None) -> int:
    """Units per block on the paths that a criterion finds for a budget."""
    return length(run.recipe.criterion.t, criterion, keep, min(site.size for site in run.sites))


def every(run: Run, criterion: str) -> list[int]:
    """The same for every budget that the run's scores are for."""
    return sorted({of(run, criterion, keep) for keep in run.keeps or (run.recipe.keep,)})


def told(run: Run) -> dict[str, Any]:
    """The recipe's criterion for a digest: `t: auto` by what it comes to, all of it where that is several."""
    own = run.recipe.criterion
    users = [name for name in (own.name, *run.recipe.baselines) if needs_t(name)]
    ts = sorted({t for name in users or [own.name] for t in every(run, name)})
    return own.model_dump(mode="json") | {"t": ts[0] if len(ts) == 1 else ts}


def notes(run: Run, names: Sequence[str]) -> list[str]:
    """What `t: auto` comes to at every budget, where criteria that need it are discovered for several; said as well."""
    users = [name for name in names if needs_t(name)]
    if not users or len(every(run, users[0])) < 2:
        return []
    shown = ", ".join(f"{of(run, users[0], keep)} at keep {keep:g}" for keep in run.keeps if keep is not None)
    made = f"criterion.t: {shown}; {', '.join(f'`{name}`' for name in users)} are discovered once for each."
    run.reporter.say(f"note: {made}")
    return [made]
