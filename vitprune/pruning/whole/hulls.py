"""The least total cost of all sites within a budget: one option each.

Each site has options with a cost (nats) and a price (multiply-adds, parameters, seconds). The least total cost within the
budget is sought on the lower hull of each site's options: the step that saves the most cost per price is bought next,
as long as it fits; what is then left over buys any options that still fit. The budget is never exceeded.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vitprune.core.errors import UserError


@dataclass(frozen=True, slots=True)
class Options:
    """One site's: sizes (whatever says them), cost and price of each [n]."""

    sizes: Sequence[Any]
    costs: np.ndarray
    prices: np.ndarray


def allocate(sites: Sequence[Options], budget: float) -> list[int]:
    """Per site the place of the option it gets. Raises UserError where the cheapest of all are above the budget."""
    hulls = [hull(site) for site in sites]
    at = [0] * len(sites)
    room = budget - sum(float(site.prices[h[0]]) for site, h in zip(sites, hulls, strict=True))
    if room < -1e-9 * budget:
        raise UserError("budget: the smallest model is above it; raise it")
    queue: list[tuple[float, int]] = []

    def offer(i: int) -> None:
        if at[i] + 1 < len(hulls[i]):
            here, there = hulls[i][at[i]], hulls[i][at[i] + 1]
            price = float(sites[i].prices[there] - sites[i].prices[here])
            heapq.heappush(queue, (-float(sites[i].costs[here] - sites[i].costs[there]) / price, i))

    for i in range(len(sites)):
        offer(i)
    while queue:
        _, i = heapq.heappop(queue)
        price = float(sites[i].prices[hulls[i][at[i] + 1]] - sites[i].prices[hulls[i][at[i]]])
        if price <= room:  # what does not fit is left; smaller steps of others may
            at[i] += 1
            room -= price
            offer(i)
    return _filled(sites, [h[k] for h, k in zip(hulls, at, strict=True)], room)


def _filled(sites: Sequence[Options], taken: list[int], room: float) -> list[int]:
    """The options after buying with what is left, each time what saves the most cost."""
    while True:
        best, pick = 0.0, None
        for i, site in enumerate(sites):
            saved = np.where(site.prices - site.prices[taken[i]] <= room, site.costs[taken[i]] - site.costs, -np.inf)
            j = int(saved.argmax())
            if saved[j] > best:
                best, pick = float(saved[j]), (i, j)
        if pick is None:
            return taken
        i, j = pick
        room -= float(sites[i].prices[j] - sites[i].prices[taken[i]])
        taken[i] = j


def hull(site: Options) -> list[int]:
    """The options on the lower convex hull of cost over price, from the cheapest in price on, costs falling."""
    kept: list[int] = []
    for j in np.lexsort((site.costs, site.prices)).tolist():
        if kept and site.costs[j] >= site.costs[kept[-1]]:
            continue
        while len(kept) > 1 and _slope(site, kept[-2], j) <= _slope(site, kept[-2], kept[-1]):
            kept.pop()
        kept.append(j)
    return kept


def _slope(site: Options, a: int, b: int) -> float:
    return float((site.costs[b] - site.costs[a]) / (site.prices[b] - site.prices[a]))
