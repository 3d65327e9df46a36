"""The score of a given path, whoever chose it, and how far the integration is from complete.

For units P [L, t] of an image, all assigned α·w̄ at the scored tokens, the others live:

    jas       ( Σ_P w̄ ) · ∫ Σ_P ∂p/∂w dα          (Wang et al., ICLR 2025, Eq. 3)
    joint_ig  ∫ Σ_P w̄·∂p/∂w dα                     complete: → p(α = 1) − p(α = 0)
    gap       joint_ig − ( p(α = 1) − p(α = 0) )    the error of the quadrature

Legend: B images, L blocks, t units, R rows (images × nodes, node-major), S scored tokens, N hidden units.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vitprune.criteria.attribution import quadrature
from vitprune.criteria.attribution.jas_plain import clean_units
from vitprune.criteria.attribution.objective import objective
from vitprune.criteria.attribution.settings import Jas
from vitprune.model import tokens
from vitprune.model.inside import hooks
from vitprune.model.sites.ffn import FfnSite


@dataclass(frozen=True, slots=True)
class PathScores:
    """Per image [B]."""

    jas: Tensor
    joint_ig: Tensor
    gap: Tensor


def path_scores(
    model: nn.Module, sites: Sequence[FfnSite], images: Tensor, labels: Tensor, units: Tensor, how: Jas
) -> PathScores:
    """Scores of the paths `units` [B, L, t] (L may be less than the model's depth: the path's first blocks)."""
    scored = tokens.scored_tokens(model, how.tokens, "path_scores")
    clean = clean_units(model, sites, images, scored)[: units.shape[1]]
    at, of_node = quadrature.rule(how.quadrature, how.nodes)
    alphas = torch.tensor([*at, 0.0, 1.0]).to(images)
    rows = len(alphas)
    alpha = alphas.repeat_interleave(len(images))[:, None, None]
    on = [
        torch.zeros_like(w[:, 0], dtype=torch.bool).scatter_(1, units[:, i].to(w.device).long(), True)[:, None]
        for i, w in enumerate(clean)
    ]
    leaves = [(alpha * w.repeat(rows, 1, 1)).requires_grad_() for w in clean]

    def assign(position: int, hidden_RTN: Tensor) -> Tensor | None:
        if position >= len(clean):
            return None
        taken = torch.where(on[position].repeat(rows, 1, 1), leaves[position], hidden_RTN[:, scored])
        start, stop, _ = scored.indices(hidden_RTN.shape[1])
        return torch.cat([hidden_RTN[:, :start], taken, hidden_RTN[:, stop:]], 1)

    with torch.enable_grad(), hooks.hidden_units(model, sites, assign):
        p = objective(model(images.repeat(rows, 1, 1, 1)), labels.repeat(rows), how.objective)
        grads = torch.autograd.grad(p.sum(), leaves)
    weights = torch.tensor([*of_node, 0.0, 0.0]).to(images)
    value, gradient, ig = (images.new_zeros(len(images)) for _ in range(3))
    for w, g, units_on in zip(clean, grads, on, strict=True):
        mean = torch.tensordot(weights, g.unflatten(0, (rows, -1)), 1) * units_on
        value = value + (w * units_on).sum((1, 2))
        gradient = gradient + mean.sum((1, 2))
        ig = ig + (w * mean).sum((1, 2))
    ends = p.detach().unflatten(0, (rows, -1))[-2:]
    return PathScores(value * gradient, ig, ig - (ends[1] - ends[0]))
