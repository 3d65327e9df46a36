"""Classifiers of torchvision and transformers lose their head: the features before it, whole roads, folders and files."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from small import picture, quicken, recipe_dict
from torch import Tensor, nn

import vitprune
from vitprune.core.errors import UserError
from vitprune.deploy import runtime
from vitprune.model import families
from vitprune.model.declared import Foreign
from vitprune.model.inside import backbone
from vitprune.model.load import build, opening
from vitprune.pruning import surgery
from vitprune.pruning.plan import Plan
from vitprune.recipe.inputs import Model
from vitprune.recipe.recipe import Recipe
from vitprune.runs import pipeline

TV: dict[str, Any] = {
    "patch_size": 14, "num_layers": 2, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 64, "image_size": 28, "num_classes": 3,
}  # fmt: skip
HF: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 28,
    "patch_size": 14, "num_classes": 3,
}  # fmt: skip
DINO = {key: value for key, value in HF.items() if key != "intermediate_size"}
NAMES: dict[str, dict[str, Any]] = {
    "torchvision:vit_b_16": TV,
    "transformers:ViTForImageClassification": HF,
    "transformers:DeiTForImageClassification": HF,
    "transformers:DeiTForImageClassificationWithTeacher": HF,
    "transformers:Dinov2ForImageClassification": DINO,
    "transformers:Dinov2WithRegistersForImageClassification": DINO | {"num_register_tokens": 2},
}


def classifier(name: str, seed: int = 0) -> Foreign:
    if name.startswith("transformers"):
        pytest.importorskip("transformers", reason="the extra `transformers` is not installed")
    torch.manual_seed(seed)
    model = build.build(name, NAMES[name])
    for weight in model.parameters():
        nn.init.normal_(weight, std=0.2)
    return cast("Foreign", model.eval().requires_grad_(False))


def logits(whole: Foreign, pooled: Tensor, tokens: Tensor) -> Tensor:
    """What the heads that were taken away say of the features."""
    if not hasattr(whole.net, "cls_classifier"):
        return whole.net.get_submodule(whole.heads[0])(pooled)  # type: ignore[no-any-return]
    heads = [whole.net.get_submodule(path) for path in whole.heads]
    return cast("Tensor", sum(head(tokens[:, i]) for i, head in enumerate(heads)) / 2)


@pytest.mark.parametrize("name", NAMES)
def test_the_features_are_what_the_head_has_read(name: str) -> None:
    """To the bit: the head that was there gives its own logits of them."""
    whole = classifier(name)
    bare = copy.deepcopy(whole)
    backbone.remove_head(bare)
    x = torch.randn(3, 3, 28, 28)
    found = backbone.of(bare)
    assert backbone.of(whole) is None and found is not None and found.reads == "tokens"
    told = found.features(x)
    assert torch.equal(logits(whole, told.pooled, told.tokens), whole(x))
    assert torch.equal(bare(x), told.pooled) and torch.equal(bare.forward_features(x), told.tokens)
    registers = 2 if "Registers" in name else 0
    assert told.tokens.shape == (3, 4 + found.prefix, 16) and found.prefix == 1 + ("DeiT" in name) + registers
    assert backbone.width(bare) == (32 if "Dinov2" in name else 16)
    gone = {key for key in whole.state_dict() if key not in bare.state_dict()}
    assert gone and all("head" in key or "classifier" in key for key in gone)
    again = build.build(name, NAMES[name] | {"num_classes": 0})
    assert again.state_dict().keys() == bare.state_dict().keys() and families.reads(again) == "tokens"
    backbone.read(bare, "pooled")
    assert families.reads(bare) == "pooled"


@pytest.mark.parametrize("name", NAMES)
def test_masked_is_sliced_without_a_head(name: str) -> None:
    model = build.build(name, NAMES[name] | {"num_classes": 0}) if "torch" in name else classifier(name)
    backbone.remove_head(model)
    model.eval().requires_grad_(False)
    keep = {site.name: torch.arange(site.size) % 3 > 0 for site in families.ffn_sites(model)}
    assert surgery.masked_vs_sliced(model, Plan(keep), torch.randn(2, 3, 28, 28)) < 1e-5


def test_a_model_of_ones_own_keeps_its_head_and_the_line_names_a_way() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.GELU(), nn.Linear(8, 3))
    model = vitprune.declare(net, [("1", "2", "3")], input_shape=(3, 2, 2), num_classes=3)
    with pytest.raises(UserError, match="nobody says what the features of a Sequential are; take timm's model"):
        backbone.remove_head(model)


@pytest.mark.parametrize("name", ["torchvision:vit_b_16", pytest.param(list(NAMES)[4], marks=pytest.mark.slow)])
def test_the_whole_road_of_another_librarys_classifier(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A flat folder, costs, repair, exam, folder, ONNX; and the folder opens again to the features that were examined."""
    quicken(monkeypatch)
    images = tmp_path / "images"
    images.mkdir()
    for i in range(24):
        picture(i % 3, i, "RGB").save(images / f"{i:02d}.png")
    whole = classifier(name)
    torch.save(whole.net.state_dict(), tmp_path / "weights.pth")
    spec = {"name": name, "head": "none", "args": NAMES[name], "checkpoint": str(tmp_path / "weights.pth")}
    own = {
        "model": spec, "criterion": {"name": "fisher-obs"}, "recovery": "auto", "baselines": ["random"],
        "budget": {"macs": 0.75}, "keep": None, "export": {"onnx": True, "latency_batches": [1]},
    }  # fmt: skip
    made = recipe_dict(tmp_path, images, tmp_path / "runs") | own
    record = pipeline.run(Recipe.model_validate({key: value for key, value in made.items() if value is not None}))
    result, folder = record["result"], tmp_path / "runs" / str(made["name"])
    assert record["complete"] and not [one for one in record["checks"] if not one["passed"]]
    assert 0.3 < result["cosine"] < 1 and result["fvu"] > 0 and 0 < result["tokens_cosine"] < 1
    slim = cast("Any", vitprune.load(folder))
    x = torch.randn(3, 3, 28, 28)
    assert json.loads((folder / "config.json").read_text())["num_classes"] == 0 and slim.num_classes == 0
    pooled, tokens = runtime.outputs(runtime.session(folder / "model.onnx"), x.numpy())
    np.testing.assert_allclose(pooled, slim(x).numpy(), atol=1e-4)
    np.testing.assert_allclose(tokens, slim.forward_features(x).numpy(), atol=1e-4)
    if "transformers" in name:
        assert len(slim.net(x, output_hidden_states=True).hidden_states) == 3


def test_a_recipe_takes_the_head_of_another_librarys_classifier(tmp_path: Path) -> None:
    torch.save(classifier("torchvision:vit_b_16").net.state_dict(), tmp_path / "w.pth")
    spec = Model(name="torchvision:vit_b_16", head="none", args=TV, checkpoint=tmp_path / "w.pth")
    loaded = opening.open_model(spec)
    assert loaded.outputs == 0 and loaded.labels is None
    whole = opening.open_model(spec.model_copy(update={"head": None}))
    x = torch.randn(2, 3, 28, 28)
    assert torch.equal(cast("Any", whole.model).net.heads(loaded.model(x)), whole.model(x))
