"""Every timm name of the families' modules, held against docs/models.json; and what the list is about: input sizes, stems,
channels, FFNs without a bias."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from small import image_folder, plan_for, quicken, recipe_dict
from torch import nn
from typer.testing import CliRunner

import vitprune
from vitprune.cli import app, listing
from vitprune.core.errors import UserError
from vitprune.deploy.onnx import exporting
from vitprune.model import families
from vitprune.model.load import build, opening, saving
from vitprune.model.sites import ffn
from vitprune.pruning import surgery
from vitprune.recipe import inputs, recipe
from vitprune.runs import pipeline

LIST = Path(__file__).parents[2] / "docs" / "models.json"
LABELS = torch.arange(10) % 5
AIM = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 5}


@pytest.fixture(scope="module", name="listed")
def listed_fixture() -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in json.loads(LIST.read_text())}


@pytest.mark.parametrize("module", listing.MODULES)
def test_the_list_says_of_a_modules_first_and_last_what_the_command_says(listed, monkeypatch, module):
    few = [names[0], names[-1]] if (names := timm.list_models(module=module)) else []
    monkeypatch.setattr(timm, "list_models", lambda module: few)
    monkeypatch.setattr(listing, "MODULES", (module,))
    assert list(listing.every()) == [listed[name] for name in few]


@pytest.mark.slow
def test_the_list_is_what_the_command_says(listed):
    """All of it, built on the meta device; `vitprune models --all --json > docs/models.json` writes it."""
    found = {row["name"]: row for row in listing.every()}
    assert found == listed
    assert len(found) > 300


def test_the_list_names_every_model_of_the_modules(listed):
    assert set(listed) == {name for module in listing.MODULES for name in timm.list_models(module=module)}
    refused = {row["why_not"] for row in listed.values()} - {None}
    assert all(reason.partition(":")[0] in ("model", "patch_embed", "blocks.0") for reason in refused)
    assert sum(row["why_not"] is None for row in listed.values()) >= 307


def test_every_listed_size_is_timms(listed):
    """NaFlexViT's 14 among them, whose grid of position embeddings is another's."""
    for name, row in listed.items():
        if row["why_not"] is None:
            cfg = timm.get_pretrained_cfg(name)
            assert tuple(row["input_size"]) == tuple(cfg.input_size), name
            assert row["classifier"] == bool(cfg.num_classes), name
    assert sum("naflex" in name for name in listed) == 14


@pytest.mark.parametrize("as_json", [True, False])
def test_the_command(monkeypatch, as_json):
    monkeypatch.setattr(listing, "MODULES", ("vision_transformer_sam", "hiera"))
    shown = CliRunner().invoke(app.app, ["models", "--all", *(["--json"] if as_json else [])]).stdout
    if as_json:
        rows = {row["name"]: row for row in json.loads(shown)}
        assert rows["hiera_tiny_224"]["why_not"] is None
        assert "VisionTransformerSAM" in rows["samvit_base_patch16"]["why_not"]
    else:
        lines = {line.split()[0]: line for line in shown.splitlines()}
        assert lines["hiera_tiny_224"].split(maxsplit=1)[1] == "yes, 3x224x224, FFN"
        assert "no: model: VisionTransformerSAM is not supported" in lines["samvit_base_patch16"]


def test_on_the_meta_device_a_model_is_what_it_is():
    for name, args in (("swinv2_tiny_window8_256", {"depths": (1, 1, 1, 1)}), ("vit_tiny_patch16_224", {"depth": 2})):
        real, empty = build.build(name, args), build.on_meta(name, args)
        assert all(weight.is_meta for weight in empty.parameters())
        shapes = lambda model: {key: value.shape for key, value in model.state_dict().items()}  # noqa: E731
        assert shapes(real) == shapes(empty)


# --- input sizes and channels

NAFLEX = {"patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2, "num_classes": 5}


@pytest.mark.parametrize(
    ("args", "size"),
    [({}, (384, 384)), ({"img_size": 32}, (32, 32)), ({"img_size": [48, 32]}, (48, 32)),
     ({"pos_embed_grid_size": [2, 2]}, (384, 384)), ({"pos_embed_grid_size": None, "img_size": 64}, (64, 64))],
)  # fmt: skip
def test_a_naflexvit_has_timms_size_or_the_one_asked_for(args, size):
    loaded = opening.open_model(inputs.Model(name="naflexvit_base_patch16_gap", args=NAFLEX | args))
    assert families.input_shape(loaded.model) == (3, *size) == tuple(loaded.data_config["input_size"])


def test_a_naflexvits_folder_keeps_its_size(tmp_path):
    loaded = opening.open_model(inputs.Model(name="naflexvit_base_patch16_gap", args=NAFLEX | {"img_size": 32}))
    saving.save(tmp_path / "a", loaded, loaded.model, {})
    again = opening.open_model(inputs.Model(name=f"local-dir:{tmp_path / 'a'}"))
    assert families.input_shape(again.model) == (3, 32, 32) == tuple(again.data_config["input_size"])
    for nonsense in ([3, "a", 1], [3, 1 << 40, 1], "x", [3, 0, 5]):
        again.model.pretrained_cfg = {"input_size": nonsense}
        assert families.input_shape(again.model) == (3, 128, 128)  # its grid


@pytest.mark.parametrize("name", ["vit_tiny_r_s16_p8_224", "vit_base_resnet26d_224", "vit_base_mci_224"])
def test_a_convolutional_stem_is_refused_in_one_line(name, tmp_path):
    """Accepted once, it crashed at the first image."""
    model = build.on_meta(name, {})
    with pytest.raises(UserError, match=r"patch_embed: HybridEmbed is not supported"):
        families.ffn_sites(model)
    if name.startswith("vit_tiny"):
        with pytest.raises(UserError, match="no convolutional stem is") as refused:
            opening.open_model(inputs.Model(name=name))
        assert "\n" not in str(refused.value)
        small = timm.create_model(name, num_classes=5)
        with pytest.raises(UserError, match="no convolutional stem is"):
            vitprune.evaluate(small, torch.zeros(1, 3, 224, 224), torch.zeros(1, dtype=torch.int64))


@pytest.mark.parametrize("channels", [2, 4, 12])
def test_channels_that_no_image_file_has_are_refused(tmp_path, channels):
    """In recipes, before any work; tensors of any number of channels are the library's as before."""
    content = recipe_dict("", image_folder(tmp_path / "images", 4, "RGB"), tmp_path / "out")
    args = {
        "img_size": 28,
        "patch_size": 7,
        "embed_dim": 16,
        "depth": 1,
        "num_heads": 2,
        "num_classes": 3,
        "in_chans": channels,
    }
    content["model"] = {"name": "vit_tiny_patch16_224", "args": args}
    with pytest.raises(UserError, match=rf"{channels} channels; files give 1 \(grey\) or 3"):
        pipeline.run(recipe.Recipe.model_validate(content))
    assert not (tmp_path / "out" / "tiny" / "stages").exists()
    model, images = timm.create_model("vit_tiny_patch16_224", **args), torch.randn(6, channels, 28, 28)
    assert len(vitprune.discover(model, images, torch.arange(6) % 3).rows) == 1


