"""Criteria that read weights alone, or weights and their gradients; torch-pruning's importances are not written again.

`class_alignment` projects what a hidden unit writes to the stream (γ⊙W2_j, the "value vector") to the classes:
raw, head.weight · v, or normed, head(norm(v)) with the final norm's affine and the head's bias, as S1's code does.
Legend: N hidden units, D width, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitprune.core.device import wide, widened
from vitprune.criteria.settings import Nothing
from vitprune.criteria.signatures import Batches
from vitprune.criteria.weights import bridge
from vitprune.model.sites.ffn import FfnSite


def magnitude(model: nn.Module, sites: Sequence[FfnSite], batches: Batches, *, how: Nothing, p: int) -> list[Tensor]:
    """Group magnitude: mean of the p-norms' p-th powers of a unit's row of fc1 and column of fc2; per block [1, N]."""
    return [score[None] for score in bridge.importances(model, sites, "magnitude", p=p)]


def taylor(model: nn.Module, sites: Sequence[FfnSite], batches: Batches, *, how: Nothing) -> list[Tensor]:
    """|w·∂loss/∂w| summed over a unit's weights, the gradient of the mean cross-entropy of all images; per block [1, N]."""
    grads = gradients(model, _weights(model, sites), batches, per_image=False)
    return [score[None] for score in bridge.importances(model, sites, "taylor", grads)]


def hessian(model: nn.Module, sites: Sequence[FfnSite], batches: Batches, *, how: Nothing) -> list[Tensor]:
    """w²·E[(∂loss/∂w)²] summed over a unit's weights (optimal brain damage), gradients image by image; per block [1, N].

    The mean of squares is formed here: torch-pruning 1.6.1's own accumulator keeps only the last image's.
    """
    grads = gradients(model, _weights(model, sites), batches, per_image=True)
    return [score[None] for score in bridge.importances(model, sites, "hessian", grads)]


def gradients(
    model: nn.Module, weights: Sequence[nn.Parameter], batches: Batches, *, per_image: bool
) -> dict[nn.Parameter, Tensor]:
    """The mean gradient of the cross-entropy at weights, or the mean of its squares over images."""
    sums = [torch.zeros(w.shape, dtype=torch.float64, device=wide(w.device)) for w in weights]
    flags, count = [w.requires_grad for w in weights], 0
    try:
        for w in weights:
            w.requires_grad_(True)
        for images, labels in batches():
            count += len(images)
            for x, y in zip(images.split(1), labels.split(1), strict=True) if per_image else ((images, labels),):
                with torch.enable_grad():
                    loss = F.cross_entropy(model(x), y, reduction="sum")
                grads = torch.autograd.grad(loss, weights)
                for total, grad in zip(sums, grads, strict=True):
                    total += widened(grad).square() if per_image else widened(grad)
    finally:
        for w, flag in zip(weights, flags, strict=True):
            w.requires_grad_(flag)
    return {w: (total / max(count, 1)).to(w.dtype).to(w.device) for w, total in zip(weights, sums, strict=True)}


def _weights(model: nn.Module, sites: Sequence[FfnSite]) -> list[nn.Parameter]:
    """Those of every FFN's layers."""
    return [weight(model, name) for site in sites for name in (site.fc1, site.gate, site.fc2) if name]


def weight(model: nn.Module, name: str) -> nn.Parameter:
    """That of a linear layer."""
    layer = model.get_submodule(name)
    assert isinstance(layer, nn.Linear) and isinstance(layer.weight, nn.Parameter)
    return layer.weight
