"""Sizes of all sites under one budget: the FFNs' units, the attentions' heads and dimensions, in one unit of cost.

Each site has options with a cost (nats) and a price (multiply-adds, parameters, seconds). The least total cost within the
budget is sought on the lower hull of each site's options: the step that saves the most cost per price is bought next,
as long as it fits; what is then left over buys any options that still fit. The budget is never exceeded.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from vitprune.core.errors import UserError
from vitprune.criteria.scores import Scores
from vitprune.criteria.statistics.attention_curve import AttentionCurve
from vitprune.model import families, size
from vitprune.model.tokens import stream_width, tokens_per_site
from vitprune.pruning.allocate import options
from vitprune.pruning.plan import Plan
from vitprune.pruning.slim_attention import Cut


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


Of = Literal["macs", "params"]


def plan(
    model: nn.Module, scores: Scores, curves: Sequence[AttentionCurve], share: float, of: Of,
    classes: Sequence[int] = (), round_to: int | None = None, floor: int = 1,
) -> Plan:  # fmt: skip
    """What FFNs and attentions keep, together within `share` of the model's multiply-adds or parameters, at the least cost.

    `scores` has a curve for every FFN, in the nats of the attentions' `curves`. Raises UserError where the smallest model
    that these sites allow is above the budget.
    """
    assert scores.curves is not None, "these scores are no costs"
    ffns = families.ffn_sites(model)
    tokens, every = tokens_per_site(model, ffns), _options(model, curves, of)
    for site, count in zip(ffns, tokens, strict=True):
        sizes = options(site.size, round_to, floor)
        gone = np.concatenate([[0.0], scores.curves[site.name].costs.double().clamp_min(0).cumsum(0).numpy()])
        costs = [site.cost(model, int(k)) for k in sizes]
        prices = np.array([cost.macs * count if of == "macs" else cost.parameters for cost in costs], float)
        every.append(Options(sizes.tolist(), gone[site.size - sizes], prices))
    total = size.macs(model) if of == "macs" else size.parameters(model)
    fixed = total - sum(float(site.prices.max()) for site in every)
    room, least = share * total - fixed, fixed + sum(float(site.prices.min()) for site in every)
    if room < least - fixed:
        raise UserError(
            f"budget: {of}: {share:g} is below what is left of this model when every site is as small as it may be, "
            f"{math.ceil(1000 * least / total) / 1000:g}; raise it"
        )
    taken = [site.sizes[at] for site, at in zip(every, allocate(every, room), strict=True)]
    cuts = {c.site.name: Cut(c, *kept) for c, kept in zip(curves, taken, strict=False)}
    keep = {}
    for site, units in zip(ffns, taken[len(curves) :], strict=True):
        keep[site.name] = torch.ones(site.size, dtype=torch.bool)
        keep[site.name][scores.curves[site.name].order[: site.size - int(units)]] = False
    return Plan(keep, tuple(classes), {name: cut for name, cut in cuts.items() if not cut.whole})


def _options(model: nn.Module, curves: Sequence[AttentionCurve], of: Of) -> list[Options]:
    """Heads and dimensions of every attention; one head stays."""
    if not curves:
        return []
    ffns = families.ffn_sites(model)
    width, tokens = stream_width(model, ffns[0]), tokens_per_site(model, ffns)[0]
    made = []
    for curve in curves:
        table = {kept: cost for kept, cost in curve.table().items() if kept[0]}
        site = curve.site
        prices = [
            site.macs(width, tokens, tokens, *kept) if of == "macs" else site.parameters(model, *kept) for kept in table
        ]
        made.append(Options(list(table), np.array(list(table.values())), np.array(prices, float)))
    return made
