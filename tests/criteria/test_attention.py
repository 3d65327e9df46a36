"""What removals in attention cost, against slow replicas in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vitprune.criteria.statistics import attention, attention_curve, elimination, fisher_obs, ranks, rotation
from vitprune.model import families
from vitprune.model.sites.attention import AttentionSite, attention_sites
from vitprune.model.sites.ffn import linear


def matrix(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def covariance(n: int, seed: int = 0) -> Tensor:
    x = matrix(4 * n, n, seed=seed) * torch.linspace(0.1, 2, n, dtype=torch.float64)
    return (x @ matrix(n, n, seed=seed + 1)).T.cov()


@pytest.fixture(name="small")
def small_fixture(tiny_vit: Callable[..., nn.Module], make_images: Callable[..., Tensor]) -> tuple[Any, Tensor, Any]:
    """A model with heads of 8 dimensions, images, and batches of them."""
    model, images = tiny_vit(), make_images(40)
    labels = model(images).argmax(1)
    labels[:5] = torch.arange(5)
    return model, images, lambda: iter([(images[:24], labels[:24]), (images[24:], labels[24:])])


def test_each_round_takes_the_cheapest_dimension_of_every_head() -> None:
    heads, d = 3, 6
    weight, c = matrix(10, heads * d), covariance(heads * d, seed=4)
    order, costs = elimination.eliminate_in_groups(weight, c, heads)
    ridged = c + 1e-3 * c.diagonal().mean() * torch.eye(heads * d)
    left = list(range(heads * d))

    def error(kept: list[int]) -> float:
        """What is lost when only `kept` are left, solved from scratch."""
        best = torch.linalg.solve(ridged[kept][:, kept], ridged[kept] @ weight.T).T if kept else weight[:, :0]
        rest = weight.clone()
        rest[:, kept] -= best
        return float(((rest @ ridged) * rest).sum())

    for k in range(d):
        before = error(left)
        for head in range(heads):
            own = [u for u in left if u // d == head]
            cheapest = min(own, key=lambda u: error([v for v in left if v != u]))
            assert int(order[head, k]) == cheapest % d
            left.remove(cheapest)
        assert float(costs[k]) == pytest.approx(error(left) - before, rel=1e-8)


def test_the_moments_are_those_of_the_definition(small: Any) -> None:
    model, images, batches = small
    ffns, sites = families.ffn_sites(model), attention_sites(model)
    of_ffns, found = attention.statistics(model, ffns, sites, batches, 3)
    expected, fishers, tokens = fisher_obs.statistics(model, ffns, batches, 3)
    for one, c, g, t in zip(of_ffns, expected, fishers, tokens, strict=True):
        assert torch.equal(one.covariance, c) and torch.equal(one.fisher, g) and one.tokens == t
    x = model.norm_pre(model._pos_embed(model.patch_embed(images)))
    for i, (site, made) in enumerate(zip(sites, found, strict=True)):
        q, k, v = attention.split_heads(site, linear(model, site.qkv)(model.blocks[i].norm1(x)))
        a = ((q @ k.mT / site.dim**0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)
        read = slice(0, 1) if i == len(sites) - 1 else slice(None)
        rows = a[:, read].flatten(0, 1)
        assert torch.allclose(made.covariance, rows.T.cov(correction=0))
        asked = q[:, :, read].transpose(0, 1).flatten(1, 2)
        told = (k - k.mean(2, keepdim=True)).transpose(0, 1).flatten(1, 2)
        assert torch.allclose(made.queries, asked.mT @ asked / asked.shape[1])
        assert torch.allclose(made.keys, told.mT @ told / told.shape[1])
        x = model.blocks[i](x)


def test_the_fisher_is_that_of_the_gradient_at_the_projection(small: Any) -> None:
    model, images, batches = small
    _, found = attention.statistics(model, families.ffn_sites(model), attention_sites(model), batches, 3)
    outputs: dict[int, Tensor] = {}

    def keep(i: int, out: Tensor) -> Tensor:
        outputs[i] = out if out.requires_grad else out.requires_grad_()
        return outputs[i]

    paths = [f"blocks.{i}.attn.proj" for i in range(3)]
    from vitprune.criteria.sampling import draw
    from vitprune.model.inside import hooks

    with hooks.layers(model, paths, written=keep):
        log_p = model(images).log_softmax(-1)
    drawn = draw(log_p.detach().softmax(-1), images, 3)
    grads = torch.autograd.grad(log_p.gather(1, drawn[:, None]).sum(), [outputs[i] for i in range(3)])
    for made, grad in zip(found, grads, strict=True):
        rows = grad.flatten(0, 1)
        assert torch.allclose(made.fisher, rows.T @ rows / len(rows))


def test_the_logits_of_rank_r_miss_by_the_tail_of_sigma() -> None:
    q, k = matrix(3, 400, 8), matrix(3, 400, 8, seed=2) @ matrix(3, 8, 8, seed=5)
    k = k - k.mean(1, keepdim=True)
    asked, told, sigma = rotation.of_queries_and_keys(q.mT @ q / 400, k.mT @ k / 400)
    assert torch.allclose((q @ asked.mT) @ (k @ told.mT).mT, q @ k.mT)
    for r in range(8):
        lower = (q @ asked[:, :r].mT) @ (k @ told[:, :r].mT).mT
        assert torch.allclose((lower - q @ k.mT).square().mean((1, 2)), sigma[:, r:].square().sum(1))


def test_the_rotation_of_the_values_is_undone_behind_and_puts_the_strongest_first() -> None:
    weight, c = matrix(10, 12), covariance(12)
    front, behind = rotation.of_values(weight, c, 3)
    for h in range(3):
        own = slice(4 * h, 4 * h + 4)
        assert torch.allclose(behind[h] @ front[h], torch.eye(4, dtype=torch.float64), atol=1e-8)
        assert torch.allclose(front[h] @ c[own, own] @ front[h].T, torch.eye(4, dtype=torch.float64), atol=1e-4)
        strength = (weight[:, own] @ behind[h]).norm(dim=0)
        assert torch.equal(strength, strength.sort(descending=True).values)


def test_a_shift_of_all_keys_of_an_image_changes_nothing(small: Any) -> None:
    model, _, batches = small
    ffns, sites = families.ffn_sites(model), attention_sites(model)
    _, before = attention.statistics(model, ffns, sites, batches, 0)
    curves = ranks.ranks(model, sites, before, (x for x, _ in batches()))
    for site in sites:
        bias = linear(model, site.qkv).bias
        bias.data[16:32] += 5 * matrix(16, seed=7)
    _, after = attention.statistics(model, ffns, sites, batches, 0)
    for one, other in zip(before, after, strict=True):
        assert torch.allclose(one.keys, other.keys) and torch.allclose(one.covariance, other.covariance)
    for one, other in zip(curves, ranks.ranks(model, sites, after, (x for x, _ in batches())), strict=True):
        assert torch.allclose(one, other, rtol=1e-6)


def test_a_head_that_is_there_twice_costs_nothing() -> None:
    weight, c = matrix(10, 12), covariance(8)
    twice = torch.block_diag(c, torch.zeros(4, 4, dtype=torch.float64))
    twice[8:, :8], twice[:8, 8:], twice[8:, 8:] = c[:4], c[:, :4], c[:4, :4]
    order, costs = attention_curve.heads_in_order(weight, twice, 3)
    assert order[0] in (0, 2)
    assert float(costs[0]) < 0.01 * float(costs[1])  # what the ridge does not believe


def test_costs_are_the_error_that_the_best_linear_repair_leaves(small: Any) -> None:
    """Heads, then dimensions: each stands for what is lost of G^½ Wo a, solved from scratch."""
    model, _, batches = small
    sites = attention_sites(model)
    _, found = attention.statistics(model, families.ffn_sites(model), sites, batches, 0)
    site, m = sites[0], found[0]
    made = attention_curve.curve(site, linear(model, site.proj).weight, m, None)
    weight = fisher_obs.root(m.fisher) @ linear(model, site.proj).weight

    def lost(into: Tensor) -> float:
        """½·T·tr of what is left of the weighted output after the best fit from `into`·a."""
        own, cross = into @ m.covariance @ into.T, into @ m.covariance @ weight.T
        left = weight @ m.covariance @ weight.T - cross.T @ torch.linalg.solve(own, cross)
        return 0.5 * m.tokens * float(left.trace())

    whole = torch.eye(16, dtype=torch.float64)
    for heads in (1, 2):
        values = made.values[heads - 1]
        rows = torch.cat([whole[8 * h : 8 * h + 8] for h in values.heads])
        if heads == 1:
            assert float(made.without[1]) == pytest.approx(lost(rows), rel=0.02)
        kept = values.kept(4)
        into = torch.cat([values.front[i][kept[i]] @ rows[8 * i : 8 * i + 8] for i in range(heads)])
        assert made.cost(heads, 4) == pytest.approx(lost(into), rel=0.02)
    assert made.cost(2, 8) == 0
    assert made.cost(0, 0) == pytest.approx(
        0.5 * m.tokens * float((weight @ m.covariance @ weight.T).trace()), rel=0.02
    )


def test_ranks_cost_less_the_more_there_are_and_nothing_when_whole(small: Any) -> None:
    model, _, batches = small
    sites = attention_sites(model)
    _, found = attention.statistics(model, families.ffn_sites(model), sites, batches, 0)
    for one in ranks.ranks(model, sites, found, (x for x, _ in batches())):
        assert len(one) == 9 and float(one[-1]) == 0 and bool((one.diff() <= 0).all()) and float(one[4]) > 0


def test_sites_without_free_queries_keep_their_ranks(small: Any) -> None:
    model, _, batches = small
    sites = [AttentionSite(0, "blocks.0.attn", 2, 8, query_keys=False)]
    _, found = attention.statistics(model, families.ffn_sites(model)[:1], sites, batches, 0)
    (one,) = ranks.ranks(model, sites, found, (x for x, _ in batches()))
    assert not one.any() and sites[0].dims == (4, 8) and sites[0].asking(4) == 8
    assert np.isfinite(attention_curve.curve(sites[0], linear(model, sites[0].proj).weight, found[0], one).cost(1, 8))
