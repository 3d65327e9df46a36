"""Repair of a model whose units are gone, from images of the probe split; labels play no part.

`sequential` and `layerwise` go block by block (layerwise.py); `+distill` adds a short training by the dense
model (distill.py). `mean` and `affine` need only the hidden units of the dense model: with S the kept and P the
pruned units, μ and C the mean and centred covariance of a block's hidden units over all tokens of all probe images (in
the last block over the tokens that the head reads: what its FFN does to the others is never seen; on a fold of the probe
split leaving them out was worth 0 to 0.9 points), W2 = fc2.weight and b2 = fc2.bias:

    mean     b2 += W2_P μ_P
    affine   B = C_PS (C_SS + λI)⁻¹;   W2_S += W2_P B;   b2 += W2_P (μ_P − B μ_S)      λ = ridge · mean diag C_SS

Affine is the ridge regression of the pruned units on the kept ones; the centring is what makes it work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from vitprune.core.errors import UserError
from vitprune.core.least_squares import RIDGE, Moments
from vitprune.model import families
from vitprune.model.inside import blockwise
from vitprune.model.sites import ffn
from vitprune.pruning.plan import Plan
from vitprune.pruning.repair import distill, layerwise
from vitprune.pruning.repair.fold import _refit_all, _refit_normed
from vitprune.pruning.repair.names import Recovery, closed_form, needs_images

DISTILL_EPOCHS = 3


def chosen(asked: Recovery | Literal["auto"], model: nn.Module) -> Recovery:
    """The repair; `auto` is layerwise where the blocks come in halves, affine elsewhere."""
    if asked != "auto":
        return asked
    return "affine" if blockwise.halves(model) is None else "layerwise"


@torch.no_grad()
def repair(
    slim: nn.Module,
    dense: nn.Module,
    plan: Plan,
    recovery: Recovery,
    *,
    stats: Sequence[Moments] = (),
    batches: Callable[[], Iterable[Tensor]] | None = None,
    ridge: float | None = None,
    epochs: int = DISTILL_EPOCHS,
    track: layerwise.Track = iter,
    kept: layerwise.Kept | None = None,
    scratch: Path | None = None,
) -> None:
    """Repair `slim` in place. `stats` are the dense model's moments (mean, affine), `batches` gives images [B, C, H, W]
    (the others). `ridge` None: 1e-3 for affine, chosen per layer on a fifth of the images by those that go block by block.
    `kept`: the dense streams of an earlier repair from the same batches, or to be filled. `scratch`: a folder for what does
    not fit into memory, that of temporary files if None; nothing is left there, however this process ends.

    Raises UserError where the recovery needs images and there are none.
    """
    if needs_images(recovery) and batches is None:
        raise UserError(f"recovery `{recovery}`: needs images; pass some or take recovery: none")
    if all(bool(keep.all()) for keep in plan.keep.values()):
        return  # nothing is gone, so nothing is repaired: every weight stays to the bit
    solved = closed_form(recovery)
    if solved != "none":
        ffn.add_biases(slim, families.ffn_sites(slim))
    if solved in ("mean", "affine"):
        strength = RIDGE if ridge is None else ridge
        _refit_all(slim, dense, plan, stats, solved, strength)
        normed = [site for site in families.ffn_sites(dense) if site.norm is not None]
        if normed and batches is None:
            raise UserError(f"recovery `{recovery}`: {normed[0].norm} sees the kept units only; images are needed")
        if batches is not None:
            _refit_normed(slim, dense, plan, batches(), solved, strength)
    elif solved != "none":
        assert batches is not None
        layers = solved == "layerwise"
        layerwise.repair(slim, dense, batches(), attention=layers, ridge=ridge, track=track, kept=kept, scratch=scratch)
    if recovery.endswith("distill"):
        assert batches is not None
        distill.distill(slim, dense, batches, epochs=epochs)
