"""Scores of heads and of their dimensions, by the criteria whose scores of hidden units follow the same rule.

    magnitude-l2   mean of ‖row‖² and ‖column‖² of a value's dimension, of ‖row‖² and ‖row‖² of a query's and a key's
    taylor         the same of Σ |w·∂loss/∂w|
    variance       σ_j²‖Wo_j‖² of what `proj` reads; E[q_j²]·σ²(k_j), a pair's part of the logits' size
    random         a draw

A head's score is the sum of its dimensions', that of `variance` the variance of all that it writes, tr(Wo_h C_hh Wo_hᵀ).
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


def magnitude(model: nn.Module, batches: Batches, found: Sums | None, *, how: Any) -> list[Coordinates]:
    """Of the weights' squares."""
    sites = attention_sites(model)
    return [_of_weights(site, *(weight.square() for weight in _weights(model, site))) for site in sites]


def taylor(model: nn.Module, batches: Batches, found: Sums | None, *, how: Any) -> list[Coordinates]:
    """Of the weights times their mean gradients."""
    sites = attention_sites(model)
    layers = [torch_pruning.weight(model, path) for site in sites for path in (site.qkv, site.proj)]
    grads = torch_pruning.gradients(model, layers, batches, per_image=False)
    made = []
    for site, qkv, proj in zip(sites, layers[::2], layers[1::2], strict=True):
        made.append(_of_weights(site, *((w * grads[w]).abs().double().cpu() for w in (qkv, proj))))
    return made


def variance(model: nn.Module, batches: Batches, found: Sums | None, *, how: Any) -> list[Coordinates]:
    """Of the sums that `statistics.attention` makes."""
    assert found is not None
    sites, made = attention_sites(model), []
    for site, moments in zip(sites, attention.of_sums(found, sites), strict=True):
        _, proj = _weights(model, site)
        shape = site.heads, site.dim
        values = (moments.covariance.diagonal() * proj.square().sum(0)).unflatten(0, shape)
        pairs = moments.queries.diagonal(dim1=1, dim2=2) * moments.keys.diagonal(dim1=1, dim2=2)
        heads = [written_by(proj[:, own], moments.covariance[own, own]) for own in _runs(site)]
        made.append(Coordinates(site, torch.stack(heads), values, pairs))
    return made


def random(sites: Sequence[AttentionSite], *, seed: int) -> list[Coordinates]:
    """A draw, the same for the same seed on every machine; another than that of the hidden units."""
    draw = np.random.default_rng([seed, 1])
    return [Coordinates(s, *(torch.from_numpy(draw.random(n)) for n in (s.heads, (s.heads, s.dim), (s.heads, s.dim))))
            for s in sites]  # fmt: skip


def written_by(columns_Dd: Tensor, covariance_dd: Tensor) -> Tensor:
    """The variance of what a head writes."""
    return ((columns_Dd @ covariance_dd) * columns_Dd).sum()


def _runs(site: AttentionSite) -> list[slice]:
    return [slice(h * site.dim, (h + 1) * site.dim) for h in range(site.heads)]


def _weights(model: nn.Module, site: AttentionSite) -> list[Tensor]:
    """The weights of qkv [3·H·d, D] and of proj [D, H·d], float64, on the CPU."""
    return [linear(model, path).weight.detach().double().cpu() for path in (site.qkv, site.proj)]


def _of_weights(site: AttentionSite, qkv: Tensor, proj: Tensor) -> Coordinates:
    """From what every weight of qkv and of proj counts for."""
    q, k, v = qkv.sum(1).unflatten(0, (3, site.heads, site.dim))
    return Coordinates.summed(site, (v + proj.sum(0).unflatten(0, (site.heads, site.dim))) / 2, (q + k) / 2)
