"""`prune: [ffn, attention, depth]`: a block may lose its attention altogether."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_images, make_tiny_vit
from safetensors.torch import load_file, save_file
from small import image_folder, model_folder, quicken, recipe_dict
from torch import Tensor, nn

import vitprune
from vitprune.core.errors import UserError
from vitprune.core.progress import Reporter
from vitprune.criteria.scores import Scores
from vitprune.criteria.statistics import attention as statistics
from vitprune.criteria.statistics import attention_curve, fisher_obs
from vitprune.criteria.statistics.attention_curve import AttentionCurve
from vitprune.model import families, size
from vitprune.model.inside import hooks
from vitprune.model.sites import attention
from vitprune.model.sites.attention import NoAttention, attention_sites
from vitprune.model.sites.ffn import linear
from vitprune.model.size import file_bytes
from vitprune.pruning import surgery
from vitprune.pruning.plan import Plan
from vitprune.pruning.repair import layerwise
from vitprune.pruning.whole import allocation, reach
from vitprune.pruning.whole.megabytes import Megabytes
from vitprune.pruning.whole.pricing import Macs, Parameters, Pricing
from vitprune.recipe.recipe import Recipe
from vitprune.runs import pipeline
from vitprune.runs.results import planning
from vitprune.runs.stages.prune import exported_mask, same_sizes
from vitprune.runs.state.run import Run

Found = tuple[nn.Module, Scores, Sequence[AttentionCurve]]
IDLE = "blocks.1.attn"


@pytest.fixture(scope="module", name="found")
def costs() -> Found:
    """A model whose second attention writes next to nothing, with its costs."""
    model, images = make_tiny_vit(), make_images(60)
    with torch.no_grad():
        for weight in model.get_submodule(f"{IDLE}.proj").parameters():
            weight.mul_(1e-3)
    sites, ffns = attention_sites(model), families.ffn_sites(model)
    batches = lambda: iter([(images, torch.arange(60) % 5)])  # noqa: E731
    of_ffns, moments = statistics.statistics(model, ffns, sites, batches, 0)
    made = [
        attention_curve.curve(s, linear(model, s.proj).weight, m, None) for s, m in zip(sites, moments, strict=True)
    ]
    curves = fisher_obs.curves_of(model, ffns, [(m.covariance, m.fisher, m.tokens) for m in of_ffns])
    return model, Scores.whole("fisher-obs", [site.name for site in ffns], curves), made


def gone(plan: Plan) -> list[str]:
    return [name for name, cut in plan.attention.items() if not cut.heads]


def counted(prices: Pricing, model: nn.Module) -> float:
    """What the model costs, counted anew in the word of the prices."""
    if isinstance(prices, Megabytes):
        return file_bytes(model, bound=True)
    return size.macs(model) if isinstance(prices, Macs) else size.parameters(model)


@pytest.mark.parametrize("kind", [Macs, Parameters, Megabytes])
def test_an_attention_that_does_nothing_goes_first(found: Found, kind: Callable[[nn.Module], Pricing]) -> None:
    model, scores, curves = found
    prices, first = kind(model), list[list[str]]()
    least = reach.least(model, attention_sites(model), prices) / prices.total * (1 + 1e-9)
    for share in np.linspace(0.9, least, 8).tolist():
        plans = [
            allocation.plan(model, scores, curves, prices.amount(share * prices.total), prices, depth=depth)
            for depth in (True, False)
        ]
        assert not gone(plans[1]) and plans[1].attention[IDLE].heads == 1
        first += [gone(plans[0])] if gone(plans[0]) else []
        for plan in plans:
            assert counted(prices, surgery.slim(model, plan)) <= share * prices.total
    assert first[0] == [IDLE]


@pytest.mark.parametrize("kind", [Macs, Parameters])
def test_the_smallest_model_has_no_attention_and_is_counted(found: Found, kind: Callable[[nn.Module], Pricing]) -> None:
    model, scores, curves = found
    prices = kind(model)
    least = reach.least(model, attention_sites(model), prices, depth=True)
    assert least < reach.least(model, attention_sites(model), prices)
    share = prices.amount(least)
    plan = allocation.plan(model, scores, curves, share * (1 + 1e-12), prices, depth=True)
    assert len(gone(plan)) == len(curves) and counted(prices, surgery.slim(model, plan)) == least
    with pytest.raises(UserError, match="is below what is left of this model"):
        allocation.plan(model, scores, curves, 0.99 * share, prices, depth=True)
    with pytest.raises(UserError, match="is below what is left of this model"):
        allocation.plan(model, scores, curves, share, prices)


def test_scores_without_costs_reach_it_too(found: Found) -> None:
    model, _, curves = found
    names = [site.name for site in families.ffn_sites(model)]
    rank = torch.arange(families.ffn_sites(model)[0].size, dtype=torch.float64)[None]
    scores, prices = Scores("variance", dict.fromkeys(names, rank)), Macs(model)
    share = prices.amount(reach.least(model, attention_sites(model), prices, depth=True)) * (1 + 1e-9)
    assert len(gone(allocation.plan(model, scores, curves, share, prices, depth=True))) == len(curves)
    whole = allocation.plan(model, scores, curves, 0.6, prices, depth=True)
    assert not gone(whole) and size.macs(surgery.slim(model, whole)) <= 0.6 * size.macs(model)


def test_other_criteria_lose_the_same_attention(found: Found) -> None:
    model, scores, curves = found
    ours = allocation.plan(model, scores, curves, 0.5, Macs(model), depth=True)
    theirs = same_sizes(ours, scores, curves, [])
    assert gone(ours) and gone(theirs) == gone(ours)
    assert surgery.masked_vs_sliced(model, ours, make_images(8)) < 1e-5


def test_the_vector_in_its_place_is_the_mean_of_what_is_missing(found: Found) -> None:
    """With nothing else pruned the repair must give the mean of what the dense attention writes, worked out beside it."""
    model, images = found[0], make_images(40)
    slim = copy.deepcopy(model)
    attention.without(slim, attention_sites(slim)[0])
    written = list[Tensor]()
    with torch.no_grad(), hooks.outputs_of(model.get_submodule("blocks.0.attn")) as given:
        model(images)
        written += given
    expected = np.asarray(written[0].double()).reshape(-1, written[0].shape[-1]).mean(0)
    layerwise.repair(slim, model, iter([images[:20], images[20:]]), attention=True)
    made = slim.get_submodule("blocks.0.attn")
    assert isinstance(made, NoAttention)
    np.testing.assert_allclose(made.bias.detach().double().numpy(), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("idle", "recovery"),
    [pytest.param("blocks.0.attn", "auto", marks=pytest.mark.slow), ("blocks.1.attn", "affine")],
)
def test_the_road_without_an_attention(tmp_path: Path, idle: str, recovery: str) -> None:
    """In the first block and in the last, which the exported file has for the class token alone."""
    content = recipe_dict(model_folder(tmp_path / "model"), image_folder(tmp_path / "images", 12), tmp_path / "out")
    for key in ("keep", "criterion"):
        del content[key]
    content |= {"criterion": {"probe_per_class": 100}, "budget": {"macs": 0.4}, "export": {"latency_batches": [1]}}
    content |= {"prune": ["ffn", "attention", "depth"], "recovery": recovery, "baselines": ["variance"]}
    file = tmp_path / "model" / "model.safetensors"
    weights = load_file(file)
    save_file({k: 1e-3 * x if k.startswith(f"{idle}.proj") else x for k, x in weights.items()}, file, {"format": "pt"})
    recipe = Recipe.model_validate(content)
    told: Any = planning.outlook(recipe, device="cpu")["plans"][0]
    with pytest.MonkeyPatch.context() as patch:
        quicken(patch)
        made = pipeline.run(recipe, "run")
    assert all(check["passed"] for check in made["checks"]), made["checks"]
    folder = tmp_path / "out" / "tiny"
    slim = vitprune.load(folder)
    assert isinstance(slim.get_submodule(idle), NoAttention)
    states = {path: list(state) for path, state in attention.slim(slim).items()}
    assert states[idle] == [0, 0] == json.loads((folder / "config.json").read_text())["vitprune"]["attention"][idle]
    assert made["model"]["attention"][idle]["slim"] == [0, 0]
    assert ("by block: none, " if idle == "blocks.0.attn" else ", none.") in (folder / "README.md").read_text("utf-8")
    row = next(block for block in told["blocks"] if f"blocks.{block['block']}.attn" == idle)
    assert (row["heads"], row["dim"]) == (0, 0) and row["nats"] >= row["gone"]["attention"]
    exported = json.loads((folder / "stages" / "export" / "all.json").read_text())["files"][0]
    assert exported["shortcut"] and exported["macs"] <= 0.4 * made["model"]["macs_dense"]
    assert told["macs_ratio"] == exported["macs"] / made["model"]["macs_dense"]
    pruned = json.loads((folder / "stages" / "prune" / "all.json").read_text())
    assert pruned["attention"][idle] == [0, 0] and pruned["masked_vs_sliced"] < 1e-4
    assert {row["macs"] for row in made["rows"] if row["criterion"] != "dense"} == {size.macs(slim)}
    assert {tuple(row["sites"]) for row in made["rows"] if row["criterion"] != "dense"} == {("ffn", "attention")}
    with Run.open(recipe, "cpu", Reporter(quiet=True)) as opened:
        assert gone(exported_mask(opened, None, opened.classes.every())) == [idle]


def test_without_depth_no_word_of_it(tmp_path: Path) -> None:
    base = {"name": "a", "budget": {"macs": 0.5}}
    assert not Recipe.model_validate(base).prunes_depth
    assert Recipe.model_validate(base | {"prune": ["ffn", "attention", "depth"]}).prunes_depth
    for prune in (["ffn", "depth"], ["depth"], ["attention", "depth"], ["ffn", "attention", "depth", "depth"]):
        with pytest.raises(ValueError, match="`prune` is"):
            Recipe.model_validate(base | {"prune": prune})
    with pytest.raises(ValueError, match="goes with a budget of the whole model"):
        Recipe.model_validate({"name": "a", "keep": 0.5, "prune": ["ffn", "attention", "depth"]})
