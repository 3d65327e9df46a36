"""Attention made small: the rotated, truncated weights of a curve's option, put into the model.

√(d'/d) goes into the queries, for the kernel divides by √d' now.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vitprune.core.device import widened
from vitprune.criteria.statistics.attention_curve import AttentionCurve
from vitprune.model.sites import attention
from vitprune.model.sites import attention_layers as layers
from vitprune.model.sites.ffn import bias_of, norm_of, norm_over


@dataclass(frozen=True, slots=True)
class Cut:
    """What an attention keeps: `heads` heads of `dim` dimensions, by its curve; `queries` of queries and keys, where these are
    not as many."""

    curve: AttentionCurve
    heads: int
    dim: int
    queries: int | None = None

    @property
    def whole(self) -> bool:
        """Whether nothing is removed."""
        site = self.curve.site
        return site.state(self.heads, self.dim, self.queries) == site.state(site.heads, site.dim)

    @property
    def sizes(self) -> list[int]:
        """Everything beside the curve."""
        return [self.heads, self.dim, *([] if self.queries is None else [self.queries])]

    def write(self, model: nn.Module) -> None:
        """Make the model's attention small, in place."""
        write(model, self.curve, self.heads, self.dim, self.queries)

    def mask(self, model: nn.Module) -> None:
        """Let the model's attention compute, at its full size and in place, what the small one does."""
        mask(model, self.curve, self.heads, self.dim, self.queries)


@torch.no_grad()
def mask(model: nn.Module, curve: AttentionCurve, heads: int, dim: int, queries: int | None = None) -> None:
    """The attention with what (heads, dim) drops set to zero, in place: heads by their columns of `proj`, dimensions by
    projections of queries and values that keep the size. A norm behind the heads is taken over those that are kept."""
    site = curve.site
    if Cut(curve, heads, dim, queries).whole:
        return
    attn: Any = model.get_submodule(site.path)
    q, k, v = _per_head(attn)
    columns = _columns(attn.proj, site.heads).contiguous()  # [H, D, d]
    kept = curve.values[heads - 1] if heads else None
    asked = site.asking(dim, queries)
    for h in range(site.heads):
        if kept is None or h not in kept.heads:
            columns[h] = 0
            continue
        at = kept.heads.index(h)
        if asked < site.asking(site.dim):
            q[h] = curve.keys[h, :asked].to(q).T @ curve.queries[h, :asked].to(q) @ q[h]
        if dim < site.dim:
            left = torch.zeros(site.dim, dtype=torch.float64, device=v.device)
            left[kept.kept(dim)[at].to(v.device)] = 1
            v[h] = kept.behind[at].to(v) @ (left[:, None] * kept.front[at].to(v)) @ v[h]
    layers.put_rows(attn, torch.cat([part.flatten(0, 1) for part in (q, k, v)]))
    attn.proj.weight.copy_(columns.transpose(0, 1).flatten(1))
    if kept is not None and not layers.idle(attn, "norm"):
        units = (torch.tensor(kept.heads)[:, None] * site.dim + torch.arange(site.dim)).flatten()
        attn.norm = _NormOver(attn.norm, units.to(attn.proj.weight.device))


class _NormOver(nn.Module):
    """A norm over some of what it is given, the others zero."""

    def __init__(self, norm: nn.Module, units: Tensor) -> None:
        super().__init__()
        self.small, self.units = norm_of(norm, units), units

    def forward(self, x: Tensor) -> Tensor:
        return norm_over(self.small, self.units, x)


@torch.no_grad()
def write(model: nn.Module, curve: AttentionCurve, heads: int, dim: int, queries: int | None = None) -> None:
    """Make the attention (heads, dim) in place; whole, it stays as it is to the bit. Without heads its block keeps the bias
    of `proj`."""
    site = curve.site
    if Cut(curve, heads, dim, queries).whole:
        return
    if not heads:
        attention.without(model, site)
        return
    attn: Any = model.get_submodule(site.path)
    kept, asked = curve.values[heads - 1], site.asking(dim, queries)
    own = torch.tensor(kept.heads)
    q, k, v = (x[own] for x in _per_head(attn))
    columns, at = _columns(attn.proj, site.heads)[own], q.device  # [H', D, d]
    if asked < site.asking(site.dim):
        q = (asked / site.asking(site.dim)) ** 0.5 * curve.queries[own, :asked].to(at) @ q
        k = curve.keys[own, :asked].to(at) @ k
    if dim < site.dim:
        units = kept.kept(dim).to(at)[..., None]
        v = (kept.front.to(at) @ v).take_along_dim(units, 1)
        columns = (columns @ kept.behind.to(at)).take_along_dim(units.mT, 2)
    if not attention.fits(attn, asked, dim):
        attention.put_own(model, site, own, (q, k, v), columns, bias_of(attn.proj))
        return
    made = torch.stack([q, k, v]).flatten(0, 2)
    attention.cut_rows(model, site, own)
    attention.put(
        model, site, heads, dim, (made[:, :-1], made[:, -1]), (columns.transpose(0, 1).flatten(1), bias_of(attn.proj))
    )


def _per_head(attn: nn.Module) -> list[Tensor]:
    """[weight bias] of queries, keys and values per head, [H, d, D + 1] each, float64."""
    heads, asked, dim = layers.shape(attn)
    parts = widened(layers.rows(attn)).split([heads * asked, heads * asked, heads * dim])
    return [part.unflatten(0, (heads, -1)) for part in parts]


def _columns(proj: nn.Linear, heads: int) -> Tensor:
    """proj's columns per head [H, D, d], float64."""
    return widened(proj.weight).unflatten(1, (heads, -1)).transpose(0, 1)
