"""A model without a head opens as a backbone, of every family; a classifier never does."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path

import pytest
import timm
import torch
from small import image_folder, model_folder, tiny_model
from torch import nn

import vitprune
from vitprune.core.errors import UserError
from vitprune.images.sources.folder import Flat, Folder
from vitprune.images.sources.opening import open_path
from vitprune.model import families
from vitprune.model.inside import backbone
from vitprune.model.load import opening
from vitprune.model.sites import attention
from vitprune.model.tokens import tokens_read
from vitprune.pruning import surgery
from vitprune.pruning.plan import Plan
from vitprune.recipe import check
from vitprune.recipe.inputs import Model
from vitprune.recipe.recipe import Recipe

PLAIN = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2, "num_classes": 5}
SWIN = {
    "img_size": 16,
    "patch_size": 4,
    "window_size": 2,
    "embed_dim": 8,
    "depths": [1],
    "num_heads": [1],
    "num_classes": 5,
}
TINY = {
    "swin_tiny_patch4_window7_224": SWIN,
    "swinv2_tiny_window8_256": SWIN,
    "vit_giant_patch14_dinov2": PLAIN | {"mlp_ratio": 4.0},
}
TINY["hiera_tiny_224"] = {"img_size": 32, "embed_dim": 8, "stages": [1], "q_pool": 0, "num_heads": 1, "num_classes": 5}
NAMES = [name for row in families.FAMILIES.values() for name in row.names if ":" not in name]


def args(name: str) -> dict[str, object]:
    return TINY.get(name, PLAIN | ({"pos_embed_grid_size": [2, 2]} if "naflex" in name else {}))


def line(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as said:
        call()
    assert "\n" not in str(said.value)
    return str(said.value)


@pytest.mark.parametrize("name", NAMES)
def test_a_head_goes_and_the_features_before_it_stay(name: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        whole = timm.create_model(name, **args(name)).eval()
    bare = copy.deepcopy(whole)
    backbone.remove_head(bare)
    found = backbone.of(bare)
    assert backbone.of(whole) is None and found is not None and found.reads == "tokens"
    x = torch.randn(2, *families.input_shape(whole), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        told = found.features(x)
        every = whole.forward_features(x)
        assert torch.equal(told.pooled, whole.forward_head(every, pre_logits=True))
        assert torch.equal(told.tokens.flatten(1), every.flatten(1)) and told.tokens.ndim == 3
    assert backbone.width(bare) == told.pooled.shape[1] and (found.prefix > 0 or not found.class_token)
    layout = families.token_layout(bare)
    assert (layout.start, layout.stop) == (0, None)
    backbone.read(bare, "pooled")
    assert families.reads(copy.deepcopy(bare)) == "pooled" and families.token_layout(bare) == families.token_layout(
        whole
    )
    backbone.read(bare, None)
    assert families.reads(bare) == "tokens"


def test_a_recipe_takes_the_head_away_and_says_what_is_read(tmp_path: Path) -> None:
    name = f"local-dir:{model_folder(tmp_path / 'model')}"
    made = opening.open_model(Model(name=name, head="none", features="pooled"))
    assert made.outputs == 0 and made.labels is None and families.reads(made.model) == "pooled"
    assert opening.open_model(Model(name=name)).outputs == 3
    bare = {"img_size": 28, "patch_size": 7, "embed_dim": 16, "depth": 1, "num_heads": 2, "num_classes": 0}
    assert families.reads(opening.open_model(Model(name="vit_tiny_patch16_224", args=bare)).model) == "tokens"
    assert "the model is a classifier" in line(lambda: opening.open_model(Model(name=name, features="tokens")))


def test_a_head_that_was_put_on_makes_a_classifier() -> None:
    model = tiny_model(outputs=0)
    assert backbone.of(model) is not None
    model.head = nn.Linear(16, 4)
    assert backbone.of(model) is None and tokens_read(model) == slice(0, 1)
    setattr(model, families.PROJECTS, True)  # unless it is said to project features
    assert backbone.of(model) is not None


def test_the_library_compresses_features() -> None:
    model, x = tiny_model(outputs=0), torch.randn(24, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    for reads in (None, "pooled"):
        slim = vitprune.compress(model, x, budget={"macs": 0.7}, features=reads)  # type: ignore[arg-type]
        assert families.reads(slim) == (reads or "tokens") and families.reads(model) == "tokens"
        assert slim(x).shape == (24, 16) and float(torch.cosine_similarity(slim(x), model(x)).mean()) > 0.9
    scores = vitprune.discover(model, x)
    assert "needs a classifier" in line(lambda: vitprune.discover(model, x, criterion="jas"))
    assert "classes" in line(lambda: vitprune.prune(model, scores, budget={"macs": 0.7}, images=x, classes=[0]))
    assert "is a classifier" in line(lambda: vitprune.compress(tiny_model(), x, features="tokens"))


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("vit_tiny_patch16_224", {}),
        ("vit_small_patch14_reg4_dinov2", {"reg_tokens": 2}),
        ("eva02_tiny_patch14_224", {}),
    ],
)
def test_a_model_whose_attention_was_cut_everywhere_is_saved_without_being_told(
    name: str, more: dict[str, int], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    sizes = PLAIN | {"embed_dim": 32, "num_classes": 0} | more
    model = timm.create_model(name, **sizes).eval()
    slim = copy.deepcopy(model)
    for site in attention.attention_sites(slim):
        attention.resize(slim, site, 1, 8)
    for weight in slim.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    assert attention.whole_heads(model) == attention.whole_heads(slim) == 2
    again = vitprune.load(f"local-dir:{vitprune.save(slim, tmp_path / 'slim')}")
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(again(x), slim(x)) and attention.whole_heads(again) == 2


def test_features_that_are_refused_leave_the_model_as_it_was() -> None:
    model = tiny_model(outputs=0, global_pool="")
    before = set(vars(model))
    for _ in range(2):
        assert "global_pool" in line(lambda: backbone.read(model, "pooled"))
        assert set(vars(model)) == before and families.reads(model) == "tokens"


def test_a_flat_folder_is_one_class_where_no_labels_are_needed(tmp_path: Path) -> None:
    images = image_folder(tmp_path / "images", 2) / "cross"
    assert "holds no class folders" in line(lambda: open_path(images, "data.path"))
    found = open_path(images, "data.path", lambda: True)
    assert type(found) is Flat and found.classes == ["images"] and found.names == ["00.png", "01.png"]
    assert found.image(1).size == (28, 28) and len(found.fingerprint()) == 64
    labelled = open_path(images.parent, "data.path", lambda: True)
    assert type(labelled) is Folder and labelled.fingerprint() == Folder(images.parent).fingerprint()
    (tmp_path / "none").mkdir()
    assert "holds no images" in line(lambda: open_path(tmp_path / "none", "data.path", lambda: True))


def test_a_recipe_for_a_flat_folder_is_checked_without_building_the_model(tmp_path: Path) -> None:
    images = image_folder(tmp_path / "images", 2) / "cross"
    name = f"local-dir:{model_folder(tmp_path / 'model')}"
    content = {"name": "a", "model": {"name": name, "head": "none"}, "data": {"path": str(images)}}
    check.check(Recipe.model_validate(content))
    content["model"] = {"name": name}
    assert "holds no class folders" in line(lambda: check.check(Recipe.model_validate(content)))


BARE = PLAIN | {"img_size": 32, "embed_dim": 32, "depth": 2, "num_classes": 0}
ROTARY: dict[str, dict[str, object]] = {
    "vit_small_patch16_dinov3": {},
    "vit_small_plus_patch16_dinov3_qkvb": {"num_reg_tokens": 2, "global_pool": "token"},
    "eva_giant_patch14_224": {},
    "eva02_base_patch14_224": {},
    "vit_base_patch16_siglip_224": {},
}


@pytest.mark.sample(2)
@pytest.mark.parametrize("name", ROTARY)
def test_towers_of_today_are_pruned_without_a_head(name: str, tmp_path: Path) -> None:
    """Masked is sliced; what comes out of the library is a folder that gives the same features and hidden states again."""
    torch.manual_seed(0)
    model = timm.create_model(name, **(BARE | ROTARY[name])).eval().requires_grad_(False)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    x = torch.randn(16, 3, 32, 32)
    keep = {site.name: torch.arange(site.size) % 3 > 0 for site in families.ffn_sites(model)}
    assert surgery.masked_vs_sliced(model, Plan(keep), x[:2]) < 1e-5
    slim = vitprune.compress(model, x, budget={"macs": 0.8})
    again = vitprune.load(vitprune.save(slim, tmp_path / "slim"))
    of, found = backbone.of(slim), backbone.of(again)
    assert of is not None and found is not None and of.prefix == found.prefix
    for ours, theirs in zip(astuple(of.features(x)), astuple(found.features(x)), strict=True):
        assert torch.equal(ours, theirs)
    maps = [one.forward_intermediates(x, intermediates_only=True) for one in (slim, again)]  # type: ignore[operator]
    assert len(maps[0]) == 2 and all(torch.equal(*pair) for pair in zip(*maps, strict=True))
