"""Attention made small: the rotated, truncated weights of a curve's option, put into the model.

√(d'/d) goes into the queries, for the kernel divides by √d' now.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vitprune.criteria.statistics.attention_curve import AttentionCurve
from vitprune.model.sites import attention
from vitprune.model.sites.ffn import bias_of, linear


@dataclass(frozen=True, slots=True)
class Cut:
    """What an attention keeps: `heads` heads of `dim` dimensions, by its curve."""

    curve: AttentionCurve
    heads: int
    dim: int

    @property
    def whole(self) -> bool:
        """Whether nothing is removed."""
        return (self.heads, self.dim) == (self.curve.site.heads, self.curve.site.dim)

    def write(self, model: nn.Module) -> None:
        """Make the model's attention small, in place."""
        write(model, self.curve, self.heads, self.dim)

    def mask(self, model: nn.Module) -> None:
        """Let the model's attention compute, at its full size and in place, what the small one does."""
        mask(model, self.curve, self.heads, self.dim)


@torch.no_grad()
def mask(model: nn.Module, curve: AttentionCurve, heads: int, dim: int) -> None:
    """The attention with what (heads, dim) drops set to zero, in place: heads by their columns of `proj`, dimensions by
    projections of queries and values that keep the size."""
    site = curve.site
    if (heads, dim) == (site.heads, site.dim):
        return
    qkv, proj = linear(model, site.qkv), linear(model, site.proj)
    q, k, v = _per_head(qkv, site.heads).unbind(0)
    columns = proj.weight.double().unflatten(1, (site.heads, site.dim)).transpose(0, 1).contiguous()  # [H, D, d]
    kept = curve.values[heads - 1] if heads else None
    for h in range(site.heads):
        if kept is None or h not in kept.heads:
            columns[h] = 0
        elif dim < site.dim:
            at = kept.heads.index(h)
            q[h] = curve.keys[h, :dim].to(q).T @ curve.queries[h, :dim].to(q) @ q[h]
            left = torch.zeros(site.dim, dtype=torch.float64, device=v.device)
            left[kept.kept(dim)[at].to(v.device)] = 1
            v[h] = kept.behind[at].to(v) @ (left[:, None] * kept.front[at].to(v)) @ v[h]
    made = torch.stack([q, k, v]).flatten(0, 2)
    attention.put(
        model, site, site.heads, site.dim,
        (made[:, :-1], made[:, -1]), (columns.transpose(0, 1).flatten(1), bias_of(proj)),
    )  # fmt: skip


@torch.no_grad()
def write(model: nn.Module, curve: AttentionCurve, heads: int, dim: int) -> None:
    """Make the attention (heads, dim) in place; whole, it stays as it is to the bit. Without heads its block keeps the bias
    of `proj`."""
    site = curve.site
    if (heads, dim) == (site.heads, site.dim):
        return
    if not heads:
        parent, _, name = site.path.rpartition(".")
        setattr(model.get_submodule(parent), name, attention.NoAttention(bias_of(linear(model, site.proj)).clone()))
        return
    qkv, proj = linear(model, site.qkv), linear(model, site.proj)
    kept = curve.values[heads - 1]
    own = torch.tensor(kept.heads)
    q, k, v = (x[own] for x in _per_head(qkv, site.heads))
    columns = proj.weight.double().unflatten(1, (site.heads, site.dim)).transpose(0, 1)[own]  # [H', D, d]
    if dim < site.dim:
        at = q.device
        units = kept.kept(dim).to(at)[..., None]
        q = (dim / site.dim) ** 0.5 * curve.queries[own, :dim].to(at) @ q
        k = curve.keys[own, :dim].to(at) @ k
        v = (kept.front.to(at) @ v).take_along_dim(units, 1)
        columns = (columns @ kept.behind.to(at)).take_along_dim(units.mT, 2)
    made = torch.stack([q, k, v]).flatten(0, 2)
    attention.cut_gate(model, site, own)
    attention.put(
        model, site, heads, dim, (made[:, :-1], made[:, -1]), (columns.transpose(0, 1).flatten(1), bias_of(proj))
    )


def _per_head(qkv: nn.Linear, heads: int) -> Tensor:
    """[weight bias] of queries, keys and values per head, [3, H, d, D + 1], float64."""
    both = torch.cat([qkv.weight, bias_of(qkv)[:, None]], 1).double()
    return both.unflatten(0, (3, heads, -1))
