"""`budget: {loss_points: …}`: which share of the multiply-adds it came to, as the search left it for every class set."""

from __future__ import annotations

from pathlib import Path

from vitprune.core.errors import UserError
from vitprune.core.reading import Json, read_sealed
from vitprune.recipe.parts import Whole
from vitprune.runs.state.run import Run

STAGE = "losses"


def path_of(run: Run, group: str | None) -> Path:
    """Where the search of a class set leaves what it found."""
    return run.folder.stage_folder(STAGE) / f"{group or 'all'}.json"


def settled(run: Run, group: str | None) -> Whole:
    """The budget that a class set's model is made at: the recipe's, or the share that a loss of top-1 came to."""
    asked = run.recipe.whole
    assert asked is not None, "the budget is `keep`"
    if asked.of != "loss_points":
        return asked
    found = read_sealed(path_of(run, group))
    if found is None:
        raise UserError(f"{path_of(run, group)}: is missing or damaged; run the recipe again")
    return Whole(macs=found["macs"])


def every(run: Run) -> list[Json]:
    """What was found for each class set; nothing where the budget is no loss."""
    if run.recipe.whole is None or run.recipe.whole.of != "loss_points":
        return []
    known = [(group, read_sealed(path_of(run, group))) for group in run.classes.sets()]
    return [{k: x for k, x in found.items() if k != "key"} | {"group": group} for group, found in known if found]


def sentence(found: Json) -> str:
    """What came of the search, for the report."""
    named = f" of `{found['group']}`" if found.get("group") else ""
    start = f"Budget `loss_points: {found['asked']:g}`{named}: "
    judged = (
        f"on {found['n']:,} probe images, each judged by a model of the other four fifths of them, it loses "
        f"{found['loss_points']:.2f} points of top-1, at most {found['bound_points']:.2f} (one-sided 95 %)"
    )
    others = ", ".join(f"{one['macs']:g}: {one['loss_points']:.2f}, at most {one['bound_points']:.2f}"
                       for one in found["tried"] if one["macs"] != found["macs"])  # fmt: skip
    tried = f" Also tried: {others}." if others else ""
    share = f"{found['macs']:g} of the multiply-adds"
    if found["within"]:
        return f"{start}{share} is the smallest share tried that stays within it; {judged}.{tried} {UNREAD}"
    return f"{start}NO share tried stays within it; {share} is the nearest to dense and was taken; {judged}.{tried} {UNREAD}"


UNREAD = "The test split played no part."