# --- fc2 without a bias


def aim() -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model("aimv2_large_patch14_224", **AIM).double()
    for weight in model.parameters():
        weight.data.add_(0.2 * torch.randn_like(weight))
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("how", ["none", "mean", "affine", "sequential", "layerwise"])
def test_an_ffn_without_a_bias_gets_one_where_a_repair_needs_it(how):
    """Zeros where it had none: before the repair nothing changes, and none is there when nothing is repaired."""
    model, images = aim(), torch.randn(10, 3, 16, 16, generator=torch.Generator().manual_seed(1)).double()
    assert model.blocks[0].mlp.fc2.bias is None
    slim = vitprune.prune(
        model, vitprune.discover(model, images, LABELS), keep=0.5, recovery=how, images=images  # type: ignore[arg-type]
    )  # fmt: skip
    assert (slim.blocks[0].mlp.fc2.bias is None) == (how == "none")
    assert model.blocks[0].mlp.fc2.bias is None
    bare = vitprune.prune(model, vitprune.discover(model, images, LABELS), keep=0.5, recovery="none")
    gaps = [float((m(images) - model(images)).norm()) for m in (bare, slim)]
    assert how in ("none", "mean") or gaps[1] < 0.9 * gaps[0]
    before = bare(images)
    ffn.add_biases(bare, families.ffn_sites(bare))
    assert torch.equal(bare(images), before)


@pytest.mark.parametrize("how", ["none", "affine"])
def test_a_folder_with_an_added_bias_loads_again(tmp_path, how):
    """And is pruned once more, and saved as the same bytes; plain timm is told what to use."""
    loaded = opening.open_model(inputs.Model(name="aimv2_large_patch14_224", args=AIM))
    images = torch.randn(10, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    slim = vitprune.prune(
        loaded.model, vitprune.discover(loaded.model, images, LABELS), keep=0.5, recovery=how, images=images  # type: ignore[arg-type]
    )  # fmt: skip
    saving.save(tmp_path / "a", loaded, slim, {"note": "tiny"})
    assert torch.equal(vitprune.load(tmp_path / "a")(images), slim(images))
    again = opening.open_model(inputs.Model(name=f"local-dir:{tmp_path / 'a'}"))
    saving.save(tmp_path / "b", again, again.model, again.about)
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    half = plan_for(again.model, [torch.arange(site.size) % 2 == 0 for site in families.ffn_sites(again.model)])
    saving.save(tmp_path / "c", again, surgery.slim(again.model, half), again.about)
    assert torch.equal(vitprune.load(tmp_path / "c")(images), surgery.slim(again.model, half)(images))
    vitprune.export(slim, tmp_path / "x.onnx")
    assert max(exporting.parity(slim, tmp_path / "x.onnx", images).values()) < 1e-4


def test_a_folder_that_lies_about_an_added_bias_is_refused(tmp_path):
    loaded = opening.open_model(inputs.Model(name="aimv2_large_patch14_224", args=AIM))
    saving.save(tmp_path / "a", loaded, loaded.model, {})
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    config["vitprune"] = {"widths": config["vitprune"]["widths"], "added_biases": True}
    (tmp_path / "a" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"fc2\.bias"):
        vitprune.load(tmp_path / "a")


def test_a_whole_run_of_a_model_without_biases(tmp_path, monkeypatch):
    """From a recipe to a folder that loads, with the default repair."""
    quicken(monkeypatch)
    content = recipe_dict("", image_folder(tmp_path / "images", 6, "RGB"), tmp_path / "out", recovery="auto")
    content["model"] = {"name": "aimv2_large_patch14_224", "args": AIM | {"num_classes": 3}}
    content["criterion"], content["baselines"] = {"name": "fisher-obs", "t": 3}, ["random"]
    pipeline.run(recipe.Recipe.model_validate(content))
    slim = vitprune.load(tmp_path / "out" / "tiny")
    assert all(block.mlp.fc2.bias is not None for block in slim.blocks)
