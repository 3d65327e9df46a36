"""What every size of an attention costs the prediction, in nats per image, and the rotations that make it that small.

1. Whole heads, greedily: the head with the least tr(W̃_h ([C⁻¹]_hh)⁻¹ W̃_hᵀ) goes, the others take over (block OBS).
2. For each number of heads kept: their values are rotated, then each round takes one dimension of every head (OBS).
3. Queries and keys of rank r: measured, see `ranks`. Costs of 1 and 2 and those of 3, by the share of heads kept, add up.

W̃ = G^½ Wo; a cost is ½·T times the squared error, as in `fisher_obs`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vitprune.core.least_squares import RIDGE
from vitprune.criteria.statistics import rotation
from vitprune.criteria.statistics.attention import AttentionMoments
from vitprune.criteria.statistics.elimination import eliminate_in_groups
from vitprune.criteria.statistics.fisher_obs import root
from vitprune.model.sites.attention import AttentionSite


@dataclass(frozen=True, slots=True)
class Values:
    """The values of `heads` kept heads (their numbers, ascending): the rotation in front [H', d, d] and its inverse behind,
    the order [H', d] in which the rotated dimensions go, and what is lost when r of each are left, r = 0 … d [d + 1]."""

    heads: tuple[int, ...]
    front: Tensor
    behind: Tensor
    order: Tensor
    costs: Tensor

    def kept(self, dim: int) -> Tensor:
        """The rotated dimensions that are left [H', d'], ascending."""
        return self.order[:, self.order.shape[1] - dim :].sort(1).values


@dataclass(frozen=True, slots=True)
class AttentionCurve:
    """`without[h]`: nats without the heads that are gone when h are kept, h = 0 … H. `values[h - 1]`: those of h heads.
    `queries`, `keys` [H, d, d], strongest first; `ranks`: nats at rank r in every head, r = 0 … d [d + 1]."""

    site: AttentionSite
    without: Tensor
    values: tuple[Values, ...]
    queries: Tensor
    keys: Tensor
    ranks: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """What `from_tensors` makes the curve of again, by name."""
        made = {name: getattr(self, name) for name in _OWN}
        for h, kept in enumerate(self.values, 1):
            made |= {f"{h}.heads": torch.tensor(kept.heads)}
            made |= {f"{h}.{name}": getattr(kept, name) for name in _OF_VALUES}
        return {name: value.contiguous() for name, value in made.items()}

    @classmethod
    def from_tensors(cls, site: AttentionSite, found: Mapping[str, Tensor]) -> AttentionCurve:
        """The curve that `tensors` was of; a KeyError where some are missing."""
        values = tuple(
            Values(tuple(found[f"{h}.heads"].tolist()), *(found[f"{h}.{name}"] for name in _OF_VALUES))
            for h in range(1, site.heads + 1)
        )
        own = {name: found[name] for name in _OWN}
        return cls(site, own["without"], values, own["queries"], own["keys"], own["ranks"])

    def cost(self, heads: int, dim: int, queries: int | None = None) -> float:
        """Nats per image that (heads, dim) costs; `queries`: dimensions of queries and keys, where not as many."""
        if not heads:
            return float(self.without[0])
        site = self.site
        share, asked = heads / site.heads, site.asking(dim, queries) if site.query_keys else site.dim
        return float(self.without[heads] + self.values[heads - 1].costs[dim] + share * self.ranks[asked])

    def table(self, free: bool = False) -> dict[tuple[int, ...], float]:
        """The cost of every (H', d') that the site may have; without heads there is but (0, 0). `free`: of every (H', d', r)
        too, with r dimensions of queries and keys, where these can go."""
        site = self.site
        every: list[tuple[int, ...]] = [(h, d) for h in site.counts for d in site.dims]
        if free and site.query_keys:
            every += [(h, d, r) for h in site.counts for d in site.dims for r in site.dims if r != d]
        return {(0, 0): self.cost(0, 0)} | {kept: self.cost(*kept) for kept in every}


_OWN = ("without", "queries", "keys", "ranks")
_OF_VALUES = ("front", "behind", "order", "costs")


def curve(site: AttentionSite, weight_DN: Tensor, moments: AttentionMoments, ranks: Tensor | None) -> AttentionCurve:
    """The curve of one attention; `weight_DN` is proj's. `ranks` None: queries and keys stay whole."""
    scale = 0.5 * moments.tokens
    sides = rotation.of_queries_and_keys(moments.queries, moments.keys)
    order, costs = heads_in_order(root(moments.fisher) @ weight_DN, moments.covariance, site.heads)
    without = torch.cat([costs.cumsum(0).flip(0), costs.new_zeros(1)])
    values = []
    for kept in range(1, site.heads + 1):
        heads = sorted(order[site.heads - kept :])
        values.append(_values(site, heads, root(moments.fisher) @ weight_DN, moments.covariance, scale))
    ranks = torch.zeros(site.dim + 1, dtype=torch.float64) if ranks is None else ranks
    return AttentionCurve(site, scale * without, tuple(values), sides[0], sides[1], ranks)


def heads_in_order(weight_DN: Tensor, covariance_NN: Tensor, heads: int) -> tuple[list[int], Tensor]:
    """Heads in the order in which they go, and the squared error that each adds [H]."""
    d, n = len(covariance_NN) // heads, len(covariance_NN)
    strength = RIDGE * covariance_NN.diagonal().mean().clamp_min(1e-30)
    inverse = torch.linalg.inv(covariance_NN + strength * torch.eye(n, dtype=torch.float64))
    weight, left, order, costs = weight_DN.clone(), list(range(heads)), [], []
    while left:
        blocks = {h: torch.linalg.inv(inverse[_of(h, d), _of(h, d)]) for h in left}
        cost = {h: float(((weight[:, _of(h, d)] @ blocks[h]) * weight[:, _of(h, d)]).sum()) for h in left}
        gone = min(left, key=lambda h: (cost[h], h))
        taken = blocks[gone] @ inverse[_of(gone, d)]
        weight = weight - weight[:, _of(gone, d)] @ taken
        inverse = inverse - inverse[:, _of(gone, d)] @ taken
        left.remove(gone)
        order.append(gone)
        costs.append(max(cost[gone], 0.0))
    return order, torch.tensor(costs, dtype=torch.float64)


def takeover(weight_DN: Tensor, covariance_NN: Tensor, kept: Tensor) -> Tensor:
    """The columns `kept` [k] of the weight when they have taken over what they can from the others, [D, k]."""
    own = covariance_NN[kept][:, kept]
    strength = RIDGE * covariance_NN.diagonal().mean().clamp_min(1e-30)
    return torch.linalg.solve(
        own + strength * torch.eye(len(kept), dtype=own.dtype), covariance_NN[kept] @ weight_DN.T
    ).T


def _values(site: AttentionSite, heads: list[int], weight_DN: Tensor, covariance_NN: Tensor, scale: float) -> Values:
    units = torch.cat([torch.arange(h * site.dim, (h + 1) * site.dim) for h in heads])
    covariance = covariance_NN[units][:, units]
    weight = weight_DN if len(heads) == site.heads else takeover(weight_DN, covariance_NN, units)
    front, behind = rotation.of_values(weight, covariance, len(heads))
    into, out_of = torch.block_diag(*front), torch.block_diag(*behind)
    order, costs = eliminate_in_groups(weight @ out_of, into @ covariance @ into.T, len(heads))
    total = torch.cat([costs.new_zeros(1), costs.clamp_min(0).cumsum(0)]).flip(0)
    return Values(tuple(heads), front, behind, order, scale * total)


def _of(head: int, d: int) -> slice:
    return slice(head * d, (head + 1) * d)
