"""Repairs of several models at once, each by one worker alone: of the budgets of a frontier, or of several class sets.

A worker leaves what it solved where the prune stage looks for it (`results/repairing.py`), which then repairs nothing: the
bits are those of a repair that all workers share, without the waits between its steps. As many are made so as give every
worker the same number; what is over is left to the stage.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from vitprune.pruning.repair.names import Recovery, closed_form
from vitprune.runs.engine.base import Columns, Job
from vitprune.runs.record import frontier
from vitprune.runs.stages import prune
from vitprune.runs.state.run import Run
from vitprune.runs.state.workspace import PARTS

PLANNED = (
    "macs",
    "params",
    "loss_points",
)  # budgets whose plans need nothing that is measured on this machine or weighed
Item = list[Any]  # the folder of a budget's model, None of a run that is no frontier, and the name of a class set


def items(run: Run, runs: Sequence[Run]) -> list[Item]:
    """The repairs of `runs` (budgets of `run`'s frontier, or itself) that are worth making at once; none where there are too
    few for the workers, or a plan takes a discovery or a measurement of its own."""
    workers, recipe = run.executor.workers, run.recipe
    by_block = closed_form(run.recovery) in ("sequential", "layerwise")
    if workers == 1 or not run.shared or not by_block or recipe.rounds > 1:
        return []
    if recipe.whole is not None and recipe.whole.of not in PLANNED:
        return []
    found = [[_folder(run, one), group] for one in runs for group in one.classes.sets()]
    return found[: len(found) // workers * workers]


def _folder(run: Run, one: Run) -> str | None:
    return None if one is run else one.folder.root.name


def solve(run: Run, asked: Sequence[Item]) -> None:
    """Nothing; every repair that is asked for is solved, and its weights left for the prune stage."""
    known = {"model_digest": run.model_digest, "data_digest": run.data_digest}
    job = Job("repairs", asked, functools.partial(_solved, run, known), None, kept=False)
    parts = run.executor.run(job, run.folder.stage_folder("prune") / PARTS)
    for _ in run.reporter.track(parts, "repairs at once", len(asked)):
        pass


def _solved(run: Run, known: dict[str, str], item: Item) -> Columns:
    """No columns: the weights of every step are in the folder when this returns."""
    run.__dict__.update(known)  # what the first process has worked out
    folder, group = item
    one = run if folder is None else next(own for own in frontier.runs(run) if own.folder.root.name == folder)
    targets = one.classes.sets()[group]
    plan, dense, slim, _ = prune.begun(one, group, targets)
    how: Recovery = "layerwise" if closed_form(one.recovery) == "layerwise" else "sequential"
    prune.repaired(slim, one, plan, how, group, targets, dense, kept=True)
    return {}
