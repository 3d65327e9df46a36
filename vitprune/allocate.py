"""Widths per block under a budget, by dynamic programming on what the removals cost; plain arithmetic on tables.

A block's error at width k is the sum of the costs of the units that are then gone (the cheapest first); its price at
width k is units, parameters, multiply-adds or measured seconds. Least total error within the budget, exactly, up to the
grid of the prices.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from vitprune import ffn, models
from vitprune.errors import UserError
from vitprune.types import FfnSite

Price = Literal["parameters", "flops", "latency"]
GRID = 4096  # steps of the budget where prices have no common measure
ROWS, REPEATS = 512, 7


def options(width: int, round_to: int | None, floor: int) -> np.ndarray:
    """The widths a block may get: multiples of `round_to` (1 if None) from `floor` up, and the whole block."""
    step = round_to or 1
    low = min(width, -(-max(floor, 1) // step) * step)
    return np.unique(np.append(np.arange(low, width + 1, step), width))


def errors(scores: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """Sum of the costs of the removed units at every width; `scores` [N] are the units' costs."""
    removed = np.concatenate([[0.0], np.cumsum(np.sort(scores))])
    return removed[len(scores) - widths]


def widths(scores: Sequence[np.ndarray], prices: Sequence[np.ndarray], choices: Sequence[np.ndarray], budget: float
           ) -> list[int]:  # fmt: skip
    """The width of each block with the least total error and a total price of at most `budget`.

    `prices` and `choices` per block: what each admissible width costs. Raises UserError when even the least does not fit.
    """
    if sum(float(p[0]) for p in prices) > budget * (1 + 1e-9):
        raise UserError("allocation `budgeted`: the floor of the blocks alone is above the budget; raise keep")
    atom = _measure(prices, budget)
    room = int(budget / atom + 1e-6)
    best = np.full(room + 1, np.inf)
    best[0] = 0.0
    taken: list[np.ndarray] = []
    for score, price, choice in zip(scores, prices, choices, strict=True):
        cost = np.ceil(price / atom - 1e-6).astype(np.int64)
        new, pick = np.full(room + 1, np.inf), np.zeros(room + 1, np.int64)
        for option, (step, error) in enumerate(zip(cost, errors(score, choice), strict=True)):
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


def price(model: nn.Module, site: FfnSite, choice: np.ndarray, of: Price) -> np.ndarray:
    """What one FFN of each width costs: parameters, multiply-adds per token, or seconds measured on the model's device."""
    if of == "latency":
        return _seconds(model, site, choice)
    products, parameters = ffn.cost_per_unit(model, site)
    return choice.astype(float) * (parameters if of == "parameters" else products)


@torch.inference_mode()
def _seconds(model: nn.Module, site: FfnSite, choice: np.ndarray) -> np.ndarray:
    """Median seconds of an FFN of each width on 512 tokens, without its norm, never falling from one width to the next."""
    device, act = models.device_of(model), model.get_submodule(site.act)
    depth, made = ffn.linear(model, site.fc1).in_features, site.parts + (site.gate is not None)
    rows = torch.randn(ROWS, depth, device=device)
    layers = [(nn.Linear(depth, made * int(k), device=device), nn.Linear(int(k), depth, device=device)) for k in choice]
    times = np.empty((REPEATS, len(layers)))
    for repeat in range(-1, REPEATS):  # the first round warms up; widths take turns, so that drift cancels
        for column, (first, second) in enumerate(layers):
            started = time.perf_counter()
            hidden, *gate = first(rows).chunk(made, -1)
            out: Tensor = second(act(hidden) * gate[0] if gate else act(hidden))
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            assert out.shape == rows.shape
            if repeat >= 0:
                times[repeat, column] = time.perf_counter() - started
    return np.maximum.accumulate(np.median(times, 0))
