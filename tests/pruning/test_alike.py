"""The same share of every site within a budget, where scores do not compare from one site to the other."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vitprune.core.errors import UserError
from vitprune.criteria.heads import scores as of_heads
from vitprune.criteria.statistics.random import random
from vitprune.model import families, size
from vitprune.model.sites.attention import attention_sites
from vitprune.pruning import surgery
from vitprune.pruning.whole import allocation
from vitprune.pruning.whole.alike import alike
from vitprune.pruning.whole.hulls import Options
from vitprune.pruning.whole.pricing import Macs, Parameters


def ffn(n: int, price: float) -> Options:
    return Options(list(range(1, n + 1)), np.zeros(n), price * np.arange(1.0, n + 1))


def attention(heads: int, dims: tuple[int, ...], price: float) -> Options:
    every = [(h, d) for h in range(1, heads + 1) for d in dims]
    return Options(every, np.zeros(len(every)), np.array([price * h * d for h, d in every]))


def test_every_site_keeps_the_same_share_and_ffns_take_what_is_left() -> None:
    sites = [attention(4, (4, 8, 12, 16), 1.0), ffn(64, 1.0), ffn(32, 2.0)]
    at = alike(sites, 110.0)
    assert [site.sizes[i] for site, i in zip(sites, at, strict=True)] == [(3, 12), 37, 18]  # 36 of 64; then 74 of 128
    at = alike(sites, 64.0)  # a third: (3, 4) is 12 of 64, (2, 8) is 16 and (1, 16) too
    assert sites[0].sizes[at[0]] == (2, 8) and sites[1].sizes[at[1]] == 24 and sites[2].sizes[at[2]] == 12
    assert [site.sizes[i] for site, i in zip(sites, alike(sites, 192.0), strict=True)] == [(4, 16), 64, 32]


def test_shares_alike_are_never_above_the_budget() -> None:
    draw = np.random.default_rng(0)
    for _ in range(30):
        sites = [
            attention(3, (4, 8), float(draw.random())),
            ffn(20, float(draw.random())),
            ffn(7, float(draw.random())),
        ]
        low, high = (sum(float(of(site.prices)) for site in sites) for of in (np.min, np.max))
        for budget in np.linspace(low, high, 9):
            taken = alike(sites, float(budget))
            assert sum(float(s.prices[i]) for s, i in zip(sites, taken, strict=True)) <= budget * (1 + 1e-9)


@pytest.mark.parametrize("word", ["macs", "params"])
def test_a_plan_by_scores_that_do_not_compare(tiny_vit: Callable[..., nn.Module], word: str) -> None:
    model = tiny_vit()
    ffns, sites = families.ffn_sites(model), attention_sites(model)
    drawn, prices = random(ffns, seed=1), {"macs": Macs, "params": Parameters}[word](model)
    curves = [one.curve for one in of_heads.random(sites, seed=1)]
    plan = allocation.plan(model, drawn, curves, 0.5, prices)
    slim = surgery.slim(model, plan)
    of: Callable[[nn.Module], int] = {"macs": size.macs, "params": size.parameters}[word]
    assert 0.44 < of(slim) / of(model) <= 0.5
    assert len(set(plan.widths.values())) == 1 and len(plan.attention) == len(sites)
    for site in ffns:
        kept, score = plan.keep[site.name], drawn.sites[site.name][0]
        assert float(score[kept].min()) > float(score[~kept].max())
    with pytest.raises(UserError, match="is below what is left of this model"):
        allocation.plan(model, drawn, curves, 0.01, prices)


def test_ffns_alone_share_alike_too(tiny_vit: Callable[..., nn.Module], make_images: Callable[..., Tensor]) -> None:
    model = tiny_vit()
    drawn = random(families.ffn_sites(model), seed=1)
    plan = allocation.plan(model, drawn, [], 0.8, Macs(model), round_to=4)
    assert len(set(plan.widths.values())) == 1 and not plan.attention
    assert all(units % 4 == 0 for units in plan.widths.values())
    assert torch.isfinite(surgery.slim(model, plan)(make_images(2))).all()
