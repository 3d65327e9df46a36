"""Image towers of transformers as timm's models, and back: the same features, from files alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import vitprune
from vitprune.core.errors import UserError
from vitprune.model import families
from vitprune.model.inside.blockwise import halves
from vitprune.model.load import opening, saving
from vitprune.model.load.weights.towers import configs, writing
from vitprune.model.load.weights.towers import opening as towers
from vitprune.recipe import inputs, model_files
from vitprune.runs.state import skeleton

DINO = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
VIT = DINO | {"image_size": 32, "patch_size": 16, "intermediate_size": 40}
ROPE = VIT | {"image_size": 48, "num_register_tokens": 3, "rope_theta": 50.0}
TEXT = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 60}
TEXT |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "dinov2": ("Dinov2Model", DINO),
    "dinov2-gated": ("Dinov2Model", DINO | {"use_swiglu_ffn": True}),
    "dinov2-registers": ("Dinov2WithRegistersModel", DINO | {"num_register_tokens": 3}),
    "dinov3": ("DINOv3ViTModel", ROPE),
    "dinov3-gated": ("DINOv3ViTModel", ROPE | {"use_gated_mlp": True, "hidden_act": "silu", "intermediate_size": 44}),
    "dinov3-bare": ("DINOv3ViTModel", ROPE | {"query_bias": False, "value_bias": False, "num_register_tokens": 0}),
    "clip": ("CLIPVisionModel", VIT),
    "clip-projected": ("CLIPVisionModelWithProjection", VIT | {"projection_dim": 12}),
    "clip-whole": ("CLIPModel", {"text_config": TEXT, "vision_config": VIT, "projection_dim": 12}),
    "siglip": ("SiglipVisionModel", VIT),
    "siglip-whole": ("SiglipModel", {"text_config": TEXT, "vision_config": VIT}),
}
CFG = {
    "mean": (0.1, 0.2, 0.3),
    "std": (0.4, 0.5, 0.6),
    "interpolation": "bicubic",
    "crop_pct": 0.875,
    "crop_mode": "center",
}


def test_the_check_of_recipes_knows_the_same_towers():
    assert set(model_files.TOWERS) == set(configs.TOWERS)


def written(folder: Path, kind: str, **changed: Any) -> Any:
    """A tower with random weights, as transformers writes it into `folder`."""
    transformers = pytest.importorskip("transformers", reason="the extra `transformers` is not installed")
    name, sizes = KINDS[kind]
    made = getattr(transformers, name)
    torch.manual_seed(0)
    net = made(made.config_class(**(sizes | changed))).eval()
    for weight in net.parameters():
        nn.init.normal_(weight, std=0.2)
    net.save_pretrained(folder)
    return net


def features(net: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """What transformers gives: the vector of an image, and its tokens after the last norm (CLIP's are told before it)."""
    vision = getattr(net, "vision_model", net)
    with torch.no_grad():
        out = vision(images)
        tokens = vision.post_layernorm(out.last_hidden_state) if "CLIP" in type(net).__name__ else out.last_hidden_state
        pooled = net.visual_projection(out.pooler_output) if hasattr(net, "visual_projection") else out.pooler_output
    return pooled, tokens


def ours(folder: Path, prepared: Any = None) -> tuple[Any, Any]:
    record = json.loads((folder / "config.json").read_text())
    model, made, _ = towers.opened(record, folder / "config.json", folder / "model.safetensors", prepared)
    return model.eval(), made


def test_the_library_opens_a_tower_by_its_name_in_recipes(tmp_path):
    written(tmp_path / "hf", "dinov2")
    net, made = ours(tmp_path / "hf")
    images = torch.randn(2, 3, made.side, made.side)
    with torch.no_grad():
        assert torch.equal(vitprune.load(f"transformers:{tmp_path / 'hf'}")(images), net(images))
    with pytest.raises(UserError, match="give the folder as transformers:"):
        vitprune.load(tmp_path / "hf")


@pytest.mark.parametrize("kind", KINDS)
def test_a_tower_gives_the_features_that_transformers_gives(tmp_path, kind):
    """And goes back to a folder that transformers opens to the same features, the same bytes each time."""
    net = written(tmp_path / "hf", kind)
    model, made = ours(tmp_path / "hf")
    images = torch.randn(3, 3, made.side, made.side)
    pooled, tokens = features(net, images)
    with torch.no_grad():
        torch.testing.assert_close(model.forward_features(images), tokens, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(model(images), pooled, rtol=1e-5, atol=1e-5)
    assert model.num_classes == 0
    assert halves(model) is not None  # block by block, as timm's own
    name = writing.save(tmp_path / "back", model, CFG | {"input_size": (3, made.side, made.side)})
    transformers = pytest.importorskip("transformers")
    again, report = getattr(transformers, name).from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(report.values()), report
    for expected, found in zip((pooled, tokens), features(again.eval(), images), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    before = [(tmp_path / "back" / file).read_bytes() for file in writing.FILES]
    writing.save(tmp_path / "back", ours(tmp_path / "back")[0], CFG | {"input_size": (3, made.side, made.side)})
    assert before == [(tmp_path / "back" / file).read_bytes() for file in writing.FILES]
    assert transformers.AutoImageProcessor.from_pretrained(tmp_path / "back").image_mean == pytest.approx(
        [0.1, 0.2, 0.3]
    )


@pytest.mark.parametrize("kind", ["dinov2", "dinov2-registers"])
def test_dinov2_at_the_size_that_its_images_are_cropped_to(tmp_path, kind):
    """Its positions are resampled once, as transformers does it in every pass."""
    net = written(tmp_path, kind, image_size=70)
    crop = {"do_center_crop": True, "crop_size": {"height": 42, "width": 42}}
    model, made = ours(tmp_path, crop)
    images = torch.randn(2, 3, 42, 42)
    assert families.input_shape(model) == (3, 42, 42) and made.args["img_size"] == 42
    torch.testing.assert_close(model(images), features(net, images)[0], rtol=1e-4, atol=1e-5)
    for odd in (
        {"crop_size": {"height": 42, "width": 42}},
        crop | {"crop_size": {"height": 40, "width": 40}},
        [],
        None,
    ):
        assert families.input_shape(ours(tmp_path, odd)[0]) == (3, 70, 70)


@pytest.mark.parametrize("kind", ["dinov2", "clip-projected", "siglip"])
def test_a_tower_is_opened_by_its_folder_and_saved_as_our_own(tmp_path, kind):
    net = written(tmp_path / "hf", kind)
    prepared = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "resample": 3}
    (tmp_path / "hf" / "preprocessor_config.json").write_text(json.dumps(prepared))
    spec = inputs.Model(name=f"transformers:{tmp_path / 'hf'}")
    loaded = opening.open_model(spec)
    images = torch.randn(2, *families.input_shape(loaded.model))
    torch.testing.assert_close(loaded.model(images), features(net, images)[0].detach(), rtol=1e-5, atol=1e-5)
    assert loaded.data_config["mean"] == (0.1, 0.2, 0.3) and loaded.labels is None and loaded.outputs == 0
    assert model_files.model(spec).outputs == 0
    assert skeleton.opened(spec).data_config == loaded.data_config
    saving.save(tmp_path / "one", loaded, loaded.model, {})
    again = opening.open_model(inputs.Model(name=f"local-dir:{tmp_path / 'one'}"))
    assert again.outputs == 0
    for model in (again.model, vitprune.load(tmp_path / "one")):
        assert torch.equal(model(images), loaded.model(images))
        assert torch.equal(model.forward_features(images), loaded.model.forward_features(images))
    saving.save(tmp_path / "two", again, again.model, {})
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


@pytest.mark.parametrize(
    ("kind", "changed", "says"),
    [
        ("siglip", {"layer_norm_eps": 1e-3}, "layer_norm_eps 0.001: 1e-06 is what timm's siglip has"),
        ("siglip", {"vision_use_head": False}, "without its pooling is not supported"),
        ("dinov3", {"key_bias": True}, "key_bias True: False is what timm's dinov3 has"),
        ("dinov3", {"hidden_act": "silu"}, "hidden_act silu: gelu is what timm's dinov3 has"),
        ("dinov3", {"value_bias": False}, "value_bias False: True is what"),
        ("dinov3", {"rope_theta": "x"}, "rope_theta is x, a number above 1"),
        ("dinov3", {"num_attention_heads": 8}, "heads of 2 dimensions, which rotations"),
        ("clip", {"hidden_act": "relu"}, "hidden_act 'relu': gelu, quick_gelu"),
        ("clip", {"num_hidden_layers": 3}, "`encoder.layers.2.norm|`encoder.layers.2.layer_norm1.weight` is missing"),
        ("clip", {"num_hidden_layers": 400000}, "num_hidden_layers is 400000, a whole number up to"),
        ("clip", {"hidden_size": 1 << 14}, "config.json says"),
        ("dinov2", {"num_attention_heads": 3}, "no such tower can be"),
        ("clip-whole", {"vision_config": [1]}, "vision_config is not a block"),
        ("clip-projected", {"projection_dim": "x"}, "projection_dim is x, a whole number"),
        ("dinov2", {"architectures": ["Dinov2Backbone"]}, "Dinov2Backbone is not supported; there are .*Dinov2Model"),
    ],
)
def test_towers_that_are_refused(tmp_path, kind, changed, says):
    """In one line, before a tensor is read or made."""
    written(tmp_path, kind)
    record = json.loads((tmp_path / "config.json").read_text()) | changed
    (tmp_path / "config.json").write_text(json.dumps(record))
    for look in (opening.open_model, skeleton.opened):
        with pytest.raises(UserError, match=says) as error:
            look(inputs.Model(name=f"transformers:{tmp_path}"))
        assert "\n" not in str(error.value)


def test_weights_that_are_no_floats_or_not_there(tmp_path):
    written(tmp_path, "dinov2")
    held = load_file(tmp_path / "model.safetensors")
    record = json.loads((tmp_path / "config.json").read_text())
    place = tmp_path / "config.json", tmp_path / "other.safetensors"
    save_file(held | {"layernorm.bias": torch.zeros(16, dtype=torch.int64)}, place[1])
    with pytest.raises(UserError, match=r"`layernorm.bias` is of torch\.int64"):
        towers.opened(record, *place, None)
    save_file({key: value for key, value in held.items() if key != "layernorm.bias"}, place[1])
    with pytest.raises(UserError, match=r"`layernorm.bias` is missing, config.json says \(16,\)"):
        towers.opened(record, *place, None)
    save_file(
        {f"dinov2.{key}": value.half() for key, value in held.items()}, place[1]
    )  # inside of a classifier, in halves
    model, _, _ = towers.opened(record, *place, None)
    assert model.norm.weight.dtype == torch.float32


def test_models_that_no_tower_is_like(tmp_path):
    import timm

    sizes = {"img_size": 28, "patch_size": 14, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 0}
    cfg = CFG | {"input_size": (3, 28, 28)}
    for name, changed, says in (
        ("vit_small_patch14_dinov2", {"num_classes": 5}, "a tower has none; give model.head: none"),
        ("vit_small_patch14_dinov2", {"mlp_ratio": 2.5}, "a whole multiple of 16 hidden units, not 40"),
        ("vit_base_patch16_224", {}, "like no tower"),
        ("deit_tiny_distilled_patch16_224", {}, "VisionTransformerDistilled is no tower"),
        ("vit_base_patch16_clip_224", {"act_layer": "relu"}, "ReLU is not an activation"),
    ):
        with pytest.raises(UserError, match=says):
            writing.save(tmp_path, timm.create_model(name, **(sizes | changed)), cfg)
    assert not list(tmp_path.iterdir())


def test_dinov3_at_the_size_that_its_images_are_made_to(tmp_path):
    """Its positions are rotations, which follow; and what newer versions call its blocks is the same."""
    net = written(tmp_path, "dinov3")
    model, made = ours(tmp_path, {"size": {"height": 64, "width": 64}})
    images = torch.randn(2, 3, 64, 64)
    assert families.input_shape(model) == (3, 64, 64) and made.args["img_size"] == 64
    torch.testing.assert_close(model(images), features(net, images)[0], rtol=1e-4, atol=1e-5)
    for odd in ({"size": {"height": 60, "width": 60}}, {"size": {"shortest_edge": 64}}, {"size": [64]}):
        assert families.input_shape(ours(tmp_path, odd)[0]) == (3, 48, 48)
    held = load_file(tmp_path / "model.safetensors")
    layers = [key for key in held if "layer." in key and "norm" not in key.split(".")[0]]
    other = {(f"model.{key}" if key in layers else key).replace("model.model.", "model."): held[key] for key in held}
    plain = {key.removeprefix("model."): value for key, value in held.items()}
    for state in (other, plain):
        save_file(state, tmp_path / "model.safetensors")
        assert torch.equal(ours(tmp_path)[0](images[..., :48, :48]), ours(tmp_path)[0](images[..., :48, :48]))
        torch.testing.assert_close(ours(tmp_path, None)[0].norm.weight, net.norm.weight)
