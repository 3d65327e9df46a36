"""Units eliminated one by one (optimal brain surgeon, Schur updates), the updates in blocks.

A removal is a rank-1 update of the inverse covariance and of the weights. Updates are delayed: what a removal needs (a row
of the inverse, a column of the weights, every unit's cost) is worked out from what was kept, and after `BLOCK` removals
all are made in one matrix product. The order is that of updates made at once, at a fraction of the memory traffic.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vitprune.core import least_squares
from vitprune.core.device import wide
from vitprune.criteria.statistics import elimination_on_device

BLOCK = 64  # removals between two updates of the matrices


class Elimination:
    """Units of which one after the other goes; `costs` [n] of those that are `alive` [n] (their numbers)."""

    def __init__(self, weight_DN: Tensor, covariance_NN: Tensor, ridge: float = least_squares.RIDGE) -> None:
        n = len(covariance_NN)
        strength = ridge * covariance_NN.diagonal().mean().clamp_min(1e-30)
        self.inverse = torch.linalg.inv(covariance_NN.double() + strength * torch.eye(n, dtype=torch.float64)).numpy()
        self.weight = weight_DN.double().numpy().copy()
        if len(self.weight) > n:  # only its inner products count
            self.weight = np.linalg.qr(self.weight).R
        self.alive = np.arange(n)
        self._start()

    def _start(self) -> None:
        """Nothing is delayed."""
        n = len(self.alive)
        self.gone = np.zeros(n, bool)
        self.rows, self.scaled = np.empty((BLOCK, n)), np.empty((BLOCK, n))
        self.columns = np.empty((BLOCK, len(self.weight)))
        self.delayed = 0
        self.diagonal = np.diagonal(self.inverse).copy()
        self.norms = np.einsum("dn,dn->n", self.weight, self.weight)

    @property
    def costs(self) -> np.ndarray:
        """What the removal of each unit costs; infinite for one that is gone."""
        cost = np.maximum(self.norms, 0) / np.maximum(self.diagonal, 1e-300)
        cost[self.gone] = np.inf
        return cost

    def remove(self, j: int) -> None:
        """Take the unit at place `j` of `alive` out; the others take over what they can."""
        k = self.delayed
        past = self.scaled[:k, j]
        row = self.inverse[j] - past @ self.rows[:k]
        column = self.weight[:, j] - past @ self.columns[:k]
        products = column @ self.weight - (self.columns[:k] @ column) @ self.scaled[:k]
        scaled = row / row[j]
        self.norms += scaled * ((column @ column) * scaled - 2 * products)
        self.diagonal -= row * scaled
        self.rows[k], self.scaled[k], self.columns[k], self.gone[j] = row, scaled, column, True
        self.delayed += 1
        if self.delayed == BLOCK:
            self.settle()

    def settle(self) -> None:
        """Make the delayed updates, and drop what is gone."""
        k, left = self.delayed, ~self.gone
        rows, scaled = self.rows[:k, left], self.scaled[:k, left]
        self.inverse = np.ascontiguousarray(self.inverse[left][:, left]) - rows.T @ scaled
        self.weight = np.ascontiguousarray(self.weight[:, left]) - self.columns[:k].T @ scaled
        self.alive = self.alive[left]
        self._start()


def eliminate(
    weight_DN: Tensor, covariance_NN: Tensor, ridge: float = least_squares.RIDGE, device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """The greedy order: units [N] int64, first removed first, and what each removal costs [N] float64, in that order.

    `device`: where the model computes; it is worked out there, if that is no processor and knows float64.
    """
    own = wide(device or torch.device("cpu"))
    if own.type != "cpu":
        return elimination_on_device.eliminate(weight_DN, covariance_NN, ridge, own)
    work, n = Elimination(weight_DN, covariance_NN, ridge), len(covariance_NN)
    order, costs = np.empty(n, np.int64), np.empty(n)
    for k in range(n):
        cost = work.costs
        j = int(cost.argmin())
        order[k], costs[k] = work.alive[j], cost[j]
        work.remove(j)
    return torch.from_numpy(order), torch.from_numpy(costs)


def eliminate_in_groups(
    weight_DN: Tensor, covariance_NN: Tensor, groups: int, ridge: float = least_squares.RIDGE
) -> tuple[Tensor, Tensor]:
    """The order in which `groups` equal runs of units lose one unit each a round, its cheapest: [groups, n] int64 places
    in the run, first removed first, and what each round costs [n] float64."""
    work, n = Elimination(weight_DN, covariance_NN, ridge), len(covariance_NN) // groups
    order, costs = np.empty((groups, n), np.int64), np.zeros(n)
    for k in range(n):
        for group in range(groups):
            cost = np.where(work.alive // n == group, work.costs, np.inf)
            j = int(cost.argmin())
            order[group, k] = work.alive[j] % n
            costs[k] += cost[j]
            work.remove(j)
    return torch.from_numpy(order), torch.from_numpy(costs)
