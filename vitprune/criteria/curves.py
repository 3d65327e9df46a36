"""A site's order of removal, what each removal costs, and the scores that can be cut at any width."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Unit = Literal["nats per image", "squared stream units", "rank only"]


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """How a site loses its units one by one: `order` [N] int64, the first to go first, and in that order what each removal
    costs, `costs` [N] float64.

    `unit` is what costs are counted in; those of one unit compare across sites, "rank only" says that they do not add up
    to anything. A cost may be below the one before it: a removal may make the next one cheaper.
    """

    order: Tensor
    costs: Tensor
    unit: Unit = "rank only"

    @classmethod
    def ranked(cls, scores_N: Tensor) -> Curve:
        """The curve of scores that are no costs: the least goes first, and its score is taken for the cost."""
        costs, order = scores_N.double().sort(stable=True)
        return cls(order, costs)

    @property
    def scores(self) -> Tensor:
        """The score of every unit [N] float32, for ranking: the running maximum of the costs up to its removal, made
        strictly increasing by the least steps that float32 has, so that no order is lost where the maximum stands still."""
        rising = np.maximum.accumulate(self.costs.numpy()).astype(np.float32).clip(np.finfo(np.float32).tiny)
        steps = np.arange(len(rising))
        bits = rising.view(np.int32).astype(np.int64)  # of positive floats: in the order of the floats
        rising = (np.maximum.accumulate(bits - steps) + steps).astype(np.int32).view(np.float32)
        scores = torch.empty(len(rising))
        scores[self.order] = torch.from_numpy(rising)
        return scores

    def behind(self, gone: Tensor, cost: float) -> Curve:
        """The same curve among more units: `gone` [n] bool are removed before all others, each at `cost`; the units of this
        curve are those that are not gone, in their order."""
        left = (~gone).nonzero().flatten()
        before = gone.nonzero().flatten()
        costs = torch.cat([self.costs.new_full((len(before),), cost), self.costs])
        return Curve(torch.cat([before, left[self.order]]), costs, self.unit)
