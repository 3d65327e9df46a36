"""What delaying the updates of `obs` saves: seconds of an elimination in blocks against one that updates at once.

    python benchmarks/elimination.py [--units 3072] [--width 768]

Random weights and a random covariance, float64, one elimination each. `same_order` says that both took the units in one
order. The last line is one JSON object; `ratio` is at once over delayed.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
import torch
from torch import Tensor

from vitprune.core.least_squares import RIDGE
from vitprune.criteria.statistics.elimination import eliminate

COMPACT = 64  # removals between two compactions of the matrices


def at_once(weight_DN: Tensor, covariance_NN: Tensor) -> np.ndarray:
    """The order of removal [N], the inverse and the weights updated after each."""
    n = len(covariance_NN)
    strength = RIDGE * covariance_NN.diagonal().mean()
    inverse = torch.linalg.inv(covariance_NN + strength * torch.eye(n, dtype=torch.float64)).numpy()
    weight, alive, order = weight_DN.numpy().copy(), np.arange(n), np.empty(n, np.int64)
    gone = np.zeros(n, bool)
    for k in range(n):
        if k and k % COMPACT == 0:  # what is gone is only carried along
            alive, weight = alive[~gone], np.ascontiguousarray(weight[:, ~gone])
            inverse = np.ascontiguousarray(inverse[~gone][:, ~gone])
            gone = np.zeros(len(alive), bool)
        cost = np.einsum("dn,dn->n", weight, weight) / np.maximum(np.diagonal(inverse), 1e-300)
        j = int(np.where(gone, np.inf, cost).argmin())
        order[k], gone[j] = alive[j], True
        row, column = inverse[j].copy(), weight[:, j].copy()
        scaled = row / row[j]
        weight -= np.outer(column, scaled)
        inverse -= np.outer(row, scaled)
    return order


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--units", type=int, default=3072)
    parser.add_argument("--width", type=int, default=768)
    asked = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(2 * asked.units, asked.units, generator=generator, dtype=torch.float64)
    covariance = (rows * torch.linspace(0.1, 2, asked.units, dtype=torch.float64)).T.cov()
    weight = torch.randn(asked.width, asked.units, generator=generator, dtype=torch.float64)
    start = time.perf_counter()
    order, _ = eliminate(weight, covariance)
    delayed = time.perf_counter() - start
    start = time.perf_counter()
    same = np.array_equal(order.numpy(), at_once(weight, covariance))
    slow = time.perf_counter() - start
    made = {"units": asked.units, "width": asked.width, "threads": torch.get_num_threads(), "same_order": same}
    print(
        json.dumps(
            made | {"delayed_s": round(delayed, 2), "at_once_s": round(slow, 2), "ratio": round(slow / delayed, 2)}
        )
    )


if __name__ == "__main__":
    main()
