"""Scores of heads and of their dimensions, by the criteria whose scores of hidden units follow the same rule.

    magnitude-l2   mean of ‖row‖² and ‖column‖² of a value's dimension, of ‖row‖² and ‖row‖² of a query's and a key's
    taylor         the same of Σ |w·∂loss/∂w|
    variance       σ_j²‖Wo_j‖² of what `proj` reads; E[q_j²]·σ²(k_j), a pair's part of the logits' size
    random         a draw

A head's score is the sum of its dimensions', that of `variance` the variance of all that it writes, tr(Wo_h C_hh Wo_hᵀ).
Where queries and keys can only go with their head, their weights count for it and no pair has a score. A gate's row is a
third part of a value's mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vitprune.core.least_squares import Sums
from vitprune.criteria.heads.coordinates import Coordinates
from vitprune.criteria.signatures import Batches
from vitprune.criteria.statistics import attention
from vitprune.criteria.weights import torch_pruning
from vitprune.model.sites.attention import AttentionSite, attention_sites
from vitprune.model.sites.ffn import linear


def magnitude(
    model: nn.Module, batches: Batches, found: Sums | None, *, how: Any, sites: Sequence[AttentionSite] | None = None
) -> list[Coordinates]:
    """Of the weights' squares."""
    return [
        _of_weights(site, [weight.detach().double().cpu().square() for weight in _weights(model, site)])
        for site in _of(model, sites)
    ]


def taylor(
    model: nn.Module, batches: Batches, found: Sums | None, *, how: Any, sites: Sequence[AttentionSite] | None = None
) -> list[Coordinates]:
    """Of the weights times their mean gradients."""
    sites = _of(model, sites)
    weights = [_weights(model, site) for site in sites]
    grads = torch_pruning.gradients(model, [w for own in weights for w in own], batches, per_image=False)
    return [
        _of_weights(site, [(w * grads[w]).detach().abs().double().cpu() for w in own])
        for site, own in zip(sites, weights, strict=True)
    ]


def variance(
    model: nn.Module, batches: Batches, found: Sums | None, *, how: Any, sites: Sequence[AttentionSite] | None = None
) -> list[Coordinates]:
    """Of the sums that `statistics.attention` makes."""
    assert found is not None
    sites, made = _of(model, sites), []
    for site, moments in zip(sites, attention.of_sums(found, sites), strict=True):
        proj = linear(model, site.proj).weight.detach().double().cpu()
        shape = site.heads, site.dim
        values = (moments.covariance.diagonal() * proj.square().sum(0)).unflatten(0, shape)
        pairs = _that_can_go(site, moments.queries.diagonal(dim1=1, dim2=2) * moments.keys.diagonal(dim1=1, dim2=2))
        heads = [written_by(proj[:, own], moments.covariance[own, own]) for own in _runs(site)]
        made.append(Coordinates(site, torch.stack(heads), values, pairs))
    return made


def _of(model: nn.Module, sites: Sequence[AttentionSite] | None) -> Sequence[AttentionSite]:
    return attention_sites(model) if sites is None else sites


def random(sites: Sequence[AttentionSite], *, seed: int) -> list[Coordinates]:
    """A draw, the same for the same seed on every machine; another than that of the hidden units."""
    draw, made = np.random.default_rng([seed, 1]), []
    for site in sites:
        shapes = site.heads, (site.heads, site.dim), (site.heads, site.asking(site.dim))
        heads, values, pairs = (torch.from_numpy(draw.random(shape)) for shape in shapes)
        made.append(Coordinates(site, heads, values, _that_can_go(site, pairs)))
    return made


def written_by(columns_Dd: Tensor, covariance_dd: Tensor) -> Tensor:
    """The variance of what a head writes."""
    return ((columns_Dd @ covariance_dd) * columns_Dd).sum()


def _runs(site: AttentionSite) -> list[slice]:
    return [slice(h * site.dim, (h + 1) * site.dim) for h in range(site.heads)]


def _weights(model: nn.Module, site: AttentionSite) -> list[nn.Parameter]:
    """Those of proj, of a gate where there is one, then of the one or three layers that make queries, keys and values."""
    attn: Any = model.get_submodule(site.path)
    into = ["qkv"] if getattr(attn, "qkv", None) is not None else ["q_proj", "k_proj", "v_proj"]
    names = ["proj", *(["gate"] if site.gated else []), *into]
    return [torch_pruning.weight(model, f"{site.path}.{name}") for name in names]


def _of_weights(site: AttentionSite, counts: Sequence[Tensor]) -> Coordinates:
    """From what every one of the `_weights` counts for."""
    proj, gate, into = counts[0], counts[1 : 1 + site.gated], counts[1 + site.gated :]
    asked, own = site.heads * site.asking(site.dim), site.heads * site.dim
    rows = torch.cat([made.sum(1) for made in into]).split([asked, asked, own])
    q, k, v = (part.unflatten(0, (site.heads, -1)) for part in rows)
    values = v + proj.sum(0).unflatten(0, (site.heads, -1))
    for made in gate:
        values = values + made.sum(1).unflatten(0, (site.heads, -1))
    return Coordinates.summed(site, values / (2 + site.gated), (q + k) / 2)


def _that_can_go(site: AttentionSite, pairs: Tensor) -> Tensor:
    """The pairs' scores, none where no pair can go."""
    return pairs if site.query_keys else torch.zeros_like(pairs)
