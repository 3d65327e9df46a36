"""The elimination of `elimination.py` on a device, in float64: the same delayed updates, and no step waits for an answer.

Which unit goes is known to the device alone until a block of removals is made at once; the order and the costs are read at
the end. On a processor the other file is the one in use, and to the tests this one's replica.
Legend: N units, D width, K delayed removals.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 64  # removals between two updates of the matrices


def eliminate(weight_DN: Tensor, covariance_NN: Tensor, ridge: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """The order [N] int64 and the costs [N] float64, on the processor."""
    work = _Elimination(weight_DN.to(device), covariance_NN.to(device), ridge)
    n = len(covariance_NN)
    for start in range(0, n, BLOCK):
        for _ in range(min(BLOCK, n - start)):
            work.remove()
        work.settle()
    return torch.cat(work.order).cpu(), torch.cat(work.costs).cpu()


class _Elimination:
    """Units of which the cheapest goes, one after the other; `alive` are the numbers of those that were left at the last
    update of the matrices."""

    def __init__(self, weight_DN: Tensor, covariance_NN: Tensor, ridge: float) -> None:
        covariance, self.weight = covariance_NN.double(), weight_DN.double().clone()
        strength = ridge * covariance.diagonal().mean().clamp_min(1e-30)
        self.inverse = torch.linalg.inv(covariance + strength * torch.eye(len(covariance)).to(covariance))
        if len(self.weight) > len(covariance):  # only its inner products count
            self.weight = torch.linalg.qr(self.weight, mode="r").R
        self.alive = torch.arange(len(covariance), device=covariance.device)
        self.order: list[Tensor] = []
        self.costs: list[Tensor] = []
        self._start()

    def _start(self) -> None:
        """Nothing is delayed."""
        n, new = len(self.alive), self.inverse.new_empty
        self.rows, self.scaled, self.columns = new(BLOCK, n), new(BLOCK, n), new(BLOCK, len(self.weight))
        self.delayed = 0
        self.gone = torch.zeros(n, dtype=torch.bool, device=self.alive.device)
        self.diagonal = self.inverse.diagonal().clone()
        self.norms = (self.weight * self.weight).sum(0)

    def remove(self) -> None:
        """Take out the cheapest unit; the others take over what they can."""
        k = self.delayed
        cost = (self.norms.clamp_min(0) / self.diagonal.clamp_min(1e-300)).masked_fill(self.gone, torch.inf)
        j = cost.argmin()[None]  # stays on the device, as an index of one
        self.order.append(self.alive.index_select(0, j))
        self.costs.append(cost.index_select(0, j))
        past = self.scaled[:k].index_select(1, j)[:, 0]
        row = self.inverse.index_select(0, j)[0] - past @ self.rows[:k]
        column = self.weight.index_select(1, j)[:, 0] - past @ self.columns[:k]
        products = column @ self.weight - (self.columns[:k] @ column) @ self.scaled[:k]
        scaled = row / row.index_select(0, j)
        self.norms += scaled * ((column @ column) * scaled - 2 * products)
        self.diagonal -= row * scaled
        self.rows[k], self.scaled[k], self.columns[k] = row, scaled, column
        self.gone.index_fill_(0, j, True)
        self.delayed += 1

    def settle(self) -> None:
        """Make the delayed updates, and drop what is gone."""
        k, left = self.delayed, (~self.gone).nonzero()[:, 0]
        rows, scaled = self.rows[:k].index_select(1, left), self.scaled[:k].index_select(1, left)
        self.inverse = self.inverse.index_select(0, left).index_select(1, left) - rows.T @ scaled
        self.weight = self.weight.index_select(1, left) - self.columns[:k].T @ scaled
        self.alive = self.alive.index_select(0, left)
        self._start()
