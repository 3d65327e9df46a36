"""Heads and dimensions chosen among those that an attention has, by scores: nothing is rotated.

A head has a score, each of its values' dimensions has one (the row of `qkv` goes with the column of `proj`), and each pair of
a query's and a key's dimension. The least go first; of equal ones the later.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vitprune.criteria.statistics.attention_curve import AttentionCurve, Values
from vitprune.model.sites.attention import AttentionSite


@dataclass(frozen=True, slots=True)
class Coordinates:
    """Scores of one attention, float64: of its `heads` [H], of its `values`' dimensions [H, d], of the `pairs` of its queries'
    and keys' dimensions [H, d]; larger is kept first."""

    site: AttentionSite
    heads: Tensor
    values: Tensor
    pairs: Tensor

    @classmethod
    def summed(cls, site: AttentionSite, values: Tensor, pairs: Tensor) -> Coordinates:
        """A head's score is the sum of its dimensions'; pairs that cannot go alone count for it too."""
        if site.query_keys:
            return cls(site, (values + pairs).sum(1), values, pairs)
        return cls(site, values.sum(1) + pairs.sum(1), values, torch.zeros_like(pairs))

    def tensors(self) -> dict[str, Tensor]:
        """What `from_tensors` makes it of again, by name."""
        return {"heads": self.heads, "values": self.values, "pairs": self.pairs}

    @classmethod
    def from_tensors(cls, site: AttentionSite, found: Mapping[str, Tensor]) -> Coordinates:
        """What `tensors` was of; a KeyError where some are missing."""
        return cls(site, found["heads"], found["values"], found["pairs"])

    @property
    def curve(self) -> AttentionCurve:
        """The curve whose rotations are permutations. Its costs are the scores of what is gone: they say which is more of one
        attention, and compare with nothing else."""
        site, best = self.site, _first_kept(self.heads)
        without = torch.cat([self.heads[best], self.heads.new_zeros(1)])
        without = without.flip(0).cumsum(0).flip(0)
        order, whole = _first_kept(self.values).flip(1), torch.eye(site.dim, dtype=torch.float64)
        values = []
        for count in range(1, site.heads + 1):
            own = best[:count].sort().values
            gone = self.values[own].take_along_dim(order[own], 1).sum(0).cumsum(0)
            costs = torch.cat([gone.new_zeros(1), gone]).flip(0)
            same = whole.expand(count, -1, -1)
            values.append(Values(tuple(own.tolist()), same, same, order[own], costs))
        if not site.query_keys:
            same = torch.eye(site.asking(site.dim), dtype=torch.float64).expand(site.heads, -1, -1)
            return AttentionCurve(site, without, tuple(values), same, same, self.values.new_zeros(site.dim + 1))
        kept = _first_kept(self.pairs)
        lost = self.pairs.take_along_dim(kept.flip(1), 1).sum(0).cumsum(0)
        ranks = torch.cat([lost.new_zeros(1), lost]).flip(0)
        return AttentionCurve(site, without, tuple(values), whole[kept], whole[kept], ranks)


def _first_kept(scores: Tensor) -> Tensor:
    """Places in the order in which they are kept, along the last dimension."""
    return scores.sort(dim=-1, descending=True, stable=True).indices
