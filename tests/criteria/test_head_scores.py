"""Heads and dimensions of heads by the criteria that the tool is held against: slow replicas, masked is sliced."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitprune.cli.app import app
from vitprune.criteria.catalog import CRITERIA, covers_attention
from vitprune.criteria.heads import obs, scores
from vitprune.criteria.heads.coordinates import Coordinates
from vitprune.criteria.settings import Nothing, Seeded
from vitprune.criteria.statistics import attention
from vitprune.criteria.statistics.attention_curve import AttentionCurve
from vitprune.criteria.weights import bridge
from vitprune.model import families
from vitprune.model.sites.attention import AttentionSite, attention_sites
from vitprune.model.sites.base import names
from vitprune.model.sites.ffn import linear
from vitprune.pruning import surgery
from vitprune.pruning.plan import Plan
from vitprune.pruning.slim_attention import Cut

H, D = 2, 8
COVER = [*(name for name in CRITERIA if covers_attention(name)), "random"]


@pytest.fixture(name="small")
def small_fixture(tiny_vit: Callable[..., nn.Module], make_images: Callable[..., Tensor]) -> tuple[Any, Tensor, Tensor]:
    model, images = tiny_vit(mlp_ratio=1.0), make_images(20)
    return model, images, torch.arange(20) % 5


def curves(name: str, small: tuple[Any, Tensor, Tensor]) -> list[Any]:
    """Of a model's attentions, by a row of the table."""
    model, images, labels = small
    if name == "random":
        return list(scores.random(attention_sites(model), seed=0))
    row = CRITERIA[name]
    assert row.attention is not None
    summed, how = row.sums(True), Seeded(0) if name == "fisher-obs" else Nothing()
    batches = lambda: iter([(images[:12], labels[:12]), (images[12:], labels[12:])])  # noqa: E731
    classes = list(range(5))
    found = None
    if summed:
        found = summed.sums(model, families.ffn_sites(model), batches, classes=classes, how=how, first=None)
    return list(row.attention.curves(model, batches, found, how=how))


def test_the_table_says_which_criteria_choose_heads(capsys: pytest.CaptureFixture[str]) -> None:
    assert set(COVER) == {"fisher-obs", "obs", "variance", "magnitude-l2", "taylor", "random"}
    assert not covers_attention("jas") and not covers_attention("auto")
    assert CRITERIA["obs"].sites == ["ffn", "attention"] and CRITERIA["jas"].sites == ["ffn"]
    app(["criteria", "--json"], standalone_mode=False)
    told = {row["name"]: row["sites"] for row in json.loads(capsys.readouterr().out)}
    assert {name for name, sites in told.items() if "attention" in sites} == set(
        COVER
    ) and told.keys() >= CRITERIA.keys()


def test_magnitude_and_taylor_sum_over_what_goes_together(small: Any) -> None:
    model, images, labels = small
    weights = [model.blocks[i].attn.get_submodule(name).weight for i in range(3) for name in ("qkv", "proj")]
    for weight in weights:
        weight.requires_grad_(True)
    grads = torch.autograd.grad(F.cross_entropy(model(images), labels), weights)
    for weight in weights:
        weight.requires_grad_(False)
    for name in ("magnitude-l2", "taylor"):
        for i, one in enumerate(curves(name, small)):
            assert isinstance(one, Coordinates)
            qkv, proj = weights[2 * i], weights[2 * i + 1]
            worth = [w**2 if name == "magnitude-l2" else (w * g).abs() for w, g in zip(weights, grads, strict=True)]
            qkv, proj = worth[2 * i], worth[2 * i + 1]
            for h in range(H):
                total = 0.0
                for j in range(D):
                    q, k, v = (float(qkv[part * H * D + h * D + j].sum()) for part in range(3))
                    out = float(proj[:, h * D + j].sum())
                    assert float(one.values[h, j]) == pytest.approx((v + out) / 2, rel=1e-9)
                    assert float(one.pairs[h, j]) == pytest.approx((q + k) / 2, rel=1e-9)
                    total += (v + out + q + k) / 2
                assert float(one.heads[h]) == pytest.approx(total, rel=1e-9)


def test_the_rule_is_torch_prunings_for_the_hidden_units_of_an_ffn(small: Any) -> None:
    """With the values' and proj's weights in the place of fc1's and fc2's."""
    model, *_ = small
    site, mlp = families.ffn_sites(model)[0], model.blocks[0].mlp
    attn, grads = model.blocks[0].attn, {}
    mlp.fc1.weight.data.copy_(attn.qkv.weight[2 * H * D :])
    mlp.fc2.weight.data.copy_(attn.proj.weight)
    (magnitude,) = bridge.importances(model, [site], "magnitude")
    found = curves("magnitude-l2", small)[0]
    assert isinstance(found, Coordinates)
    torch.testing.assert_close(magnitude, found.values.flatten().float())
    generator = torch.Generator().manual_seed(1)
    for weight in (mlp.fc1.weight, mlp.fc2.weight):
        grads[weight] = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
    (taylor,) = bridge.importances(model, [site], "taylor", grads)
    v, out = ((weight * grads[weight]).abs() for weight in grads)
    torch.testing.assert_close(taylor, ((v.sum(1) + out.sum(0)) / 2).float())


