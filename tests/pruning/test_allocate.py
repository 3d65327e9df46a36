"""Budgets: the dynamic programme against every combination, prices, floors."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from small import scores_of

from vitprune.core.errors import UserError
from vitprune.criteria.curves import Curve
from vitprune.criteria.scores import Scores
from vitprune.model import families
from vitprune.pruning import allocate, masks
from vitprune.pruning import prices as pruning_prices
from vitprune.pruning.budget import Budget


class Named(NamedTuple):
    """All that a budget reads of a site."""

    name: str
    size: int


def brute_force(scores, prices, choices, budget):
    best = (np.inf, None)
    for picks in itertools.product(*(range(len(c)) for c in choices)):
        price = sum(p[i] for p, i in zip(prices, picks, strict=True))
        if price > budget * (1 + 1e-9):
            continue
        error = sum(float(np.sort(s)[: len(s) - c[i]].sum()) for s, c, i in zip(scores, choices, picks, strict=True))
        best = min(best, (error, tuple(int(c[i]) for c, i in zip(choices, picks, strict=True))))
    return best


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("step", [None, 2, 3])
def test_the_widths_are_those_of_every_combination_tried(seed, step):
    draw = np.random.default_rng(seed)
    scores = [draw.gamma(0.5, size=n) * scale for n, scale in ((7, 1.0), (9, 3.0), (8, 0.2))]
    choices = [allocate.options(len(s), step, 1) for s in scores]
    prices = [draw.uniform(0.5, 2) * c + (5 if seed % 2 else 0) for c in choices] if seed > 3 else choices
    prices = [np.asarray(p, float) for p in prices]
    budget = 0.6 * sum(p[-1] for p in prices)
    found = allocate.widths([np.sort(s) for s in scores], prices, choices, budget)
    error = sum(float(np.sort(s)[: len(s) - w].sum()) for s, w in zip(scores, found, strict=True))
    best, _ = brute_force(scores, prices, choices, budget)
    assert sum(p[list(c).index(w)] for p, c, w in zip(prices, choices, found, strict=True)) <= budget * (1 + 1e-9)
    assert error == pytest.approx(best, rel=1e-9) if seed <= 3 else error <= best * 1.05 + 1e-9


def test_without_steps_it_is_the_threshold_across_blocks():
    draw = torch.Generator().manual_seed(0)
    blocks = [torch.rand(1, 12, generator=draw) * scale for scale in (1, 4, 0.3)]
    scores = scores_of("fisher-obs", blocks)
    one, other = (masks.build(scores, 0.5, allocation=a) for a in ("global", "budgeted"))
    assert one.widths == other.widths
    assert all(torch.equal(a, b) for a, b in zip(one.masks, other.masks, strict=True))


@pytest.mark.parametrize("allocation", ["global", "budgeted"])
def test_the_floor_holds_and_the_budget_too(allocation):
    blocks = [torch.full((1, 16), value) for value in (1e-3, 1.0, 2.0)]
    mask = masks.build(scores_of("fisher-obs", blocks), 0.25, allocation=allocation, floor=3)
    assert mask.widths["blocks.0.mlp"] == 3
    assert sum(mask.widths.values()) <= 12
    multiples = masks.build(scores_of("fisher-obs", blocks), 0.5, allocation=allocation, floor=3, round_to=4)
    assert all(width % 4 == 0 for width in list(multiples.widths.values()))
    assert sum(list(multiples.widths.values())) <= 24


def test_a_curves_own_costs_are_summed_and_its_order_is_cut():
    """A dear removal in front of free ones: its running maximum would count them all as dear."""
    one = Curve(torch.arange(6).flip(0), torch.tensor([0.1, 3.0, 0.0, 0.0, 0.0, 9.0], dtype=torch.float64))
    other = Curve(torch.arange(6), torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 9.0], dtype=torch.float64))
    scores = Scores.whole("obs", ["a", "b"], [one, other])
    found = Budget(0.5, "budgeted").plan(scores, [Named("a", 6), Named("b", 6)])
    assert found.widths == {"a": 1, "b": 5}  # 4.1 in all; three of each would be 6.1
    assert found.keep["a"].tolist() == [True] + 5 * [False] and found.keep["b"].tolist() == [False] + 5 * [True]
    pressed = Budget(0.5, "budgeted").plan(replace(scores, curves=None), [Named("a", 6), Named("b", 6)])
    assert pressed.widths == {"a": 5, "b": 1}
    whole = Budget(0.5, "global").plan(scores, [Named("a", 6), Named("b", 6)])
    assert whole.keep.keys() == pressed.keep.keys()
    assert all(map(torch.equal, whole.masks, pressed.masks))  # one threshold ranks by the maxima


@pytest.mark.parametrize("seed", range(4))
def test_the_widths_of_curves_are_those_of_every_combination_tried(seed):
    draw = torch.Generator().manual_seed(seed)
    curves = [Curve(torch.randperm(n, generator=draw), torch.rand(n, generator=draw).double()) for n in (7, 9, 8)]
    found = Budget(0.5, "budgeted").plan(Scores.whole("obs", list("abc"), curves), sites := [
        Named(name, len(curve.order)) for name, curve in zip("abc", curves, strict=True)
    ])  # fmt: skip
    room, least = sum(site.size for site in sites) // 2, np.inf
    for widths in itertools.product(*(range(1, site.size + 1) for site in sites)):
        if sum(widths) <= room:
            lost = sum(float(c.costs[: len(c.costs) - w].sum()) for c, w in zip(curves, widths, strict=True))
            least = min(least, lost)
    ours = zip(curves, found.masks, strict=True)
    assert all(set(c.order[-int(keep.sum()) :].tolist()) == set(keep.nonzero().flatten().tolist()) for c, keep in ours)
    lost = sum(float(c.costs[: int((~keep).sum())].sum()) for c, keep in zip(curves, found.masks, strict=True))
    assert lost == pytest.approx(least, rel=1e-12)


def test_a_budget_refuses_scores_of_other_sites():
    scores = scores_of("random", [torch.rand(1, 8)])
    for sites in ([Named("blocks.0.mlp", 9)], [], [Named("blocks.1.mlp", 8)]):
        with pytest.raises(UserError, match="discover again"):
            Budget(0.5).plan(scores, sites)


def test_prices_are_parameters_multiply_adds_or_measured_time(tiny_vit):
    model = tiny_vit(dtype=torch.float32)
    site, choice = families.ffn_sites(model)[0], np.array([8, 16, 32])
    assert pruning_prices.price(model, site, choice, "flops").tolist() == [8 * 32, 16 * 32, 32 * 32]
    whole = sum(p.numel() for p in model.blocks[0].mlp.parameters()) - 16  # fc2's bias stays
    assert pruning_prices.price(model, site, choice, "parameters").tolist()[-1] == whole
    seconds = pruning_prices.price(model, site, choice, "latency")
    assert bool((seconds > 0).all()) and bool((np.diff(seconds) >= 0).all())


def test_a_budget_below_the_floor_is_the_users_to_mend():
    scores = scores_of("fisher-obs", [torch.rand(1, 8), torch.rand(1, 8)])
    with pytest.raises(UserError, match="floor"):
        masks.build(scores, 0.25, allocation="budgeted", floor=4)
