"""Criteria from the mean and covariance of the hidden units over all tokens; no labels.

    variance          σ_j²                      VBP (ICCV 2025): what a constant bias cannot take over
    variance-weight   σ_j² ‖W2_j‖²              the same, as it reaches the stream
    obs               greedy: remove the unit with the least ‖W2_j‖² / [C⁻¹]_jj, then
                      W2 ← W2 − W2_j h_jᵀ / h_jj,  C⁻¹ ← C⁻¹ − h_j h_jᵀ / h_jj   (h_j = row j of C⁻¹),  and again

obs is optimal brain surgeon with Schur updates: its cost is the error that is left after the best linear repair of each
removal, so redundancy is seen. It gives a curve per block: `allocation: global` merges their running maxima, `budgeted`
sums the costs as they are. C gets a ridge of 1e-3 · mean diag C.
In the last block only the tokens that the head reads are counted, as in the repair. Legend: N hidden units, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from vitprune.core import least_squares
from vitprune.core.least_squares import Sums
from vitprune.criteria.curves import Curve
from vitprune.criteria.settings import Nothing
from vitprune.criteria.signatures import Batches
from vitprune.model.inside import moments
from vitprune.model.sites.ffn import FfnSite

COMPACT = 64  # removals between two compactions of the matrices


def obs(model: nn.Module, sites: Sequence[FfnSite], batches: Batches, *, how: Nothing) -> list[Curve]:
    """Per block the order of removal and its costs, in squared stream units per token."""
    return from_sums(model, sites, moments.sums(model, sites, (x for x, _ in batches())), how=how)


def sums(
    model: nn.Module,
    sites: Sequence[FfnSite],
    batches: Batches,
    *,
    classes: Sequence[int],
    how: Nothing,
    first: Sums | None,
) -> Sums:
    """Sums of the hidden units, for `variance` too: classes play no part."""
    return moments.sums(model, sites, (x for x, _ in batches()), first)


def from_sums(model: nn.Module, sites: Sequence[FfnSite], found: Sums, *, how: Nothing) -> list[Curve]:
    """The curves from the hidden units' sums."""
    pairs = zip(sites, moments.of_sums(found, sites), strict=True)
    return [Curve(*eliminate(columns(model, site), stat.covariance), "squared stream units") for site, stat in pairs]


def eliminate(weight_DN: Tensor, covariance_NN: Tensor, ridge: float = least_squares.RIDGE) -> tuple[Tensor, Tensor]:
    """The greedy order: units [N] int64, first removed first, and what each removal costs [N] float64, in that order."""
    n = len(covariance_NN)
    strength = ridge * covariance_NN.diagonal().mean().clamp_min(1e-30)
    inverse = torch.linalg.inv(covariance_NN.double() + strength * torch.eye(n, dtype=torch.float64)).numpy()
    weight = weight_DN.double().numpy().copy()
    alive, order, costs = np.arange(n), np.empty(n, np.int64), np.empty(n)
    for k in range(n):
        if k and k % COMPACT == 0:  # what is gone is only carried along
            left = ~np.isin(alive, order[k - COMPACT : k])
            alive, weight = alive[left], np.ascontiguousarray(weight[:, left])
            inverse = np.ascontiguousarray(inverse[left][:, left])
            gone = np.zeros(len(alive), bool)
        elif not k:
            gone = np.zeros(n, bool)
        cost = np.einsum("dn,dn->n", weight, weight) / np.maximum(np.diagonal(inverse), 1e-300)
        cost[gone] = np.inf
        j = int(cost.argmin())
        order[k], costs[k], gone[j] = alive[j], cost[j], True
        row, column = inverse[j].copy(), weight[:, j].copy()
        row_scaled = row / row[j]
        weight -= np.outer(column, row_scaled)
        inverse -= np.outer(row, row_scaled)
    return torch.from_numpy(order), torch.from_numpy(costs)


def columns(model: nn.Module, site: FfnSite) -> Tensor:
    """fc2's weight [D, N], float64, on the CPU."""
    fc2 = model.get_submodule(site.fc2)
    assert isinstance(fc2, nn.Linear)
    return fc2.weight.detach().double().cpu()
