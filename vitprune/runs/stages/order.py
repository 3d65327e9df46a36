"""The stages in their order, and what the result of each depends on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitprune.core.reading import digest
from vitprune.images import pixel_labels
from vitprune.model.inside import pieces
from vitprune.recipe.recipe import Recipe
from vitprune.runs.seeing import stage as seeing
from vitprune.runs.seeing.parts.naming import inputs
from vitprune.runs.stages import exam, export, moments, prune, score, split
from vitprune.runs.stages.versions import version
from vitprune.runs.state import lengths, precise
from vitprune.runs.state.run import Run

PASSES = ("discover", "moments", "prune")  # whose figures the precision of passes may move


@dataclass(frozen=True, slots=True)
class Stage:
    """`work` returns the files it made; `inputs` lists the recipe parts it depends on beside the stages in `after`."""

    name: str
    work: Callable[[Run], list[Path]]
    inputs: Callable[[Recipe], Any]
    after: tuple[str, ...]


def _attention(recipe: Recipe) -> list[str]:
    return ["attention"] if recipe.prunes_attention else []


STAGES = (
    Stage("split", split.split, lambda r: (r.model, r.data.content(), r.split), ()),
    Stage(
        "discover",
        score.discover,
        lambda r: (r.classes, r.groups, r.criterion, r.baselines, r.paper_protocol, *_attention(r)),
        ("split",),
    ),
    Stage("moments", moments.moments, lambda r: (r.classes, r.groups, r.recovery, r.refit_images), ("split",)),
    Stage("prune", prune.prune, lambda r: (r.keep, r.recovery, r.rounds, r.pruning(), r.head), ("discover", "moments")),
    Stage("evaluate", exam.evaluate, lambda r: r.random_draws, ("prune",)),
    Stage("export", export.export, lambda r: r.export.model_dump(mode="json", exclude={"budget"}), ("prune",)),
)
SEE = Stage(
    "see", seeing.see, lambda r: (inputs.of_recipe(r), *pixel_labels.told(r.data.masks)), ("prune", "evaluate")
)  # of a run whose recipe has `see`


def stage_digest(stage: Stage, run: Run, earlier: dict[str, str]) -> str:
    """What a stage's result depends on: its recipe parts, the stages before it, and for the first the model and data."""
    parts = [_told(part, run) for part in _flat(stage, run)]
    roots = [] if stage.after else [run.model_digest, run.data_digest]
    code = version(stage.name)
    parts += (
        [precise.told(run.recipe, run.device)] if stage.name in PASSES and precise.told(run.recipe, run.device) else []
    )
    return digest(stage.name, code, run.device.type, pieces.RULE, parts, [earlier[name] for name in stage.after], roots)


def _told(part: Any, run: Run) -> Any:
    if part is run.recipe.criterion:
        return lengths.told(run)
    return part.model_dump(mode="json") if hasattr(part, "model_dump") else part


def _flat(stage: Stage, run: Run) -> list[Any]:
    parts = stage.inputs(run.recipe)
    return list(parts) if isinstance(parts, tuple) else [parts]
