"""`budget: {size_mb: …}`: no file that is written is larger, whatever the family; the price is that of the files."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save as to_bytes
from small import image_folder, model_folder, quicken, recipe_dict, tiny_model
from torch import nn

import vitprune
from vitprune.core.errors import UserError
from vitprune.deploy.onnx import exporting
from vitprune.model import families, size
from vitprune.model.inside import first_token
from vitprune.model.sites import base
from vitprune.model.sites.attention import attention_sites, resize
from vitprune.model.sites.ffn import add_biases
from vitprune.pruning.whole.megabytes import MEGABYTE, Megabytes
from vitprune.recipe.recipe import Recipe
from vitprune.runs import pipeline

SMALL: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 3}
SWIN: dict[str, Any] = {"img_size": 32, "embed_dim": 16, "depths": (1, 1), "num_heads": (2, 2), "window_size": 4}
SLOW = pytest.mark.slow
MODELS = [
    pytest.param("deit3_small_patch16_224", SMALL, id="deit3"),
    pytest.param("vit_tiny_patch16_224", SMALL, id="vit", marks=SLOW),
    pytest.param("aimv2_large_patch14_224", SMALL, id="aimv2", marks=SLOW),
    pytest.param("eva02_base_patch14_224", SMALL, id="eva02", marks=SLOW),
    pytest.param("swin_tiny_patch4_window7_224", SWIN, id="swin", marks=SLOW),
]


@pytest.fixture(scope="module", name="content")
def small_recipe(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("megabytes")
    made = recipe_dict(model_folder(folder / "model"), image_folder(folder / "images", 20), folder / "out")
    del made["keep"]
    return made | {"criterion": {"probe_per_class": 100}, "baselines": [], "budget": {"size_mb": 0.03}}


def run(content: dict[str, Any], out: Path, until: str = "prune", **changed: Any) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        quicken(patch)
        return pipeline.run(Recipe.model_validate({**content, "out": str(out), **changed}), until)


def onnx_bytes(folder: Path) -> Callable[..., int]:
    def weigh(model: nn.Module, shortcut: bool = True) -> int:
        short = shortcut and first_token.why_not(model) is None
        exporting.export(first_token.of(model) if short else model, folder / "model.onnx", {})
        return exporting.bytes_of(folder / "model.onnx")

    return weigh


def uneven(model: nn.Module) -> tuple[nn.Module, float]:
    """The model with sites of every size, repaired as far as files can tell: biases added, no two weights alike; and the
    number of weights that its sites lost, counted one by one."""
    made, before = copy.deepcopy(model), sum(p.numel() for p in model.parameters())
    try:
        for k, site in enumerate(attention_sites(made)):
            resize(made, site, 1 + k % 2, site.dims[k % len(site.dims)])
    except UserError:
        pass  # of this family only FFN units can go
    for k, ffn in enumerate(families.ffn_sites(made)):
        base.keep_units(made, ffn, torch.arange(ffn.size - 5 - 2 * k))
    after = sum(p.numel() for p in made.parameters())
    add_biases(made, families.ffn_sites(made))
    for weight in made.parameters():
        weight.detach().copy_(torch.randn(weight.shape))
    return made, float(before - after)


def priced(prices: Megabytes, dense: nn.Module, slim: nn.Module) -> float:
    """Bytes of the slim model by the prices."""
    total = prices.total
    for was, is_ in zip(families.ffn_sites(dense), families.ffn_sites(slim), strict=True):
        whole, left = prices.ffn(was, torch.tensor([was.size, is_.size]).numpy())
        total += left - whole
    try:
        pairs = list(zip(attention_sites(dense), attention_sites(slim), strict=True))
    except UserError:
        return total
    return total + sum(prices.attention(a, b.heads, b.dim) - prices.attention(a, a.heads, a.dim) for a, b in pairs)


@pytest.mark.parametrize(("name", "args"), MODELS)
def test_no_file_weighs_more_than_its_price(name: str, args: dict[str, Any], tmp_path: Path) -> None:
    model = timm.create_model(name, **args).eval().requires_grad_(False)
    weigh = onnx_bytes(tmp_path)
    prices = Megabytes(model, weigh)
    slim, lost = uneven(model)
    of_checkpoint = len(to_bytes({k: v.contiguous() for k, v in slim.state_dict().items()}, metadata={"format": "pt"}))
    bound = priced(prices, model, slim)
    assert max(of_checkpoint, weigh(slim), weigh(slim, False)) <= bound  # the shortcut may turn out not to be had
    assert bound >= prices.total - 4 * lost  # what the prices save is in the weights that are gone
    alone = Megabytes(model)
    assert of_checkpoint <= priced(alone, model, slim) <= alone.total


def test_a_checkpoint_is_weighed_without_writing_it() -> None:
    model = tiny_model()
    made = len(to_bytes(dict(model.state_dict()), metadata={"format": "pt"}))
    assert made == size.file_bytes(model) <= size.file_bytes(model, bound=True) <= made + 8 * len(model.state_dict())


def test_the_files_of_a_run_lie_within_the_budget(content: dict[str, Any], tmp_path: Path) -> None:
    content = content | {"export": {"onnx": True, "latency_batches": [1]}}
    run(content, tmp_path, "export", budget={"size_mb": 0.026})
    folder = tmp_path / "tiny"
    sizes = [(folder / file).stat().st_size for file in ("model.safetensors", "model.onnx")]
    assert max(sizes) <= 26000 and max(sizes) > 23000
    assert json.loads((folder / "config.json").read_text())["vitprune"]["budget"] == {"size_mb": 0.026}


def test_only_files_that_are_written_count_and_a_head_that_goes_is_not_paid_for(
    content: dict[str, Any], tmp_path: Path
) -> None:
    run(content, tmp_path)
    ours = (tmp_path / "tiny" / "model.safetensors").stat().st_size
    assert 29500 < ours <= 30000
    run(content, tmp_path, classes=["circle", "cross"], head="own")
    narrow = vitprune.load(tmp_path / "tiny")
    assert narrow.num_classes == 2 and 29500 < (tmp_path / "tiny" / "model.safetensors").stat().st_size <= 30000


def test_another_set_of_files_is_another_plan(content: dict[str, Any]) -> None:
    made = [
        Recipe.model_validate({**content, "budget": budget, "export": export})
        for budget, export in (
            ({"size_mb": 1}, {"onnx": True}),
            ({"size_mb": 1}, {"onnx": False}),
            ({"latency": 0.5}, {"latency_batches": [1, 8]}),
            ({"latency": 0.5}, {"latency_batches": [1]}),
            ({"latency": 0.5}, {"latency_batches": [1], "shortcut": False}),
        )
    ]
    assert (
        len({recipe.fingerprint() for recipe in made}) == len({str(recipe.pruning()) for recipe in made}) == len(made)
    )


def test_the_smallest_figure_that_can_be_had_is_said(content: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"budget: size_mb: 0.001 is below .* as small as it may be, 0\.\d+; raise it"
    ) as told:
        run(content, tmp_path, budget={"size_mb": 0.001})
    least = float(str(told.value).split("may be, ")[1].split(";")[0])
    run(content, tmp_path, budget={"size_mb": least})
    assert (tmp_path / "tiny" / "model.safetensors").stat().st_size <= least * MEGABYTE


def test_the_library_takes_megabytes() -> None:
    model, images = tiny_model(), torch.randn(24, 1, 28, 28)
    scores = vitprune.discover(model, images, torch.arange(24) % 3, criterion="fisher-obs")
    slim = vitprune.prune(model, scores, budget={"size_mb": 0.025}, images=images)
    made = len(to_bytes({k: v.contiguous() for k, v in slim.state_dict().items()}, metadata={"format": "pt"}))
    assert 24000 < made <= 25000
    with pytest.raises(UserError, match="`latency` needs a run"):
        vitprune.prune(model, scores, budget={"latency": 0.5}, images=images)
