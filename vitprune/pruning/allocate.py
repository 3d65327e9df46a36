"""Widths per block under a budget, by dynamic programming on what the removals cost; plain arithmetic on tables.

A block's error at width k is the sum of what the removals up to there cost, as its curve has them; its price at width k is
units, parameters, multiply-adds or measured seconds. Least total error within the budget, exactly, up to the grid of the
prices.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vitprune.core.errors import UserError

GRID = 4096  # steps of the budget where prices have no common measure


def options(width: int, round_to: int | None, floor: int) -> np.ndarray:
    """The widths a block may get: multiples of `round_to` (1 if None) from `floor` up, and the whole block."""
    step = round_to or 1
    low = min(width, -(-max(floor, 1) // step) * step)
    return np.unique(np.append(np.arange(low, width + 1, step), width))


def errors(costs: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """Sum of the costs of the removals at every width; `costs` [N] in the order of removal."""
    removed = np.concatenate([[0.0], np.cumsum(costs)])
    return removed[len(costs) - widths]


def widths(costs: Sequence[np.ndarray], prices: Sequence[np.ndarray], choices: Sequence[np.ndarray], budget: float
           ) -> list[int]:  # fmt: skip
    """The width of each block with the least total error and a total price of at most `budget`.

    Per block: `costs` of the removals in their order; the widths that are admissible, `choices`, and their `prices`. Raises
    UserError when even the least does not fit.
    """
    if sum(float(p[0]) for p in prices) > budget * (1 + 1e-9):
        raise UserError("allocation `budgeted`: the floor of the blocks alone is above the budget; raise keep")
    atom = _measure(prices, budget)
    room = int(budget / atom + 1e-6)
    best = np.full(room + 1, np.inf)
    best[0] = 0.0
    taken: list[np.ndarray] = []
    for cost_N, price, choice in zip(costs, prices, choices, strict=True):
        cost = np.ceil(price / atom - 1e-6).astype(np.int64)
        new, pick = np.full(room + 1, np.inf), np.zeros(room + 1, np.int64)
        for option, (step, error) in enumerate(zip(cost, errors(cost_N, choice), strict=True)):
            if step > room:
                continue
            moved = np.full(room + 1, np.inf)
            moved[step:] = best[: room + 1 - step] + error
            better = moved < new
            new, pick = np.where(better, moved, new), np.where(better, option, pick)
        best = new
        taken.append(np.where(np.isfinite(new), pick, -1))
    at, found = int(np.argmin(best)), []
    if not np.isfinite(best[at]):
        raise UserError("allocation `budgeted`: no widths fit the budget; raise keep or lower round_to")
    for price, choice, pick in zip(reversed(prices), reversed(choices), reversed(taken), strict=True):
        option = int(pick[at])
        found.append(int(choice[option]))
        at -= int(np.ceil(price[option] / atom - 1e-6))
    return found[::-1]


def _measure(prices: Sequence[np.ndarray], budget: float) -> float:
    """The largest grid step that all prices are multiples of, or a 4096th of the budget."""
    every = np.unique(np.concatenate(prices))
    atom = float(every[0])
    gaps = np.diff(every)
    if len(gaps):
        atom = min(atom, float(gaps.min()))
    exact = atom > 0 and np.allclose(every / atom, np.round(every / atom), atol=1e-6)
    return atom if exact and budget / atom <= 64 * GRID else budget / GRID
