"""One budget for all sites, and the repair of a model whose attention is slim."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vitprune.core.errors import UserError
from vitprune.criteria.statistics import attention as statistics
from vitprune.criteria.statistics import attention_curve
from vitprune.model import families
from vitprune.model.sites.attention import attention_sites
from vitprune.model.sites.ffn import linear
from vitprune.pruning import slim_attention
from vitprune.pruning.repair import layerwise
from vitprune.pruning.whole import hulls


def random_sites(seed: int) -> list[hulls.Options]:
    draw = np.random.default_rng(seed)
    made = []
    for _ in range(4):
        n = int(draw.integers(2, 6))
        made.append(
            hulls.Options(range(n), np.sort(draw.random(n) ** 3)[::-1], np.cumsum(draw.integers(1, 9, n)).astype(float))
        )
    return made


@pytest.mark.parametrize("seed", range(20))
def test_never_above_the_budget_and_close_to_the_best(seed: int) -> None:
    sites = random_sites(seed)
    every = list(itertools.product(*(range(len(s.sizes)) for s in sites)))
    price = np.array([sum(s.prices[i] for s, i in zip(sites, pick, strict=True)) for pick in every])
    cost = np.array([sum(s.costs[i] for s, i in zip(sites, pick, strict=True)) for pick in every])
    low, high = float(price.min()), float(price.max())
    for budget in np.linspace(low, high, 7):
        place = every.index(tuple(hulls.allocate(sites, float(budget))))
        assert price[place] <= budget + 1e-9
        step = max(float((s.costs[:-1] - s.costs[1:]).max()) for s in sites)
        assert cost[place] <= cost[price <= budget].min() + step
    assert cost[every.index(tuple(hulls.allocate(sites, high)))] == cost.min()


def test_a_budget_below_the_smallest_model_is_refused() -> None:
    sites = random_sites(0)
    with pytest.raises(UserError, match="smallest model is above it"):
        hulls.allocate(sites, sum(float(s.prices.min()) for s in sites) - 1)


def test_an_option_that_costs_more_and_is_dearer_is_never_taken() -> None:
    site = hulls.Options("abc", np.array([3.0, 4.0, 1.0]), np.array([1.0, 2.0, 3.0]))
    assert hulls.hull(site) == [0, 2]


@pytest.mark.parametrize(("heads", "dim"), [(2, 4), (1, 8), (1, 4), (0, 0)])
def test_the_repair_of_slim_attention_comes_closer_to_the_dense_model(
    tiny_vit: Callable[..., nn.Module], make_images: Callable[..., Tensor], heads: int, dim: int
) -> None:
    model, images = tiny_vit(), make_images(80)
    sites = attention_sites(model)
    batches = lambda: iter([(images, torch.arange(80) % 5)])  # noqa: E731
    _, moments = statistics.statistics(model, families.ffn_sites(model), sites, batches, 0)
    slim = copy.deepcopy(model)
    for site, m in list(zip(sites, moments, strict=True))[1:]:
        curve = attention_curve.curve(site, linear(model, site.proj).weight, m, None)
        slim_attention.write(slim, curve, heads, dim)
    fc2_alone = copy.deepcopy(slim)
    before = (slim(images) - model(images)).square().mean()
    for one, attention in ((slim, True), (fc2_alone, False)):
        layerwise.repair(one, model, iter([images[:40], images[40:]]), attention=attention)
    after, half = ((one(images) - model(images)).square().mean() for one in (slim, fc2_alone))
    assert after < before
    assert after < half or not heads
