"""OBS of heads and dimensions: rotations and curves, in the Fisher metric or without one.

`obs` is `fisher-obs` with the identity in the place of G, and costs in squared stream units per token, as those of FFNs.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from vitprune.core.least_squares import Sums
from vitprune.criteria.signatures import Batches
from vitprune.criteria.statistics import attention, attention_curve
from vitprune.criteria.statistics.attention import AttentionMoments
from vitprune.criteria.statistics.attention_curve import AttentionCurve
from vitprune.criteria.statistics.ranks import ranks
from vitprune.model.sites.attention import AttentionSite, attention_sites
from vitprune.model.sites.ffn import linear


def fisher_obs(
    model: nn.Module, batches: Batches, found: Sums | None, *, how: Any, sites: Sequence[AttentionSite] | None = None
) -> list[AttentionCurve]:
    """The curves in nats per image."""
    assert found is not None
    sites = attention_sites(model) if sites is None else sites
    return curves(model, sites, attention.of_sums(found, sites), batches)


def obs(
    model: nn.Module, batches: Batches, found: Sums | None, *, how: Any, sites: Sequence[AttentionSite] | None = None
) -> list[AttentionCurve]:
    """The curves in squared stream units per token."""
    assert found is not None
    sites = attention_sites(model) if sites is None else sites
    moments = [unweighted(model, *pair) for pair in zip(sites, attention.of_sums(found, sites), strict=True)]
    return curves(model, sites, moments, batches)


def unweighted(model: nn.Module, site: AttentionSite, moments: AttentionMoments) -> AttentionMoments:
    """The moments with G the identity, and T such that ½·T is 1: costs are then squared errors of a token."""
    width = linear(model, site.proj).out_features
    return replace(moments, fisher=torch.eye(width, dtype=torch.float64), tokens=2)


def curves(
    model: nn.Module, sites: Sequence[AttentionSite], moments: Sequence[AttentionMoments], batches: Batches
) -> list[AttentionCurve]:
    """The curve of every attention; queries and keys are measured on the first of the images."""
    measured = ranks(model, sites, moments, (x for x, _ in batches()))
    weights = [linear(model, site.proj).weight.detach().double().cpu() for site in sites]
    return list(itertools.starmap(attention_curve.curve, zip(sites, weights, moments, measured, strict=True)))
