"""One share of a discovery's parts: what a job array gives every one of its processes, all in the same run's folder.

A process makes the parts whose position modulo n is its own number, and those on which others rest; `vitprune run` finds
them all and goes on. The folder's lock keeps other runs out; the shares hold it together.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from vitprune.core import memory
from vitprune.core.errors import UserError
from vitprune.core.progress import Reporter
from vitprune.core.reading import Json
from vitprune.criteria.catalog import CRITERIA
from vitprune.recipe.recipe import Recipe
from vitprune.runs import pipeline
from vitprune.runs.engine import worker
from vitprune.runs.engine.base import Columns, Job
from vitprune.runs.engine.local import Local
from vitprune.runs.engine.parts import Parts
from vitprune.runs.stages import score
from vitprune.runs.stages.order import STAGES, stage_digest
from vitprune.runs.state.run import Run

SHARE = re.compile(r"(\d{1,6})/(\d{1,6})")
WAIT = 0.5


class OthersError(Exception):
    """The other parts of a job are other processes'."""


@dataclass
class Share:
    """The executor of process `mine` of `count`: of several parts its own alone, which it hands to nobody."""

    mine: int
    count: int
    reporter: Reporter
    workers: int = 1
    made: int = 0
    found: int = 0
    here: Local = field(default_factory=Local)

    def run(self, job: Job, folder: Path) -> Iterator[Columns]:
        """The one part of a job of one, on which others may rest. Raises OthersError for any other job, when this
        process's parts lie in the folder."""
        if len(job.items) == 1:
            yield from self.here.run(job, folder)
            return
        parts, own = Parts(folder, job), range(self.mine, len(job.items), self.count) if job.kept else ()
        for position in self.reporter.track(own, f"{job.name}, share {self.mine}/{self.count}", len(own)):
            if not parts.there(position):
                parts.compute(position)
                self.made += 1
            else:
                self.found += 1
        raise OthersError

    def start(self) -> None:
        """There is nothing to begin."""

    def carry(self, make: Callable[[], Any]) -> None:
        """Nothing is sent anywhere."""

    def close(self) -> None:
        """Nothing was started."""


def discover(recipe: Recipe, shard: str, *, device: str = "auto", reporter: Reporter | None = None) -> Json:
    """Make share `i/n` of the discovery of a recipe; how many parts were made and how many were there.

    Raises UserError for everything the user can mend.
    """
    told = SHARE.fullmatch(shard)
    if told is None or not int(told[1]) < int(told[2]):
        raise UserError(f"--shard {shard}: write i/n, with i from 0 to n - 1, such as 0/8")
    worker.one_process()
    chosen = "groups: {auto: k}" if recipe.clusters else "criterion: auto" if recipe.criterion.name == "auto" else None
    if chosen:
        raise UserError(f"--shard: `{chosen}` is found by a discovery of its own; name what it finds, or use --workers")
    reporter = reporter or Reporter(quiet=True)
    share = Share(int(told[1]), int(told[2]), reporter)
    with _held(recipe, device, reporter) as (run, inputs), memory.refused("discover", run.device):
        stage = next(stage for stage in STAGES if stage.name == "discover")
        if not run.folder.is_current("discover", stage_digest(stage, run, inputs)):
            run.__dict__["executor"] = share
            for job in _jobs(run):
                try:
                    job()
                except OthersError:
                    continue
        return {"shard": shard, "made": share.made, "found": share.found, "folder": str(run.folder.root)}


def _jobs(run: Run) -> Iterator[Callable[[], object]]:
    """What of the discovery is made of parts."""
    for found in score.discoveries(run):
        yield partial(score._discover, run, found)
    for name in sorted({run.recipe.criterion.name, *run.recipe.baselines} - {"random"}):
        if CRITERIA[name].summed:
            for group, targets in run.classes.sets_and_union().items():
                yield partial(score._whole, run, name, group, targets)


@contextmanager
def _held(recipe: Recipe, device: str, reporter: Reporter) -> Iterator[tuple[Run, dict[str, str]]]:
    """The run with its split done, by the first process that comes; the others wait for it. No process alone may work in
    the folder then."""
    split, told = STAGES[0], False
    while True:
        run = Run.join(recipe, device, reporter)
        with run.folder.locked_together() as held:
            if held and run.folder.record("split") is not None:
                run.preflight()
                inputs = {"split": stage_digest(split, run, {})}
                if run.folder.is_current("split", inputs["split"]):
                    try:
                        yield run, inputs
                    finally:
                        run.close()
                    return
        try:
            with Run.open(recipe, device, reporter) as alone:
                pipeline.advance(alone, "split")
        except UserError as error:
            if "another run is working here" not in str(error):
                raise
            if not told:
                reporter.say("waiting for another process in this folder")
            told = True
            time.sleep(random.uniform(0.5, 1.5) * WAIT)  # not all of them at once