def test_variance_is_what_dimensions_and_heads_write_and_what_pairs_give_the_logits(small: Any) -> None:
    model, images, _ = small
    x = model.norm_pre(model._pos_embed(model.patch_embed(images)))
    for i, one in enumerate(curves("variance", small)):
        assert isinstance(one, Coordinates)
        block, read = model.blocks[i], slice(0, 1) if i == 2 else slice(None)
        q, k, v = block.attn.qkv(block.norm1(x)).unflatten(-1, (3, H, D)).permute(2, 0, 3, 1, 4)
        a = (q @ k.mT / D**0.5).softmax(-1) @ v
        for h in range(H):
            wo = block.attn.proj.weight[:, h * D : (h + 1) * D]
            rows = a[:, h, read].flatten(0, 1)
            written = (rows @ wo.T).var(0, correction=0).sum()
            assert float(one.heads[h]) == pytest.approx(float(written), rel=1e-6)
            for j in range(D):
                alone = (rows[:, j, None] * wo[:, j]).var(0, correction=0).sum()
                assert float(one.values[h, j]) == pytest.approx(float(alone), rel=1e-6)
                told = k[:, h, :, j] - k[:, h, :, j].mean(1, keepdim=True)
                pair = q[:, h, read, j].square().mean() * told.square().mean()
                assert float(one.pairs[h, j]) == pytest.approx(float(pair), rel=1e-6)
        x = block(x)


def test_obs_costs_are_squared_errors_of_a_token_after_the_best_linear_repair(small: Any) -> None:
    model, images, labels = small
    sites = attention_sites(model)
    _, moments = attention.statistics(model, families.ffn_sites(model), sites, lambda: iter([(images, labels)]), 0)
    for site, m, one in zip(sites[:2], moments, curves("obs", small), strict=False):
        assert isinstance(one, AttentionCurve)
        weight, whole = linear(model, site.proj).weight, torch.eye(H * D, dtype=torch.float64)

        def lost(into: Tensor, weight: Tensor = weight, c: Tensor = m.covariance) -> float:
            own, cross = into @ c @ into.T, into @ c @ weight.T
            return float((weight @ c @ weight.T - cross.T @ torch.linalg.solve(own, cross)).trace())

        (head,) = one.values[0].heads
        assert float(one.without[1]) == pytest.approx(lost(whole[D * head : D * head + D]), rel=0.03)
        values = one.values[1]
        kept = values.kept(4)
        into = torch.cat([values.front[h][kept[h]] @ whole[D * h : D * h + D] for h in range(H)])
        assert float(values.costs[4]) == pytest.approx(lost(into), rel=0.03)
        assert one.cost(H, D) == 0 and float(one.ranks[4]) > 0


def test_obs_measures_ranks_by_the_error_of_the_output(small: Any) -> None:
    """Those of a G that is three times the identity are three times these, for an image of T tokens ½·T times."""
    model, images, labels = small
    site = attention_sites(model)[0]
    batches = lambda: iter([(images, labels)])  # noqa: E731
    _, (m, *_) = attention.statistics(model, families.ffn_sites(model), [site], batches, 0)
    flat = replace(m, fisher=3 * torch.eye(16, dtype=torch.float64))
    (expected,) = obs.curves(model, [site], [flat], batches)
    assert torch.allclose(curves("obs", small)[0].tensors()["ranks"] * 1.5 * m.tokens, expected.ranks, rtol=1e-6)


def test_scores_are_cut_from_the_least() -> None:
    site = AttentionSite(0, "blocks.0.attn", 3, 4)
    values = torch.tensor([[1.0, 4, 2, 3], [5, 5, 5, 5], [1, 2, 3, 4]], dtype=torch.float64)
    made = Coordinates(site, torch.tensor([2.0, 1, 2], dtype=torch.float64), values, values.flip(1))
    again = Coordinates.from_tensors(site, made.tensors()).curve
    for curve in (made.curve, again):
        assert [v.heads for v in curve.values] == [(0,), (0, 2), (0, 1, 2)]
        assert curve.without.tolist() == [5, 3, 1, 0]
        assert curve.values[2].kept(2).tolist() == [[1, 3], [0, 1], [2, 3]]
        assert curve.values[1].order.tolist() == [[0, 2, 3, 1], [0, 1, 2, 3]]
        assert curve.values[1].costs.tolist() == [20, 12, 6, 2, 0]
        assert curve.queries[0].argmax(1).tolist() == [2, 0, 1, 3] and torch.equal(curve.queries, curve.keys)
        assert torch.equal(curve.queries.sum(1), torch.ones(3, 4, dtype=torch.float64))
        assert curve.ranks.tolist() == [40, 27, 16, 7, 0]


@pytest.mark.parametrize("name", COVER)
def test_masked_is_sliced_whatever_chose(small: Any, name: str) -> None:
    model, images, _ = small
    found = [one.curve if isinstance(one, Coordinates) else one for one in curves(name, small)]
    ffns = families.ffn_sites(model)
    keep = {key: torch.arange(site.size) % 3 > 0 for key, site in zip(names(ffns), ffns, strict=True)}
    for sizes in ([(2, 4), (1, 8), (1, 4)], [(1, 4), (2, 4), (2, 8)]):
        cuts = {curve.site.name: Cut(curve, *size) for curve, size in zip(found, sizes, strict=True)}
        assert surgery.masked_vs_sliced(model, Plan(keep, (), cuts), images) < 1e-9


def test_a_draw_is_of_its_seed(small: Any) -> None:
    sites = attention_sites(small[0])
    one, again, other = (scores.random(sites, seed=seed)[1] for seed in (3, 3, 4))
    assert torch.equal(one.values, again.values) and torch.equal(one.heads, again.heads)
    assert not torch.equal(one.values, other.values) and not torch.equal(one.values, one.pairs)
