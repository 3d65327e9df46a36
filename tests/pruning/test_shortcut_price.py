"""The price of a model whose last block is there for the class token alone: predicted = counted, never above the budget."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from conftest import make_images, make_tiny_vit
from torch import nn

from vitprune.criteria.scores import Scores
from vitprune.criteria.statistics import attention as statistics
from vitprune.criteria.statistics import attention_curve, fisher_obs
from vitprune.criteria.statistics.attention_curve import AttentionCurve
from vitprune.model import families, size
from vitprune.model.sites.attention import attention_sites
from vitprune.model.sites.ffn import linear
from vitprune.pruning import surgery
from vitprune.pruning.whole import allocation
from vitprune.pruning.whole.pricing import Macs

Found = tuple[nn.Module, Scores, Sequence[AttentionCurve]]


@pytest.fixture(scope="module", name="found")
def costs() -> Found:
    model, images = make_tiny_vit(), make_images(60)
    sites, ffns = attention_sites(model), families.ffn_sites(model)
    batches = lambda: iter([(images, torch.arange(60) % 5)])  # noqa: E731
    of_ffns, moments = statistics.statistics(model, ffns, sites, batches, 0)
    made = [
        attention_curve.curve(s, linear(model, s.proj).weight, m, None) for s, m in zip(sites, moments, strict=True)
    ]
    curves = fisher_obs.curves_of(model, ffns, [(m.covariance, m.fisher, m.tokens) for m in of_ffns])
    return model, Scores.whole("fisher-obs", [site.name for site in ffns], curves), made


@pytest.mark.parametrize("share", [0.22, 0.3, 0.5, 0.8])
def test_predicted_is_counted(found: Found, share: float) -> None:
    model, scores, curves = found
    prices = Macs(model, shortcut=True)
    plan = allocation.plan(model, scores, curves, share, prices)
    slim = surgery.slim(model, plan)
    cuts = {c.site.name: plan.attention[c.site.name] for c in curves if c.site.name in plan.attention}
    dense = sum(prices.attention(c.site, c.site.heads, c.site.dim) for c in curves)
    dense += sum(float(prices.ffn(s, np.array([s.size]))[0]) for s in families.ffn_sites(model))
    predicted = prices.total - dense
    for c in curves:
        cut = cuts.get(c.site.name)
        predicted += prices.attention(c.site, *((cut.heads, cut.dim) if cut else (c.site.heads, c.site.dim)))
    predicted += sum(float(prices.ffn(s, np.array([plan.widths[s.name]]))[0]) for s in families.ffn_sites(model))
    counted = size.macs(slim, shortcut=True)
    assert predicted == counted <= share * size.macs(model)


def test_what_the_last_block_saves_is_room(found: Found) -> None:
    model, scores, curves = found
    plain, short = Macs(model), Macs(model, shortcut=True)
    saved = size.macs(model) - size.macs(model, shortcut=True)
    assert plain.total - short.total == saved > 0 and plain.room(0.4) == short.room(0.4)
    whole = 1 - saved / plain.total
    assert not allocation.plan(model, scores, curves, whole, short).attention  # nothing has to go
    assert all(bool(keep.all()) for keep in allocation.plan(model, scores, curves, whole, short).keep.values())
    assert not all(bool(keep.all()) for keep in allocation.plan(model, scores, curves, whole, plain).keep.values())


def test_a_model_that_has_no_shortcut_is_priced_as_before() -> None:
    model = make_tiny_vit(global_pool="avg")
    plain, asked = Macs(model), Macs(model, shortcut=True)
    site, ffn = attention_sites(model)[-1], families.ffn_sites(model)[-1]
    assert (plain.total, plain.attention(site, 1, 4)) == (asked.total, asked.attention(site, 1, 4))
    assert np.array_equal(plain.ffn(ffn, np.arange(5)), asked.ffn(ffn, np.arange(5)))
