"""The stages in order. Each writes under exported/<name>/ and is skipped when the digest of its inputs is unchanged.

split → discover → moments → prune → evaluate → export → report
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from vitprune.core import memory
from vitprune.core.progress import Reporter
from vitprune.recipe.recipe import Recipe
from vitprune.report import grid
from vitprune.runs import choose, grouping
from vitprune.runs.engine import worker
from vitprune.runs.engine.opening import Workers
from vitprune.runs.record import frontier, matrices, record, repairs, tracking
from vitprune.runs.results import loss_search
from vitprune.runs.seeing import stage as seeing
from vitprune.runs.stages.order import SEE, STAGES, Stage, stage_digest
from vitprune.runs.state.run import Run
from vitprune.runs.state.workspace import PARTS, SHARED

UP_TO: dict[str, tuple[str, ...]] = {"split": ("split",)}
UP_TO |= {"discover": ("split", "discover"), "moments": ("split", "discover", "moments")}
UP_TO |= {"prune": ("split", "discover", "moments", "prune")}
UP_TO |= {"evaluate": (*UP_TO["prune"], "evaluate"), "export": (*UP_TO["prune"], "export")}
UP_TO["run"] = tuple(stage.name for stage in STAGES)


def run(
    recipe: Recipe,
    verb: str = "run",
    *,
    device: str = "auto",
    force: bool = False,
    reporter: Reporter | None = None,
    command: str = "",
    workers: Workers = 1,
    before: Callable[[Run], None] | None = None,
) -> dict[str, Any]:
    """Run a recipe up to a verb's last stage; `run` also writes the report. Returns the report's record.

    `workers` share the heavy work: so many processes of this machine, or a crew with an engine of its own. `before` is called
    with the open run and may refuse it.

    Raises UserError for everything the user can mend. Interrupted, the same call goes on where it stopped.
    """
    reporter = reporter or Reporter(quiet=True)
    worker.one_process()
    tracking.require(recipe)
    with Run.open(recipe, device, reporter, workers) as run, memory.refused(verb, run.device):
        if before is not None:
            before(run)
        if not all(map(run.folder.record, UP_TO[verb])):
            run.executor.start()  # meanwhile this process reads
        inputs, done = advance(run, verb, force)
        if run.recipe.frontier:
            return _frontier(run, verb, inputs, done, command, force)
        done += _seen(run, verb, inputs, force)
        made = record.build(run, done, command)
        if verb == "run":
            record.write(made | matrices.write(run, made), run.folder.root)
            tracking.track(run, made)
        return made


def _frontier(
    run: Run, verb: str, inputs: dict[str, str], done: list[dict[str, Any]], command: str, force: bool
) -> dict[str, Any]:
    """Every budget's model from the run's one discovery, in a folder of its own; the record of all of them."""
    stages = [stage for stage in STAGES if stage.name in UP_TO[verb] and stage.name not in SHARED]
    found: list[dict[str, Any]] = []
    inners = list(frontier.runs(run)) if stages else []
    _at_once(run, inners, inputs, force)
    for inner in inners:
        run.reporter.say(f"frontier: {inner.folder.root.name}")
        inner.write_recipe(inner.folder.root)
        own = dict(inputs)
        through = list(done)
        for stage in frontier.stages_of(run, inner, stages):
            own[stage.name] = stage_digest(stage, inner, own)
            through.append(_do(stage, inner, own[stage.name], force))
        through += _seen(inner, verb, own, force)
        made = frontier.complete(run, record.build(inner, through, command))
        if verb == "run":
            record.write(made, inner.folder.root)
            tracking.track(inner, made)
        found.append(made)
    frontier.to_root(run, [stage.name for stage in stages])
    made = frontier.merged(run.recipe, record.build(run, done, command), found)
    if verb == "run":
        record.write(made, run.folder.root)
    return made


def advance(run: Run, verb: str, force: bool = False) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """Do every stage up to a verb's last that is not done; their input digests, and what was done. Of a frontier those
    that its budgets have in common."""
    run.preflight()
    if verb == "run" and run.recipe.see is not None:
        seeing.refuse(run)
    run.write_recipe(run.folder.root)
    inputs: dict[str, str] = {}
    done: list[dict[str, Any]] = []
    for stage in [stage for stage in STAGES if stage.name in SHARED or not run.recipe.frontier]:
        if stage.name == "discover" and run.recipe.clusters:
            run.recipe = grouping.resolve(run, force)
        if stage.name == "discover" and run.recipe.criterion.name == "auto":
            with run.reporter.stage("choose"):
                run.recipe, run.choice = choose.choose(run, force)
            run.reporter.say(grid.sentence(run.choice))
        if stage.name == "prune" and "prune" in UP_TO[verb]:
            loss_search.search(run, force)
        if stage.name in UP_TO[verb]:
            inputs[stage.name] = stage_digest(stage, run, inputs)
            if stage.name == "prune":
                _at_once(run, [run], inputs, force)
            done.append(_do(stage, run, inputs[stage.name], force))
    return inputs, done


def _at_once(run: Run, runs: Sequence[Run], inputs: dict[str, str], force: bool) -> None:
    """Nothing; of the models that the prune stage of `runs` still has to make, several are repaired at once by the workers."""
    stage = next(stage for stage in STAGES if stage.name == "prune")
    if force:
        for one in runs:
            one.folder.clear(one.folder.stage_folder(stage.name) / PARTS, set())
    if not repairs.items(run, runs):
        return
    left = [one for one in runs if force or not one.folder.is_current(stage.name, stage_digest(stage, one, inputs))]
    if asked := repairs.items(run, left):
        with run.reporter.stage(stage.name):
            repairs.solve(run, asked)


def _seen(run: Run, verb: str, inputs: dict[str, str], force: bool) -> list[dict[str, Any]]:
    """What the units are, for a recipe that asks for it: done after the exam, before the report, and told as the others."""
    if verb != "run" or run.recipe.see is None:
        return []
    return [_do(SEE, run, stage_digest(SEE, run, inputs), force)]


def _do(stage: Stage, run: Run, inputs: str, force: bool) -> dict[str, Any]:
    folder = run.folder
    if not force and folder.is_current(stage.name, inputs):
        run.reporter.say(f"{stage.name}: unchanged, skipped")
        run.reporter.skipped(stage.name)
        known = folder.record(stage.name) or {}
        cost = {key: known.get(key) for key in ("seconds", "peak_memory_mb")}
        return {"name": stage.name, **cost, "skipped": True}
    if force and stage.name != "prune":  # whose parts are gone already, and may be new ones
        folder.clear(folder.stage_folder(stage.name) / PARTS, set())
        if stage.name == "discover":
            folder.clear(folder.stage_folder("latency"), set())
    before = folder.files_of(stage.name)
    folder.begin(stage.name)
    started = time.monotonic()
    reported = run.reporter.stage(stage.name)
    with memory.peak(run.device) as highest, memory.refused(stage.name, run.device), reported:
        made = stage.work(run)
    folder.remove(before - set(made))
    peak = None if highest[0] is None else round(highest[0], 1)
    folder.finish(stage.name, inputs, made, started, peak)
    seconds = round(time.monotonic() - started, 2)
    run.reporter.say(f"{stage.name}: done in {seconds:.1f} s")
    return {"name": stage.name, "seconds": seconds, "peak_memory_mb": peak, "skipped": False}
