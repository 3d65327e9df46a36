"""What of a run is there already, and so costs nothing: finished stages, and the parts of those that were interrupted."""

from __future__ import annotations

import numpy as np

from vitprune.core.reading import Json, read_sealed
from vitprune.images.split import first_per_class
from vitprune.recipe.recipe import Recipe
from vitprune.runs.costs.making import contenders
from vitprune.runs.record import frontier
from vitprune.runs.stages import image_scores
from vitprune.runs.stages.image_scores import Discovery
from vitprune.runs.stages.order import SEE, STAGES, Stage, stage_digest
from vitprune.runs.state.run import Run
from vitprune.runs.state.workspace import PARTS, SHARED


def finished(run: Run) -> set[str]:
    """The stages that would be skipped; of a frontier those that all of its budgets have done."""
    if run.folder.record("split") is None:
        return set()
    asked = run.recipe
    try:
        run.recipe = _resolved(run)
        inputs: dict[str, str] = {}
        stages = [*STAGES, *_looks(asked)]
        found = {stage.name for stage in stages if stage.name in SHARED or not asked.frontier}
        for stage in stages:
            if stage.name in found:
                inputs[stage.name] = stage_digest(stage, run, inputs)
                found -= set() if run.folder.is_current(stage.name, inputs[stage.name]) else {stage.name}
        return found | (_of_budgets(run, inputs) if asked.frontier else set())
    finally:
        run.recipe = asked


def _looks(recipe: Recipe) -> list[Stage]:
    """The look at the units, where the recipe asks for it."""
    return [] if recipe.see is None else [SEE]


def _of_budgets(run: Run, shared: dict[str, str]) -> set[str]:
    """The stages that every budget of a frontier has done."""
    own = [*(stage for stage in STAGES if stage.name not in SHARED), *_looks(run.recipe)]
    done = {stage.name for stage in own}
    for inner in frontier.runs(run):
        inputs = dict(shared)
        for stage in frontier.stages_of(run, inner, own):
            inputs[stage.name] = stage_digest(stage, inner, inputs)
            done -= set() if inner.folder.is_current(stage.name, inputs[stage.name]) else {stage.name}
    return done


def _resolved(run: Run) -> Recipe:
    """The recipe with what an earlier run has chosen and grouped, if that is there; a stage's digest says whether it is of
    the same inputs."""
    recipe = run.recipe
    if recipe.clusters:
        groups = _known(run, "cluster", "groups.json").get("groups")
        recipe = recipe.model_copy(update={"groups": groups, "clusters": None}) if groups else recipe
    if recipe.criterion.name == "auto":
        name = _known(run, "choose", "choice.json").get("chosen")
        own = recipe.criterion.model_copy(update={"name": name}) if name else recipe.criterion
        recipe = recipe.model_copy(update={"criterion": own})
    return recipe


def _known(run: Run, stage: str, name: str) -> Json:
    return read_sealed(run.folder.stage_folder(stage) / name) or {}


def undone(run: Run, discoveries: tuple[Discovery, ...], repair: str) -> dict[str, float]:
    """The share of interrupted work that is left, by the keys of `Outline.undone`; parts are counted, not looked into."""
    if run.folder.record("split") is None:
        return {}
    found: dict[str, float] = {}
    for one in discoveries:
        probe = run.split.probe
        index = first_per_class(
            probe[np.isin(run.images.labels[probe], run.classes.every())], run.source.class_of, one.per_class
        )
        job = image_scores.job(run, one, index)
        found[one.name(one.ts[0])] = _left(len(list(image_scores.folder_of(run, job).glob("*"))), len(job.items))
    sets, parts = run.classes.sets(), run.folder.stage_folder("evaluate") / PARTS
    rows = len(sets) * (contenders(run.recipe, repair) + 1)
    exam = _left(len(list(parts.rglob("*.safetensors"))), rows)
    found |= {f"exam {name or 'all'}": exam for name in sets}
    return found


def _left(there: int, count: int) -> float:
    return max(0.0, 1 - there / max(1, count))
