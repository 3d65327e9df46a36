"""Budgets: the dynamic programme against every combination, prices, floors."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from small import scores_of

from vitprune.core.errors import UserError
from vitprune.model import families
from vitprune.pruning import allocate, masks
from vitprune.pruning import prices as pruning_prices


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
    found = allocate.widths(scores, prices, choices, budget)
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
