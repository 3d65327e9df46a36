"""The stages in order. Each writes under exported/<name>/ and is skipped when the digest of its inputs is unchanged.

split → discover → moments → prune → evaluate → export → report
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitprune.core import memory
from vitprune.core.errors import UserError
from vitprune.core.progress import Reporter
from vitprune.core.reading import digest
from vitprune.model.inside import pieces
from vitprune.recipe.recipe import Recipe
from vitprune.runs import choose, grouping
from vitprune.runs.engine import processes
from vitprune.runs.record import matrices, record
from vitprune.runs.stages import exam, export, moments, prune, score, split
from vitprune.runs.stages.versions import CODE
from vitprune.runs.state.context import Context
from vitprune.runs.state.workspace import PARTS


@dataclass(frozen=True, slots=True)
class Stage:
    """`work` returns the files it made; `inputs` lists the recipe parts it depends on beside the stages in `after`."""

    name: str
    work: Callable[[Context], list[Path]]
    inputs: Callable[[Recipe], Any]
    after: tuple[str, ...]


STAGES = (
    Stage("split", split.split, lambda r: (r.model, r.data.content(), r.split), ()),
    Stage(
        "discover",
        score.discover,
        lambda r: (r.classes, r.groups, r.criterion, r.baselines, r.paper_protocol),
        ("split",),
    ),
    Stage("moments", moments.moments, lambda r: (r.classes, r.groups, r.recovery), ("split",)),
    Stage("prune", prune.prune, lambda r: (r.keep, r.recovery, r.rounds, r.pruning(), r.head), ("discover", "moments")),
    Stage("evaluate", exam.evaluate, lambda r: r.random_draws, ("prune",)),
    Stage("export", export.export, lambda r: r.export, ("prune",)),
)
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
    workers: int = 1,
) -> dict[str, Any]:
    """Run a recipe up to a verb's last stage; `run` also writes the report. Returns the report's record.

    `workers` processes share the discovery; under torchrun every process but the first returns an empty record.

    Raises UserError for everything the user can mend. Interrupted, the same call goes on where it stopped.
    """
    reporter = reporter or Reporter(quiet=True)
    if workers < 1:
        raise UserError(f"--workers {workers}: at least one process is needed")
    if recipe.clusters:
        processes.one_process("groups: auto")
    rank, size = processes.from_torchrun()
    device = processes.device_of_rank(device, rank) if size > 1 else device
    if rank:
        processes.serve(Context.join(recipe, device, Reporter(quiet=True)), rank, size)
        return {}
    with Context.open(recipe, device, reporter, workers) as context, memory.refused(verb, context.device):
        _, done = advance(context, verb, force)
        made = record.build(context, done, command)
        if verb == "run":
            record.write(made | matrices.write(context, made), context.folder.root)
        return made


def advance(context: Context, verb: str, force: bool = False) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """Do every stage up to a verb's last that is not done; their input digests, and what was done."""
    context.preflight()
    context.write_recipe(context.folder.root)
    inputs: dict[str, str] = {}
    done: list[dict[str, Any]] = []
    for stage in STAGES:
        if stage.name == "discover" and context.recipe.clusters:
            context.recipe = grouping.resolve(context, force)
        if stage.name == "discover" and context.recipe.criterion.name == "auto":
            context.recipe, context.choice = choose.choose(context, force)
            context.reporter.say(choose.sentence(context.choice))
        if stage.name in UP_TO[verb]:
            inputs[stage.name] = stage_digest(stage, context, inputs)
            done.append(_do(stage, context, inputs[stage.name], force))
    return inputs, done


def stage_digest(stage: Stage, context: Context, earlier: dict[str, str]) -> str:
    """What a stage's result depends on: its recipe parts, the stages before it, and for the first the model and data."""
    parts = [part.model_dump(mode="json") if hasattr(part, "model_dump") else part for part in _flat(stage, context)]
    roots = [] if stage.after else [context.model_digest, context.data_digest]
    return digest(
        stage.name, CODE, context.device.type, pieces.RULE, parts, [earlier[name] for name in stage.after], roots
    )


def _flat(stage: Stage, context: Context) -> list[Any]:
    parts = stage.inputs(context.recipe)
    return list(parts) if isinstance(parts, tuple) else [parts]


def _do(stage: Stage, context: Context, inputs: str, force: bool) -> dict[str, Any]:
    folder = context.folder
    if not force and folder.is_current(stage.name, inputs):
        context.reporter.say(f"{stage.name}: unchanged, skipped")
        known = folder.record(stage.name) or {}
        cost = {key: known.get(key) for key in ("seconds", "peak_memory_mb")}
        return {"name": stage.name, **cost, "skipped": True}
    if force:
        folder.clear(folder.stage_folder(stage.name) / PARTS, set())
    before = folder.files_of(stage.name)
    folder.begin(stage.name)
    started = time.monotonic()
    with memory.peak(context.device) as highest, memory.refused(stage.name, context.device):
        made = stage.work(context)
    folder.remove(before - set(made))
    peak = None if highest[0] is None else round(highest[0], 1)
    folder.finish(stage.name, inputs, made, started, peak)
    seconds = round(time.monotonic() - started, 2)
    context.reporter.say(f"{stage.name}: done in {seconds:.1f} s")
    return {"name": stage.name, "seconds": seconds, "peak_memory_mb": peak, "skipped": False}
