"""Criterion `variance`: σ² of every hidden unit, weighted by ‖W2‖² if asked."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from vitprune.core.least_squares import Sums
from vitprune.criteria.settings import Nothing
from vitprune.criteria.signatures import Batches
from vitprune.criteria.statistics.obs import columns
from vitprune.model.inside import moments
from vitprune.model.sites.ffn import FfnSite


def variance(
    model: nn.Module, sites: Sequence[FfnSite], batches: Batches, *, how: Nothing, weighted: bool
) -> list[Tensor]:
    """Per block [1, N]."""
    found = moments.sums(model, sites, (x for x, _ in batches()))
    return from_sums(model, sites, found, how=how, weighted=weighted)


def from_sums(model: nn.Module, sites: Sequence[FfnSite], found: Sums, *, how: Nothing, weighted: bool) -> list[Tensor]:
    """The same from the hidden units' sums."""
    scores = []
    for site, stat in zip(sites, moments.of_sums(found, sites), strict=True):
        score = stat.covariance.diagonal()
        if weighted:
            score = score * columns(model, site).square().sum(0)
        scores.append(score.float()[None])
    return scores
