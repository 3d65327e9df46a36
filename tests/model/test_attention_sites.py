"""Attention as a site: what a model has, what it costs, and its slim form."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from timm.layers.attention import Attention
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vitprune.core.errors import UserError
from vitprune.criteria.statistics import attention as statistics
from vitprune.criteria.statistics import attention_curve
from vitprune.model import families
from vitprune.model.sites.attention import attention_sites, resize
from vitprune.model.sites.ffn import linear
from vitprune.pruning import slim_attention

Curves = list[attention_curve.AttentionCurve]


@pytest.fixture(name="prepared")
def prepared_fixture(
    tiny_vit: Callable[..., nn.Module], make_images: Callable[..., Tensor]
) -> tuple[Any, Tensor, Curves]:
    model, images = tiny_vit(), make_images(24)
    batches = lambda: iter([(images, torch.arange(24) % 5)])  # noqa: E731
    sites = attention_sites(model)
    _, moments = statistics.statistics(model, families.ffn_sites(model), sites, batches, 0)
    curves = [
        attention_curve.curve(s, linear(model, s.proj).weight, m, None) for s, m in zip(sites, moments, strict=True)
    ]
    return model, images, curves


def test_the_sites_of_a_vit(tiny_vit: Callable[..., nn.Module]) -> None:
    sites = attention_sites(tiny_vit())
    assert [(s.block, s.name, s.heads, s.dim) for s in sites] == [(i, f"blocks.{i}.attn", 2, 8) for i in range(3)]
    assert sites[0].dims == (4, 8) and sites[0].values and sites[0].query_keys


def test_a_norm_on_queries_and_keys_leaves_the_values_and_the_heads(tiny_vit: Any) -> None:
    site = attention_sites(tiny_vit(qk_norm=True))[0]
    assert site.dims == (4, 8) and not site.query_keys and site.asking(4) == 8


def test_a_norm_behind_the_heads_leaves_the_heads(tiny_vit: Any) -> None:
    assert attention_sites(tiny_vit(scale_attn_norm=True))[0].dims == (8,)


def test_what_has_another_attention_is_refused_by_name() -> None:
    swin = timm.create_model("swin_tiny_patch4_window7_224", embed_dim=8, depths=(1, 1), num_heads=(1, 1))
    with pytest.raises(UserError, match="SwinTransformer"):
        attention_sites(swin.eval())


def test_whole_nothing_changes_to_the_bit(prepared: tuple[Any, Tensor, Curves]) -> None:
    model, images, curves = prepared
    slim = copy.deepcopy(model)
    for curve in curves:
        slim_attention.write(slim, curve, 2, 8)
    assert torch.equal(slim(images), model(images))


def test_rotations_of_full_rank_are_exact(prepared: tuple[Any, Tensor, Curves]) -> None:
    model, images, curves = prepared
    slim = copy.deepcopy(model)
    for curve in curves:
        site, values = curve.site, curve.values[1]
        qkv, proj = linear(slim, site.qkv), linear(slim, site.proj)
        q, k, v = slim_attention._per_head(slim.get_submodule(site.path))
        both = torch.stack([curve.queries @ q, curve.keys @ k, values.front @ v]).flatten(0, 2)
        qkv.weight.copy_(both[:, :-1])
        qkv.bias.copy_(both[:, -1])
        columns = proj.weight.unflatten(1, (2, 8)).transpose(0, 1) @ values.behind
        proj.weight.copy_(columns.transpose(0, 1).flatten(1))
    assert torch.allclose(slim(images), model(images), atol=1e-6)


@pytest.mark.parametrize("fused", [True, False])
def test_timms_own_attention_of_the_slim_shape_gives_the_truncated_heads(prepared: Any, fused: bool) -> None:
    """One head of half its dimensions, by hand in the dense head's scale, and by timm's class loaded from the weights."""
    model, _, curves = prepared
    curve, x = curves[0], torch.randn(2, 5, 16, dtype=torch.float64)
    slim = copy.deepcopy(model)
    slim_attention.write(slim, curve, 1, 4)
    own: Any = Attention(16, num_heads=1, attn_head_dim=4, qkv_bias=True).double().eval()
    own.load_state_dict(slim.blocks[0].attn.state_dict())
    own.fused_attn = slim.blocks[0].attn.fused_attn = fused
    values, (h,) = curve.values[0], curve.values[0].heads
    q, k, v = statistics.split_heads(curve.site, model.blocks[0].attn.qkv(x))
    q, k = q[:, h] @ curve.queries[h, :4].mT, k[:, h] @ curve.keys[h, :4].mT
    kept = values.kept(4)[0]
    v = v[:, h] @ values.front[0][kept].mT
    a = (q @ k.mT / 8**0.5).softmax(-1) @ v
    proj = model.blocks[0].attn.proj
    expected = a @ (proj.weight[:, 8 * h : 8 * h + 8] @ values.behind[0][:, kept]).mT + proj.bias
    assert torch.allclose(slim.blocks[0].attn(x), expected)
    assert torch.allclose(own(x), expected)


def test_a_removed_head_is_a_head_of_zeros(prepared: tuple[Any, Tensor, Curves]) -> None:
    model, images, curves = prepared
    masked, slim = copy.deepcopy(model), copy.deepcopy(model)
    for curve in curves:
        slim_attention.write(slim, curve, 1, 8)
        gone = 1 - curve.values[0].heads[0]
        linear(masked, curve.site.proj).weight[:, 8 * gone : 8 * gone + 8] = 0
    assert torch.allclose(slim(images), masked(images))


def test_without_heads_the_bias_is_left(prepared: tuple[Any, Tensor, Curves]) -> None:
    model, images, curves = prepared
    masked, slim = copy.deepcopy(model), copy.deepcopy(model)
    slim_attention.write(slim, curves[1], 0, 0)
    linear(masked, curves[1].site.proj).weight.zero_()
    assert torch.allclose(slim(images), masked(images))


@pytest.mark.parametrize(("heads", "dim"), [(2, 8), (2, 4), (1, 4)])
def test_macs_and_parameters_are_those_that_are_counted(tiny_vit: Any, heads: int, dim: int) -> None:
    model = tiny_vit()
    site = attention_sites(model)[0]
    resize(model, site, heads, dim)
    attn = model.blocks[0].attn
    assert attention_sites(model)[0].heads == heads and attention_sites(model)[0].dim == dim
    attn.fused_attn = False
    with FlopCounterMode(display=False) as counter:
        attn(torch.zeros(1, 17, 16, dtype=torch.float64))
    assert counter.get_total_flops() == 2 * site.macs(16, 17, 17, heads, dim)
    assert sum(p.numel() for p in attn.parameters()) == site.parameters(tiny_vit(), heads, dim)
