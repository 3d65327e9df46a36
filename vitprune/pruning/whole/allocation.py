"""Sizes of all sites under one budget: the FFNs' units, the attentions' heads and dimensions, in one unit of cost."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from vitprune.criteria.scores import Scores
from vitprune.criteria.statistics.attention_curve import AttentionCurve
from vitprune.model import families
from vitprune.pruning import masks
from vitprune.pruning.allocate import options
from vitprune.pruning.plan import Plan
from vitprune.pruning.slim_attention import Cut
from vitprune.pruning.whole import reach
from vitprune.pruning.whole.alike import alike
from vitprune.pruning.whole.hulls import Options, allocate
from vitprune.pruning.whole.pricing import Pricing


def plan(
    model: nn.Module, scores: Scores, curves: Sequence[AttentionCurve], amount: float, prices: Pricing,
    classes: Sequence[int] = (), round_to: int | None = None, floor: int = 1, free: bool = False,
    depth: bool = False,
) -> Plan:  # fmt: skip
    """What FFNs and attentions keep, together within the budget of `amount`, at the least loss.

    `amount` is in the unit of the `prices`: a share of the dense model, or megabytes. `free`: queries and keys may have other
    dimensions than values. `depth`: a block may lose its attention.

    `scores` has a curve for every FFN, in the unit of the attentions' `curves`. Where it has none, the scores do not compare
    across sites: every site then keeps the same share. Raises UserError where the smallest model that these sites allow is
    above the budget.
    """
    every = options_of(model, scores, curves, prices, round_to, floor, free, depth)
    room, (fixed, least) = prices.room(amount), ends(every, prices)
    reach.require(amount, least, prices)
    shared = alike if scores.curves is None else allocate
    taken = [site.sizes[at] for site, at in zip(every, shared(every, room - fixed), strict=True)]
    cuts = {c.site.name: Cut(c, *kept) for c, kept in zip(curves, taken, strict=False)}
    widths = {s.name: int(units) for s, units in zip(families.ffn_sites(model), taken[len(curves) :], strict=True)}
    keep = masks.best(scores, widths, classes) if scores.curves is None else {}
    for name, of in (scores.curves or {}).items():
        keep[name] = torch.ones(len(of.order), dtype=torch.bool)
        keep[name][of.order[: len(of.order) - widths[name]]] = False
    return Plan(keep, tuple(classes), {name: cut for name, cut in cuts.items() if not cut.whole})


def options_of(
    model: nn.Module, scores: Scores, curves: Sequence[AttentionCurve], prices: Pricing, round_to: int | None, floor: int,
    free: bool = False, depth: bool = False,
) -> list[Options]:  # fmt: skip
    """What every attention, then every FFN may be."""
    return [*_of_attentions(curves, prices, free, depth), *_of_ffns(model, scores, prices, round_to, floor)]


def ends(every: Sequence[Options], prices: Pricing) -> tuple[float, float]:
    """The price of what is outside of the sites, and of the smallest model."""
    fixed = prices.total - sum(float(site.prices.max()) for site in every)
    return fixed, fixed + sum(float(site.prices.min()) for site in every)


def _of_ffns(model: nn.Module, scores: Scores, prices: Pricing, round_to: int | None, floor: int) -> list[Options]:
    """The widths of every FFN; without curves they cost nothing that counts."""
    made, curves = [], scores.curves or {}
    for site in families.ffn_sites(model):
        sizes = options(site.size, round_to, floor)
        costs = curves[site.name].costs if curves else torch.zeros(site.size)
        gone = np.concatenate([[0.0], costs.double().clamp_min(0).cumsum(0).numpy()])
        made.append(Options(sizes.tolist(), gone[site.size - sizes], prices.ffn(site, sizes)))
    return made


def _of_attentions(curves: Sequence[AttentionCurve], prices: Pricing, free: bool, depth: bool) -> list[Options]:
    """Heads and dimensions of every attention; one head stays, but under `depth` where heads can go. An FFN of no unit would
    save next to nothing over one of one, so there is none."""
    made = []
    for curve in curves:
        none = depth and curve.site.whole_heads
        table = {kept: cost for kept, cost in curve.table(free).items() if kept[0] or none}
        of = np.array([prices.attention(curve.site, *kept) for kept in table], float)
        made.append(Options(list(table), np.array(list(table.values())), of))
    return made
