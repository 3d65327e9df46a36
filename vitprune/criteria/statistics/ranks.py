"""What queries and keys of lower rank cost the prediction, measured: attention is run with logits of rank r in all heads.

    R(r) = ½·T·tr(G · covariance of what is left of Wo·a after the best linear fit from a')

with a' what the heads give at rank r. The fit has a ridge, and its error is set right by the freedom it had.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitprune.core.least_squares import RIDGE
from vitprune.criteria.statistics import rotation
from vitprune.criteria.statistics.attention import AttentionMoments, split_heads
from vitprune.criteria.statistics.fisher_obs import root
from vitprune.model import families
from vitprune.model.inside import hooks
from vitprune.model.sites import attention_layers as layers
from vitprune.model.sites.attention import AttentionSite
from vitprune.model.sites.ffn import linear
from vitprune.model.tokens import tokens_read

IMAGES = 256  # that a block is measured on
ROWS = 8  # rows per dimension of the heads together, that many images at least


class _Fit:
    """Sums of [a' a] and their products."""

    def __init__(self, n: int) -> None:
        self.gram = torch.zeros(2 * n + 1, 2 * n + 1, dtype=torch.float64)
        self.n = n

    def add(self, lower: Tensor, whole: Tensor) -> None:
        rows = torch.cat(
            [lower.flatten(0, 1), whole.flatten(0, 1), lower.new_ones(lower.shape[:2]).flatten()[:, None]], 1
        )
        self.gram += (rows.T @ rows).double().cpu()

    def left(self, weight_DN: Tensor) -> float:
        """The squared error of `weight`·a after the fit, per row."""
        n, rows = self.n, self.gram[-1, -1]
        mean = self.gram[-1, :-1] / rows
        covariance = self.gram[:-1, :-1] / rows - mean[:, None] * mean
        own, cross, whole = (
            covariance[:n, :n],
            covariance[:n, n:] @ weight_DN.T,
            weight_DN @ covariance[n:, n:] @ weight_DN.T,
        )
        strength = RIDGE * own.diagonal().mean().clamp_min(1e-30)
        values, vectors = torch.linalg.eigh(own)
        values = values.clamp_min(0)
        seen = (vectors.T @ cross).square().sum(1)
        caught = (seen * (values + 2 * strength) / (values + strength) ** 2).sum()
        freedom = float((values / (values + strength)).sum())
        return max(float(whole.trace() - caught), 0.0) / max(1 - freedom / float(rows), 0.1)


@torch.no_grad()
def ranks(
    model: nn.Module, sites: Sequence[AttentionSite], moments: Sequence[AttentionMoments], batches: Iterable[Tensor]
) -> list[Tensor]:
    """Per attention, nats at rank r in every head, r = 0 … d [d + 1]: measured at the ranks that the site may have, and
    by a line between them. `batches` of images are read until there are enough."""
    images: list[Tensor] = []
    need = max(IMAGES, *(-(-ROWS * site.heads * site.dim // m.read) for site, m in zip(sites, moments, strict=True)))
    for batch in batches:
        images.append(batch)
        if sum(map(len, images)) >= need:
            break
    return [_of_one(model, site, m, images) for site, m in zip(sites, moments, strict=True)]


def _of_one(model: nn.Module, site: AttentionSite, moments: AttentionMoments, images: Sequence[Tensor]) -> Tensor:
    width, measured = site.heads * site.dim, site.dims[:-1]
    if not site.query_keys or not measured:
        return torch.zeros(site.dim + 1, dtype=torch.float64)
    last = site.block == families.ffn_sites(model)[-1].block
    read = tokens_read(model) if last else slice(None)
    asked, told, _ = rotation.of_queries_and_keys(moments.queries, moments.keys)
    fits = {r: _Fit(width) for r in (0, *measured)}
    bias = layers.bias_of_positions(model.get_submodule(site.path))
    bias = bias[:, read] if bias is not None and last else bias
    enough, done = max(IMAGES, -(-ROWS * width // moments.read)), 0
    for batch in images:
        if done >= enough:
            break
        done += len(batch)
        q, k, v = split_heads(site, _qkv(model, site, batch))
        q = q[:, :, read]
        whole = _mixed(q @ k.mT, site, v, bias)
        q, k = q @ asked.to(q).mT[None], k @ told.to(k).mT[None]
        for r, fit in fits.items():
            fit.add(_mixed(q[..., :r] @ k[..., :r].mT, site, v, bias), whole)
    weight = root(moments.fisher) @ linear(model, site.proj).weight.double().cpu()
    found = [0.5 * moments.tokens * fits[r].left(weight) for r in fits]
    rising = np.maximum.accumulate([0.0, *reversed(found)])[::-1]
    return torch.from_numpy(np.interp(np.arange(site.dim + 1), [*fits, site.dim], rising))


def _qkv(model: nn.Module, site: AttentionSite, images: Tensor) -> Tensor:
    """Queries, keys and values of the images [B, T, 3·H·d]."""
    attn = model.get_submodule(site.path)
    if layers.calls_qkv(attn):
        qkv = linear(model, site.qkv)
        return qkv(hooks.input_of(qkv, partial(model, images)))
    rows = layers.rows(attn)
    return F.linear(hooks.input_of(attn, partial(model, images)), rows[:, :-1], rows[:, -1])


def _mixed(logits_BHTT: Tensor, site: AttentionSite, v_BHTd: Tensor, bias_HTT: Tensor | None = None) -> Tensor:
    """What the heads give together, [B, T, H·d]."""
    scaled = logits_BHTT * site.dim**-0.5
    scaled = scaled if bias_HTT is None else scaled + bias_HTT
    return (scaled.softmax(-1) @ v_BHTd).transpose(1, 2).flatten(2)
