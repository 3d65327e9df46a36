"""An estimate in words: one line before a run, and the question where it is more than was allowed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from vitprune.core.errors import UserError, one_line
from vitprune.core.progress import Reporter
from vitprune.recipe.recipe import Recipe
from vitprune.runs.costs.estimate import Estimate
from vitprune.runs.engine import threads
from vitprune.runs.engine.opening import Workers
from vitprune.runs.state.run import Run
from vitprune.runs.state.workspace import SHARED

HOURS = 12.0  # on a processor; a GPU's run is not asked about
SHOWN = 0.05  # of the time: stages below it are not named in the line
Ask = Callable[[str], bool]


def tell(run: Run, estimated: Callable[[], Estimate], most: float | None, sure: bool, ask: Ask | None) -> None:
    """Nothing; what the run is estimated to cost is said, and held against what is allowed (see `hold`). An estimate that
    cannot be made stops no run, but what no run can do is refused."""
    run.preflight()
    run.reporter.say(f"{run.recipe.name}, into {run.folder.root}; a few batches are timed")
    run.reporter.phase = "timing a few batches"
    if run.device.type == "cpu" and (crowded := threads.crowded_here()):
        run.reporter.note(crowded)
    try:
        found = estimated()
    except Exception as error:
        run.reporter.say(f"cost: not estimated ({one_line(error)})")
        return
    run.reporter.say(line(found))
    expect(run, found)
    hold(found, run, most, sure, ask)


def expect(run: Run, found: Estimate) -> None:
    """Nothing; the reporter knows what every stage that is left takes, and that each budget of a frontier has its own."""
    left = {name: cost.seconds for name, cost in found.stages.items() if not cost.done}
    budgets = max(1, len(run.recipe.frontier))
    run.reporter.expect(left, {name: budgets for name in left if name not in (*SHARED, "choose", "report")})


def ahead(
    recipe: Recipe, device: str, reporter: Reporter, workers: Workers, estimated: Callable[[Run], Estimate],
    most: float | None, sure: bool, ask: Ask | None,
) -> None:  # fmt: skip
    """The same before a run of `recipe` is opened, whose folder is left as it is."""
    with contextlib.closing(Run.join(recipe, device, reporter, workers)) as run:
        tell(run, lambda: estimated(run), most, sure, ask)


def duration(seconds: float) -> str:
    """Seconds in the unit that suits them: `40 s`, `4 min`, `3.5 h`, `12 days`."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 5400:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172800 else f"{seconds / 86400:.0f} days"


def size(megabytes: float) -> str:
    """Megabytes as gigabytes where they are many."""
    return f"{megabytes / 1000:.1f} GB" if megabytes >= 950 else f"{max(1, round(megabytes))} MB"


def line(found: Estimate) -> str:
    """`about 4 min, 1.1 GB of memory, 0.3 GB of disk: discover 2 min, prune 1 min`."""
    left = {name: cost for name, cost in found.stages.items() if not cost.done}
    if not left or not found.seconds:
        return "cost: nothing is left to do"
    named = [f"{name} {duration(cost.seconds)}" for name, cost in left.items() if cost.seconds >= SHOWN * found.seconds]
    what = f"cost: about {duration(found.seconds)}, {size(found.memory_mb)} of memory, {size(found.disk_mb)} of disk"
    if found.spilled_mb:
        what += f" (streams of a repair {size(found.spilled_mb)}, in the run's folder until it ends)"
    return f"{what}: {', '.join(named)}"


def cheaper(found: Estimate, run: Run) -> str:
    """What would make it cheaper, by what costs the most."""
    top = max(found.works, key=lambda name: found.works[name])
    own, recipe = run.recipe.criterion.name, run.recipe
    ways = []
    if recipe.paper_protocol is not None and top in ("jas", "activation", "paper protocol"):
        ways.append("no `paper_protocol`")
    if top == own or top.startswith(("sums ", f"{own}:")):
        ways.append("a smaller `criterion.probe_per_class` or another criterion")
    elif top in recipe.baselines:
        ways.append(f"`baselines` without `{top}`, a smaller `criterion.probe_per_class`")
    if top.startswith("see "):
        ways.append("fewer `see.parts`, a smaller `see.images.per_class`")
    if top in ("repair", "exam", "cells", "loss_points"):
        ways.append("fewer `baselines`, a smaller `refit_images`, another `recovery`")
    if run.device.type == "cpu":
        ways.append("--workers N on more cores, or a GPU")
    return "; ".join(ways) or "fewer images"


def hold(found: Estimate, run: Run, most: float | None, sure: bool, ask: Ask | None) -> None:
    """Nothing, where the run may go on. `most`: hours without a question, None: HOURS on a processor and as many as it takes
    elsewhere. `ask` puts the question to somebody; None: there is nobody.

    Raises UserError where it is estimated above and nobody said yes.
    """
    most = HOURS if most is None and run.device.type == "cpu" else most
    if sure or most is None or found.seconds <= 3600 * most:
        return
    top = max(found.stages, key=lambda name: found.stages[name].seconds)
    said = (
        f"estimated at {duration(found.seconds)}, more than --max-hours {most:g}; the most of it is `{top}`, "
        f"{duration(found.stages[top].seconds)}. Cheaper: {cheaper(found, run)}"
    )
    if ask is None:
        raise UserError(f"{said}. To go on all the same: --yes")
    if not ask(f"{said}. Go on?"):
        raise UserError("not begun; nothing was changed")
