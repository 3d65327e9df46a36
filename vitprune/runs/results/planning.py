"""What a recipe would keep, told before anything is repaired, examined or written.

The curves are those of the run's own discover stage and stay there: `run` afterwards finds them done. No image of the
test split is looked at beyond what every split does, which reads all images to find copies.
"""

from __future__ import annotations

import contextlib

from torch import nn

from vitprune.core import memory
from vitprune.core.progress import Reporter
from vitprune.core.reading import Json
from vitprune.model import classifier, size
from vitprune.model.inside import first_token
from vitprune.pruning import surgery
from vitprune.recipe.exports import of_file
from vitprune.recipe.recipe import Recipe
from vitprune.runs import pipeline
from vitprune.runs.costs import estimate
from vitprune.runs.engine import worker
from vitprune.runs.engine.opening import Workers
from vitprune.runs.record import frontier
from vitprune.runs.stages.exams import predicted
from vitprune.runs.stages.prune import main_mask
from vitprune.runs.stages.score import model_of
from vitprune.runs.state.run import Run


def outlook(
    recipe: Recipe,
    *,
    device: str = "auto",
    force: bool = False,
    reporter: Reporter | None = None,
    workers: Workers = 1,
    curves: bool = True,
) -> Json:
    """What a run would cost, what would be kept of every model that the recipe makes, and what that would lose; the content
    of `plan --json`. Without `curves` the cost alone, and nothing is written; so it is where only a repair can say what is
    kept, which `no_plans` then says.

    Raises UserError for everything the user can mend.
    """
    worker.one_process()
    reporter = reporter or Reporter(quiet=True)
    why = _why_not(recipe)
    if why is not None or not curves:
        run = Run.join(recipe, device, reporter, workers)
        with memory.refused("plan", run.device), contextlib.closing(run):
            return _made(run, force) | {"plans": [], "no_plans": why, "notes": run.notes, "stages": []}
    with Run.open(recipe, device, reporter, workers) as run, memory.refused("plan", run.device):
        made = _made(run, force)
        _, done = pipeline.advance(run, "discover", force)
        every = [(one, *item) for one in frontier.runs(run) for item in one.classes.sets().items()]
        plans = [_told(one, made["dense"], group, targets) for one, group, targets in every]
        made["criterion"] = run.recipe.criterion.name  # what `auto` has become
        return made | {"plans": plans, "no_plans": None, "notes": run.notes, "stages": done}


def _why_not(recipe: Recipe) -> str | None:
    """Why nothing can be said of what is kept before a repair."""
    if recipe.rounds > 1:
        return "`rounds` scores the model again after every repair; `vitprune prune` says what is kept"
    if recipe.whole is not None and recipe.whole.of == "loss_points":
        return "`loss_points` are sought by repairing models; `vitprune prune` says what is kept"
    return None


def _made(run: Run, force: bool) -> Json:
    """What is known before any work: the dense model's figures and what the run will cost."""
    run.preflight()
    made: Json = {"name": run.recipe.name, "folder": str(run.folder.root), "criterion": run.recipe.criterion.name}
    cost = estimate.of_run(run, "run", force)
    return made | {"dense": _figures(run.loaded.model), "cost": cost.as_json()}


def _told(run: Run, dense: Json, group: str | None, targets: list[int]) -> Json:
    """One model: its figures and what every block of it keeps."""
    recipe = run.recipe
    plan = main_mask(run, group, targets)
    slim = surgery.slim(model_of(run, recipe.criterion.name, group), plan)
    if not run.classes.keeps_head(targets):
        classifier.narrow(slim, targets)
    figures = _figures(slim)
    return {
        "group": group,
        "classes": [run.classes.name(i) for i in targets],
        "keep": recipe.keep,
        "budget": recipe.whole.spelled if recipe.whole else None,
        "kept": plan.kept,
        **figures,
        **{f"{name}_ratio": figures[name] / dense[name] for name in ("params", "macs", "bytes")},
        "macs_ratio": (_of_file(slim) if of_file(recipe.whole, recipe.export) else figures["macs"]) / dense["macs"],
        "macs_ratio_checkpoint": figures["macs"] / dense["macs"],
        **predicted.told(run, plan, group),
    }


def _of_file(model: nn.Module) -> int:
    """Multiply-adds of an image in the model's ONNX file."""
    return size.macs(model, shortcut=first_token.why_not(model) is None)


def _figures(model: nn.Module) -> Json:
    return {"params": size.parameters(model), "macs": size.macs(model), "bytes": size.file_bytes(model)}
