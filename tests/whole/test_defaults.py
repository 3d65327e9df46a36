"""What a recipe that asks for nothing gets: the setting that benchmarks/budget.py measures, where the model allows it."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file
from small import image_folder, model_folder, quicken, recipe_dict

import vitprune
from vitprune.core import memory
from vitprune.core.progress import Reporter
from vitprune.pruning.repair import layerwise
from vitprune.recipe import parse
from vitprune.recipe.recipe import Recipe
from vitprune.runs import pipeline
from vitprune.runs.state.run import Run


def plain(tmp_path: Path) -> dict[str, Any]:
    content = recipe_dict(model_folder(tmp_path / "model"), image_folder(tmp_path / "images"), tmp_path / "out")
    return {key: content[key] for key in ("name", "model", "data", "out", "export")}


def test_a_recipe_without_a_word_is_the_benchmarks_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    made = parse.parse("name: a")
    assert (made.criterion.name, made.allocation, made.recovery) == ("fisher-obs", "auto", "auto")
    assert (made.criterion.name, "layerwise") == importlib.import_module("budget").OURS
    assert made.criterion.among[0] == "fisher-obs"
    new = parse.parse(parse.TEMPLATE)
    assert (new.criterion.name, new.allocation, new.recovery) == (made.criterion.name, made.allocation, made.recovery)


def test_it_is_one_threshold_and_the_repair_of_every_layer(tmp_path: Path) -> None:
    content = plain(tmp_path) | {"keep": 0.3, "criterion": {"t": 3}, "baselines": []}
    asked = content | {"criterion": {"name": "fisher-obs", "t": 3}, "allocation": "global", "recovery": "layerwise"}
    with pytest.MonkeyPatch.context() as patch:
        quicken(patch)
        made = pipeline.run(Recipe.model_validate(content))
        other = pipeline.run(Recipe.model_validate(asked | {"name": "asked"}))
    assert made["result"]["criterion"] == "fisher-obs" and made["result"]["recovery"] == "layerwise"
    assert {row["recovery"] for row in made["rows"]} == {"none", "layerwise"}
    assert made["result"]["top1"] == other["result"]["top1"]
    for file in ("model.safetensors", "masks.safetensors"):
        first, second = (load_file(tmp_path / "out" / name / file) for name in (content["name"], "asked"))
        assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    assert vitprune.load(tmp_path / "out" / content["name"]) is not None
    assert not list((tmp_path / "out" / content["name"] / "stages" / "moments").glob("*.safetensors"))


@pytest.mark.parametrize(
    ("name", "how"), [("vit_tiny_patch16_224", "layerwise+head"), ("vit_small_patch16_18x2_224", "affine")]
)
def test_blocks_that_do_not_come_in_halves_are_repaired_by_affine(name: str, how: str, tmp_path: Path) -> None:
    model = timm.create_model(name, img_size=32, patch_size=16, embed_dim=24, depth=1, num_heads=2, num_classes=3)
    content = plain(tmp_path)
    run = Run.join(Recipe.model_validate(content), "cpu", Reporter(quiet=True))
    run.__dict__["loaded"] = SimpleNamespace(model=model.eval())
    assert run.recovery == how
    asked = Run.join(Recipe.model_validate(content | {"recovery": "mean"}), "cpu", Reporter(quiet=True))
    assert asked.recovery == "mean"  # what was asked for stays


def test_a_run_computes_the_dense_streams_once_per_class_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = plain(tmp_path) | {"criterion": {"t": 3}, "baselines": ["random"], "random_draws": 2}
    run = Run.join(Recipe.model_validate(content), "cpu", Reporter(quiet=True))
    first = run.dense_streams(np.array([3, 1]), 2)
    assert first is not None and not first.tensors and run.dense_streams(np.array([3, 1]), 2) is first
    assert run.dense_streams(np.array([3, 1]), 1) is not first
    other = run.dense_streams(np.array([1, 3]), 2)
    assert other is not None and other is not first and not other.tensors
    monkeypatch.setattr(memory, "free", lambda device: 10_000)
    assert run.dense_streams(np.array([3]), 1) is None
    monkeypatch.undo()
    filled = []
    with pytest.MonkeyPatch.context() as patch:
        quicken(patch)
        whole = layerwise.repair
        patch.setattr(layerwise, "repair", lambda *a, **k: (filled.append(len(k["kept"].tensors)), whole(*a, **k)))
        pipeline.run(Recipe.model_validate(content), "evaluate")
    assert len(filled) == 3 and filled[0] == 0 < filled[1] == filled[2]  # ours when pruned, the two draws when examined


def test_memory_below_a_containers_limit(tmp_path: Path) -> None:
    assert memory._left_to_the_container(tmp_path) == math.inf
    for name, text in (("memory.max", "max"), ("memory.current", "700"), ("memory.stat", "anon 5\ninactive_file 200")):
        (tmp_path / name).write_text(text + "\n")
    assert memory._left_to_the_container(tmp_path) == math.inf
    (tmp_path / "memory.max").write_text("1000\n")
    assert memory._left_to_the_container(tmp_path) == 500
