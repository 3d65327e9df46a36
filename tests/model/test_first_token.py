"""The last block for the class token alone gives the model's logits, and is refused wherever another token is read."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from vitprune.model import size as model_size
from vitprune.model.inside import first_token
from vitprune.model.sites import attention

Vit = Callable[..., nn.Module]
Images = Callable[..., Tensor]
KINDS: dict[str, dict[str, Any]] = {
    "vit": {},
    "layer scale, as DINOv2": {"init_values": 0.3},
    "registers": {"init_values": 0.3, "reg_tokens": 4, "no_embed_class": True},
    "norm in front, as CLIP": {"pre_norm": True},
    "normalised queries and keys": {"qk_norm": True},
    "norm in front of proj": {"scale_attn_norm": True},
    "no biases": {"qkv_bias": False, "proj_bias": False},
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_logits_are_those_of_all_tokens(tiny_vit: Vit, make_images: Images, kind: str) -> None:
    model, images = tiny_vit(**KINDS[kind]), make_images(5)
    made = first_token.of(model)
    with torch.no_grad():
        assert (made(images) - model(images)).abs().max() < 1e-12
        streams = made.forward_features(images)  # type: ignore[operator]
    assert streams.shape == (5, 1, 16)
    assert type(model.blocks[-1]).__name__ == "Block"  # type: ignore[index]


@pytest.mark.parametrize("state", [(2, 4), (1, 8), (1, 4), (0, 0)])
def test_so_are_those_of_slim_attention(tiny_vit: Vit, make_images: Images, state: tuple[int, int]) -> None:
    model, images = tiny_vit(), make_images(5)
    for site in attention.attention_sites(model):
        attention.resize(model, site, *state)
    with torch.no_grad():
        draw = torch.Generator().manual_seed(3)
        for weight in model.parameters():
            weight.add_(0.3 * torch.randn(weight.shape, generator=draw, dtype=weight.dtype))
        assert (first_token.of(model)(images) - model(images)).abs().max() < 1e-12


def test_the_multiply_adds_are_the_formulas(tiny_vit: Vit) -> None:
    model = tiny_vit()
    tokens, width, hidden = 17, 16, 32
    saved = (tokens - 1) * (2 * width * width + 2 * width * hidden) + 2 * (tokens - 1) * tokens * width
    assert model_size.macs(model) - model_size.macs(model, shortcut=True) == saved
    whole, short = model_size.size(model), model_size.size(model, shortcut=True)
    assert whole["macs"]["ffn"] - short["macs"]["ffn"] == (tokens - 1) * 2 * width * hidden
    assert short["macs"]["total"] == whole["macs"]["total"] - saved and short["widths"] == whole["widths"]


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("vit_tiny_patch16_224", {"global_pool": "avg", "class_token": True}),
        ("vit_tiny_patch16_224", {"global_pool": "map"}),
        ("deit_tiny_distilled_patch16_224", {}),
        ("vit_base_patch16_xp_224", {}),
        ("vit_base_patch16_rpn_224", {"global_pool": "token", "class_token": True}),
        ("beit_base_patch16_224", {"global_pool": "token"}),
        ("swin_tiny_patch4_window7_224", {"window_size": 2, "depths": [1, 1], "num_heads": [1, 2], "img_size": 32}),
    ],
)
def test_other_heads_and_blocks_are_left_as_they_are(name: str, args: dict[str, Any]) -> None:
    small = {"img_size": 28, "patch_size": 7, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 3}
    if "swin" in name:
        small = {"embed_dim": 16, "num_classes": 3}
    assert first_token.why_not(timm.create_model(name, **{**small, **args}))


def test_a_block_with_something_added_is_left_as_it_is(tiny_vit: Vit) -> None:
    assert first_token.why_not(tiny_vit()) is None
    for change in (
        lambda block: block.register_forward_hook(lambda *_: None),
        lambda block: setattr(block.attn, "forward", lambda x, **_: x),
        lambda block: setattr(block.attn, "qkv", nn.Sequential(block.attn.qkv)),
        lambda block: setattr(block, "ls1", nn.Linear(16, 16)),
    ):
        model = copy.deepcopy(tiny_vit())
        change(model.blocks[-1])  # type: ignore[index]
        assert first_token.why_not(model)
    model = tiny_vit()
    model.register_forward_pre_hook(lambda *_: None)
    assert first_token.why_not(model)
