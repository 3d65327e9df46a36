"""Masks, surgery, repair: the slim model of every class set as a checkpoint folder."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from safetensors.torch import save as to_bytes
from torch import nn

from vitprune import checkpoint, masks, recovery, surgery
from vitprune.context import Context
from vitprune.errors import UserError
from vitprune.files import replacing, write_json
from vitprune.recovery import Moments
from vitprune.stages import moments
from vitprune.stages.discover import model_of, scores_of
from vitprune.types import Mask, Scores


def prune(context: Context) -> list[Path]:
    """The slim model of every class set as a checkpoint folder with its masks."""
    files: list[Path] = []
    for group, targets in context.class_sets().items():
        recipe = context.recipe
        scores = scores_of(context, recipe.criterion.name, recipe.criterion.seed, group)
        mask = mask_of(context, scores, targets)
        stats = moments.from_file(context, group)
        dense = model_of(context, recipe.criterion.name, group)
        difference = masked_against_sliced(context, mask, targets, dense)
        if not math.isfinite(difference):
            raise UserError(f"model `{recipe.model.name}`: gives values that are not finite; check its weights")
        slim = slimmed(context, mask, stats, recipe.recovery, dense)
        folder = context.folder.root / (group or "")
        about = {
            "classes": [context.class_name(i) for i in targets],
            "recipe_hash": recipe.fingerprint(),
            "keep": recipe.keep,
            "kept": mask.kept,
            "criterion": recipe.criterion.name,
            "recovery": recipe.recovery,
        }
        checkpoint.save(folder, context.loaded, slim, about)
        kept = {f"keep.{i}": keep for i, keep in enumerate(mask.blocks)}
        with replacing(folder / "masks.safetensors") as temporary:
            temporary.write_bytes(to_bytes(kept))
        check = context.folder.stage_folder("prune") / f"{group or 'all'}.json"
        write_json(check, {"widths": mask.widths, "kept": mask.kept, "masked_vs_sliced": difference})
        files += [folder / name for name in ("model.safetensors", "config.json", "masks.safetensors")] + [check]
    return files


def mask_of(context: Context, scores: Scores, targets: list[int]) -> Mask:
    """The mask for a class set at the recipe's budget."""
    r = context.recipe
    return masks.build(scores, r.keep, classes=targets, round_to=r.round_to, allocation=r.allocation)


def slimmed(
    context: Context, mask: Mask, stats: list[Moments], how: recovery.Recovery, dense: nn.Module | None = None
) -> nn.Module:
    """The dense model (or the copy that a criterion trained) without the units the mask drops, repaired."""
    dense = context.loaded.model if dense is None else dense
    slim = surgery.slim(dense, mask)
    recovery.repair(slim, dense, mask, stats, how)
    return slim


def masked_against_sliced(context: Context, mask: Mask, targets: list[int], dense: nn.Module) -> float:
    """Largest difference of logits between masked dense and unrepaired slim model, over the largest logit; 16 images."""
    probe = context.split.probe
    index = probe[np.isin(context.images.labels[probe], targets)][:16]
    x, _ = next(context.images.batches(index, 16))
    return surgery.masked_vs_sliced(dense, mask, x.to(context.device))
