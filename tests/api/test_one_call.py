"""A model made smaller in one call, and saved in one: what is loaded again is what was there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import vitprune
from vitprune import UserError
from vitprune.demo.model import __path__ as bundled  # type: ignore[attr-defined]

TINY: dict[str, Any] = {"embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 5}
KINDS = {
    "vit": ("vit_tiny_patch16_224", TINY | {"img_size": 32, "patch_size": 8}),
    "grey": ("vit_tiny_patch16_224", TINY | {"img_size": (24, 16), "patch_size": 8, "in_chans": 1}),
    "dinov2": ("vit_small_patch14_reg4_dinov2", TINY | {"img_size": 28, "patch_size": 14}),
    "deit": ("deit_tiny_distilled_patch16_224", TINY | {"img_size": 32, "patch_size": 16}),
    "pooled": (
        "vit_tiny_patch16_224",
        TINY | {"img_size": 32, "patch_size": 8, "global_pool": "avg", "class_token": False},
    ),
}


def made(kind: str) -> tuple[torch.nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    name, args = KINDS[kind]
    model = timm.create_model(name, **args).eval()
    for weight in model.parameters():
        weight.data += 0.1 * torch.randn_like(weight)
    size = model.patch_embed.img_size
    return model, torch.randn(12, args.get("in_chans", 3), *size)


@pytest.mark.parametrize("kind", ["vit", "grey", "dinov2", "deit"])
def test_a_model_is_compressed_and_saved_in_a_call_each(kind: str, tmp_path: Path) -> None:
    model, images = made(kind)
    slim = vitprune.compress(model, images, budget={"macs": 0.7})
    assert sum(p.numel() for p in slim.parameters()) < sum(p.numel() for p in model.parameters())
    again = vitprune.load(vitprune.save(slim, tmp_path / "slim"))
    torch.testing.assert_close(again(images), slim(images), rtol=1e-5, atol=1e-5)


def test_compress_is_discover_and_prune(tmp_path: Path) -> None:
    model, images = made("vit")
    one = vitprune.compress(model, images.split(5), budget={"params": 0.6})
    scores = vitprune.discover(model, images, torch.zeros(12, dtype=torch.long), batch=64)
    other = vitprune.prune(model, scores, budget={"params": 0.6}, images=list(images.split(5)))
    for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_dense_model_keeps_its_names(tmp_path: Path) -> None:
    model, images = made("vit")
    own = model.pretrained_cfg
    folder = vitprune.save(model, tmp_path / "dense", labels=list("abcde"))
    assert model.pretrained_cfg is own
    again = vitprune.load(folder)
    torch.testing.assert_close(again(images), model(images))
    assert again.pretrained_cfg["label_names"] == list("abcde")
    assert vitprune.save(model, folder, labels=list("abcde")) == folder  # its own, so written again


def test_the_bundled_model_is_saved_as_it_is(tmp_path: Path) -> None:
    model = timm.create_model(f"local-dir:{next(iter(bundled))}", pretrained=True).eval()
    again = vitprune.load(vitprune.save(model, tmp_path / "again"))
    images = torch.randn(3, 1, 28, 28)
    torch.testing.assert_close(again(images), model(images))


def test_what_does_not_give_the_model_back_is_refused(tmp_path: Path) -> None:
    model, images = made("pooled")
    with pytest.raises(UserError, match=r"does not give this model back.*give args="):
        vitprune.save(model, tmp_path / "x")
    assert not (tmp_path / "x").exists()
    args = {key: value for key, value in KINDS["pooled"][1].items() if key != "num_classes"}
    again = vitprune.load(vitprune.save(model, tmp_path / "x", args=args))
    torch.testing.assert_close(again(images), model(images))
    other = timm.models.VisionTransformer(img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=5)
    other.pretrained_cfg = {}
    with pytest.raises(UserError, match="nothing in the model says"):
        vitprune.save(other, tmp_path / "y")
    with pytest.raises(UserError, match="architecture `nonsense`: not known"):
        vitprune.save(other, tmp_path / "y", architecture="nonsense")
    with pytest.raises(UserError, match="3 labels for a model of 5"):
        vitprune.save(made("vit")[0], tmp_path / "y", labels=list("abc"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    with pytest.raises(UserError, match="was not made by vitprune"):
        vitprune.save(made("vit")[0], tmp_path / "mine")
    assert (tmp_path / "mine" / "config.json").read_text() == "{}"


def test_a_recipe_may_be_a_dict() -> None:
    """Checked as a file is: one line for what is wrong in it."""
    with pytest.raises(UserError, match="kep") as caught:
        vitprune.run({"version": 1, "name": "x", "model": {"name": "bundled"}, "kep": 0.5})
    assert "\n" not in str(caught.value)
