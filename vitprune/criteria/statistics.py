"""Criteria from the mean and covariance of the hidden units over all tokens; no labels.

    variance          σ_j²                      VBP (ICCV 2025): what a constant bias cannot take over
    variance-weight   σ_j² ‖W2_j‖²              the same, as it reaches the stream
    obs               greedy: remove the unit with the least ‖W2_j‖² / [C⁻¹]_jj, then
                      W2 ← W2 − W2_j h_jᵀ / h_jj,  C⁻¹ ← C⁻¹ − h_j h_jᵀ / h_jj   (h_j = row j of C⁻¹),  and again

obs is optimal brain surgeon with Schur updates: its cost is the error that is left after the best linear repair of each
removal, so redundancy is seen. The score is the removal's turn. C gets a ridge of 1e-3 · mean diag C.
In the last block only the tokens that the head reads are counted, as in the repair. Legend: N hidden units, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vitprune import recovery
from vitprune.criteria.weights import Batches
from vitprune.types import Attribution, FfnSite


def variance(
    model: nn.Module, sites: Sequence[FfnSite], batches: Batches, *, how: Attribution, weighted: bool
) -> list[Tensor]:
    """Per block [1, N]."""
    scores = []
    for site, stat in zip(sites, recovery.moments(model, sites, (x for x, _ in batches())), strict=True):
        score = stat.covariance.diagonal()
        if weighted:
            score = score * _columns(model, site).square().sum(0)
        scores.append(score.float()[None])
    return scores


def obs(model: nn.Module, sites: Sequence[FfnSite], batches: Batches, *, how: Attribution) -> list[Tensor]:
    """Per block [1, N]: the turn at which the unit is removed, 0 first."""
    stats = recovery.moments(model, sites, (x for x, _ in batches()))
    pairs = zip(sites, stats, strict=True)
    return [removal_order(_columns(model, site), stat.covariance)[None].float() for site, stat in pairs]


def removal_order(weight_DN: Tensor, covariance_NN: Tensor, ridge: float = recovery.RIDGE) -> Tensor:
    """[N] int64: the turn of every unit in the greedy order."""
    n = len(covariance_NN)
    eye = torch.eye(n, dtype=torch.float64)
    strength = ridge * covariance_NN.diagonal().mean().clamp_min(1e-30)
    inverse = torch.linalg.inv(covariance_NN.double() + strength * eye)
    weight = weight_DN.double().clone()
    gone = torch.zeros(n, dtype=torch.bool)
    turn = torch.empty(n, dtype=torch.int64)
    for k in range(n):
        cost = weight.square().sum(0) / inverse.diagonal().clamp_min(1e-300)
        j = int(cost.masked_fill(gone, torch.inf).argmin())
        row, column = inverse[j].clone(), weight[:, j].clone()
        scale = -1 / float(row[j])
        weight.addr_(column, row, alpha=scale)
        inverse.addr_(row, row, alpha=scale)
        gone[j], turn[j] = True, k
    return turn


def _columns(model: nn.Module, site: FfnSite) -> Tensor:
    fc2 = model.get_submodule(site.fc2)
    assert isinstance(fc2, nn.Linear)
    return fc2.weight.detach().double().cpu()
