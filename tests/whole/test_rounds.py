"""`rounds: R`: score, cut a part, repair, score what is left; against a replica that prunes and scores by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small import WIDTH, image_folder, model_folder, quicken, recipe_dict

import vitprune
from vitprune.core import progress
from vitprune.model import families
from vitprune.pruning.budget import Budget
from vitprune.recipe.recipe import Recipe
from vitprune.runs import pipeline
from vitprune.runs.state.run import Run


@pytest.fixture(scope="module", name="content")
def small_recipe(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("rounds")
    made = recipe_dict(model_folder(folder / "model"), image_folder(folder / "images"), folder / "out")
    return made | {"baselines": [], "keep": 0.25, "criterion": {"name": "variance", "probe_per_class": 100}}


def run(content: dict[str, Any], out: Path, **changed: Any) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        quicken(patch)
        return pipeline.run(Recipe.model_validate({**content, "out": str(out), **changed}), "evaluate")


def masks(folder: Path) -> list[torch.Tensor]:
    kept = load_file(folder / "masks.safetensors")
    return [kept[f"keep.blocks.{i}.mlp"] for i in range(len(kept))]


def variances(model: torch.nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    """Per block the variance of every hidden unit: over all tokens, in the last block over the class token."""
    seen: list[torch.Tensor] = []
    hooks = [b.mlp.fc2.register_forward_pre_hook(lambda _, args: seen.append(args[0])) for b in model.blocks]
    model(images)
    for hook in hooks:
        hook.remove()
    seen[-1] = seen[-1][:, :1]
    return [h.flatten(0, 1).double().var(0, correction=0) for h in seen]


@pytest.mark.parametrize("recovery", ["none", "affine"])
def test_two_rounds_are_two_prunings_by_hand(content: dict[str, Any], tmp_path: Path, recovery: str) -> None:
    made = Recipe.model_validate({**content, "out": str(tmp_path), "recovery": recovery, "rounds": 2})
    run(content, tmp_path, recovery=recovery, rounds=2)
    with Run.open(made, "cpu", progress.Reporter(quiet=True)) as opened:
        opened.split_record  # noqa: B018 (read once, from the run above)
        images = torch.cat([x for x, _ in opened.images.batches(opened.split.probe, 16)])
        dense = opened.loaded.model
        first = vitprune.discover(dense, images, torch.zeros(len(images), dtype=torch.long), criterion="variance", t=8)
        half = vitprune.prune(dense, first, keep=0.5, recovery=recovery, images=images)  # type: ignore[arg-type]
    order = [block[0].argsort(descending=True)[: WIDTH // 2].sort().values for block in first.rows]
    left = variances(half, images)
    again = vitprune.discover(half, images, torch.zeros(len(images), dtype=torch.long), criterion="variance", t=8)
    for found, keep, variance, score in zip(masks(tmp_path / "tiny"), order, left, again.sites.values(), strict=True):
        torch.testing.assert_close(score[0].double(), variance, rtol=1e-4, atol=1e-7)
        expected = torch.zeros(WIDTH, dtype=torch.bool)
        expected[keep[score[0].argsort(descending=True)[: int(0.25 * WIDTH)]]] = True
        assert torch.equal(found, expected)


def test_a_later_rounds_curves_are_those_of_what_is_left(content: dict[str, Any], tmp_path: Path) -> None:
    """`budgeted` by curves: nothing that a round removed comes back, and the widths are those of a second pruning by hand."""
    criterion, settings = {"name": "obs", "probe_per_class": 100}, {"recovery": "none", "allocation": "budgeted"}
    made = Recipe.model_validate({**content, "out": str(tmp_path), "criterion": criterion, "rounds": 2, **settings})
    run(content, tmp_path, criterion=criterion, rounds=2, **settings)
    with Run.open(made, "cpu", progress.Reporter(quiet=True)) as opened:
        images = torch.cat([x for x, _ in opened.images.batches(opened.split.probe, 16)])
        dense, labels = opened.loaded.model, torch.zeros(len(images), dtype=torch.long)
        first = vitprune.discover(dense, images, labels, criterion="obs")
        half = Budget(0.5, "budgeted").plan(first, opened.sites)
        left = vitprune.prune(dense, first, keep=0.5, allocation="budgeted", recovery="none")
        again = vitprune.discover(left, images, labels, criterion="obs")
        sites = families.ffn_sites(left)
    assert again.curves is not None
    quarter = sum(keep.numel() for keep in half.masks) // 4
    total = sum(site.size for site in sites)
    second = Budget(quarter / total, "budgeted").plan(again, sites)
    for found, before, after in zip(masks(tmp_path / "tiny"), half.masks, second.masks, strict=True):
        expected = torch.zeros_like(before)
        expected[before.nonzero().flatten()[after]] = True
        assert torch.equal(found, expected)


def test_the_budget_is_met_and_the_exported_model_is_the_rows(content: dict[str, Any], tmp_path: Path) -> None:
    criterion = {"name": "jas", "t": 40, "nodes": 2, "probe_per_class": 4}
    changed = {"criterion": criterion, "rounds": 3, "allocation": "global", "groups": {"a": ["circle", "cross"]}}
    made = run(content, tmp_path, **changed)
    kept = masks(tmp_path / "tiny" / "a")
    assert sum(int(k.sum()) for k in kept) == int(0.25 * WIDTH) * len(kept)
    assert made["result"]["kept"] == pytest.approx(sum(int(k.sum()) for k in kept) / (WIDTH * len(kept)))
    again = run(content, tmp_path, **changed)
    assert all(stage["skipped"] for stage in again["stages"])


@pytest.mark.parametrize("wrong", [{"compare": {"criteria": ["jas", "variance"]}}, {"criterion": {"name": "random"}}])
def test_rounds_that_make_no_sense_are_refused(content: dict[str, Any], wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="rounds"):
        Recipe.model_validate({**content, "rounds": 2, **wrong})
