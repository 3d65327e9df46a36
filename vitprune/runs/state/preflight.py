"""`vitprune recipe check --model`: the recipe against its model, built on the meta device, by the run's own preflight."""

from __future__ import annotations

from vitprune.core.progress import Reporter
from vitprune.model.inside import backbone
from vitprune.recipe.check import images, of_backbone
from vitprune.recipe.model_files import Found
from vitprune.recipe.recipe import Recipe
from vitprune.runs.state import skeleton
from vitprune.runs.state.run import Run


def check(recipe: Recipe, found: Found) -> tuple[Recipe, list[str]]:
    """The recipe with the defaults that its model allows, and the notes that say so; `found` is what is known already.

    Raises UserError for what the run would refuse before any work.
    """
    run = Run.join(recipe, "cpu", Reporter(quiet=True))
    run.__dict__["loaded"] = loaded = skeleton.opened(recipe.model)
    if recipe.model.head == "none":
        backbone.remove_head(loaded.model)
    if recipe.model.features is not None:
        backbone.read(loaded.model, recipe.model.features)
    if run.backbone is not None:
        loaded.labels = None
    source = images(recipe.data, Found(), run.backbone is not None)
    try:
        if source is None:  # a dataset, or too many files: its classes are for the run
            if run.backbone is not None:
                of_backbone(recipe)
            run.adapt()
            run.fits()
        else:
            run.__dict__["source"] = source
            run.__dict__["processes"] = None
            run.preflight()
    finally:
        run.close()
    found.outputs, found.names, found.widths = loaded.outputs, loaded.labels, loaded.widths
    if "the model's shapes" in found.unseen:
        found.unseen.remove("the model's shapes")
    return run.recipe, run.notes
