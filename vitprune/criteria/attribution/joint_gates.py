"""Joint gates: one gate g ∈ [0, 1] per hidden unit, at every token of every block, all of them moved together.

The score of a unit and image is the mean over α ∈ [low, 1] of ∂(objective)/∂g at g = α for all units at once: joint
integrated gradients carried to what structured pruning removes, a unit at all tokens. low = 0 is the whole path and
complete (the signed scores of an image sum to p(clean) − p(every unit zeroed)), low = 1 the gradient at the dense model.
`form` is taken per image: signed, absolute, or squared; squared at low = 1 with `objective: log-probability` is the
gate's Fisher information, with the model's own labels (`labels: sampled`) or the true ones (the empirical Fisher).

Legend: B images, R rows (images × nodes, node-major), T tokens, N hidden units.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vitprune.criteria.attribution import quadrature
from vitprune.criteria.attribution.objective import objective
from vitprune.criteria.attribution.settings import Gates
from vitprune.criteria.sampling import sampled_labels
from vitprune.model.inside import hooks
from vitprune.model.sites.ffn import FfnSite


def joint_gates(
    model: nn.Module,
    sites: Sequence[FfnSite],
    images: Tensor,
    labels: Tensor,
    *,
    ts: Sequence[int],
    how: Gates,
) -> dict[int, list[Tensor]]:
    """Scores per block [B, N], the same for every t; images and labels as in `jas`. Any head, any token layout."""
    if how.labels == "sampled":
        labels = sampled_labels(model, images, how.seed)
    at, of_node = quadrature.rule(how.quadrature, how.nodes, how.low)
    nodes = len(at)
    alpha = torch.from_numpy(at).to(images).repeat_interleave(len(images))[:, None, None]
    hidden: list[Tensor] = []
    gated: list[Tensor] = []

    def gate(_: int, hidden_RTN: Tensor) -> Tensor:
        product = hidden_RTN * alpha
        hidden.append(hidden_RTN.detach())
        gated.append(product if product.requires_grad else product.requires_grad_())
        return product

    with torch.enable_grad(), hooks.hidden_units(model, sites, gate):
        value = objective(model(images.repeat(nodes, 1, 1, 1)), labels.repeat(nodes), how.objective)
        grads = torch.autograd.grad(value.sum(), gated)
    weights = torch.from_numpy(of_node).to(images)
    scores = []
    for h, g in zip(hidden, grads, strict=True):
        of_gate_BN = torch.tensordot(weights, (h * g).sum(1).unflatten(0, (nodes, -1)), 1)
        scores.append(_form(of_gate_BN, how.form))
    return dict.fromkeys(ts, scores)


def _form(score: Tensor, form: str) -> Tensor:
    return {"signed": score, "absolute": score.abs(), "squared": score.square()}[form]
