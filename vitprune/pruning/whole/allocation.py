"""Sizes of all sites under one budget: the FFNs' units, the attentions' heads and dimensions, in one unit of cost."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from vitprune.core.errors import UserError
from vitprune.criteria.scores import Scores
from vitprune.criteria.statistics.attention_curve import AttentionCurve
from vitprune.model import families
from vitprune.pruning.allocate import options
from vitprune.pruning.plan import Plan
from vitprune.pruning.slim_attention import Cut
from vitprune.pruning.whole.hulls import Options, allocate
from vitprune.pruning.whole.pricing import Pricing


def plan(
    model: nn.Module, scores: Scores, curves: Sequence[AttentionCurve], share: float, prices: Pricing,
    classes: Sequence[int] = (), round_to: int | None = None, floor: int = 1, free: bool = False,
) -> Plan:  # fmt: skip
    """What FFNs and attentions keep, together within `share` of what the dense model costs, at the least loss.

    `scores` has a curve for every FFN, in the nats of the attentions' `curves`. `free`: queries and keys may have other
    dimensions than values. Raises UserError where the smallest model
    that these sites allow is above the budget.
    """
    every = [*_of_attentions(curves, prices, free), *_of_ffns(model, scores, prices, round_to, floor)]
    room, total = share * prices.total, prices.total
    fixed = total - sum(float(site.prices.max()) for site in every)
    least = fixed + sum(float(site.prices.min()) for site in every)
    if room < least:
        raise UserError(
            f"budget: {prices.name}: {share:g} is below what is left of this model when every site is as small as it may "
            f"be, {math.ceil(1000 * least / total) / 1000:g}; raise it"
        )
    taken = [site.sizes[at] for site, at in zip(every, allocate(every, room - fixed), strict=True)]
    cuts = {c.site.name: Cut(c, *kept) for c, kept in zip(curves, taken, strict=False)}
    keep, found = {}, scores.curves
    assert found is not None, "these scores are no costs"
    for site, units in zip(families.ffn_sites(model), taken[len(curves) :], strict=True):
        keep[site.name] = torch.ones(site.size, dtype=torch.bool)
        keep[site.name][found[site.name].order[: site.size - int(units)]] = False
    return Plan(keep, tuple(classes), {name: cut for name, cut in cuts.items() if not cut.whole})


def _of_ffns(model: nn.Module, scores: Scores, prices: Pricing, round_to: int | None, floor: int) -> list[Options]:
    """The widths of every FFN."""
    assert scores.curves is not None, "these scores are no costs"
    made = []
    for site in families.ffn_sites(model):
        sizes = options(site.size, round_to, floor)
        gone = np.concatenate([[0.0], scores.curves[site.name].costs.double().clamp_min(0).cumsum(0).numpy()])
        made.append(Options(sizes.tolist(), gone[site.size - sizes], prices.ffn(site, sizes)))
    return made


def _of_attentions(curves: Sequence[AttentionCurve], prices: Pricing, free: bool) -> list[Options]:
    """Heads and dimensions of every attention; one head stays."""
    made = []
    for curve in curves:
        table = {kept: cost for kept, cost in curve.table(free).items() if kept[0]}
        of = np.array([prices.attention(curve.site, *kept) for kept in table], float)
        made.append(Options(list(table), np.array(list(table.values())), of))
    return made
