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

from torch import Tensor, nn

from vitprune.core.device import device_of
from vitprune.core.least_squares import Sums
from vitprune.criteria.curves import Curve
from vitprune.criteria.settings import Nothing
from vitprune.criteria.signatures import Batches
from vitprune.criteria.statistics.elimination import eliminate
from vitprune.model.inside import moments
from vitprune.model.sites.ffn import FfnSite


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
    pairs, device = zip(sites, moments.of_sums(found, sites), strict=True), device_of(model)
    orders = [eliminate(columns(model, site), stat.covariance, device=device) for site, stat in pairs]
    return [Curve(*order, "squared stream units") for order in orders]


def columns(model: nn.Module, site: FfnSite) -> Tensor:
    """fc2's weight [D, N], float64, on the CPU."""
    fc2 = model.get_submodule(site.fc2)
    assert isinstance(fc2, nn.Linear)
    return fc2.weight.detach().cpu().double()
