"""The model families: where a model keeps its FFNs, and which of its tokens are what. The only file that knows them.

Everything else sees FFN sites and a token layout. Whatever is not listed here is refused by the name of the module: a
subclass or a new block may use its FFN in another way, and a model must never come out half pruned. The MLP inside an
attention pool belongs to the head, and stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from timm.layers import GluMlp, LayerNorm, Mlp, RmsNorm, SwiGLU
from timm.models import beit, deit, eva, hiera, naflexvit, swin_transformer, swin_transformer_v2
from timm.models import vision_transformer as vit
from timm.models import vision_transformer_relpos as relpos
from torch import nn

from vitprune.core.errors import UserError
from vitprune.model import plain
from vitprune.model.declared import Foreign
from vitprune.model.inside.reads import PROJECTS as PROJECTS
from vitprune.model.inside.reads import READ as READ
from vitprune.model.inside.reads import Reads as Reads
from vitprune.model.inside.reads import has_class_token as has_class_token
from vitprune.model.inside.reads import prefix_tokens as prefix_tokens
from vitprune.model.inside.reads import reads as reads
from vitprune.model.sites.base import TokenLayout
from vitprune.model.sites.ffn import FfnSite

PLAIN = (
    vit.VisionTransformer, deit.VisionTransformerDistilled, relpos.VisionTransformerRelPos, beit.Beit, eva.Eva,
    naflexvit.NaFlexVit,
)  # fmt: skip
HIERARCHICAL = (hiera.Hiera, swin_transformer.SwinTransformer, swin_transformer_v2.SwinTransformerV2)
MOST = 1 << 16  # pixels
ROWS = (nn.Sequential, nn.ModuleList)
STAGES = (swin_transformer.SwinTransformerStage, swin_transformer_v2.SwinTransformerV2Stage)
NORMS = (nn.LayerNorm, LayerNorm, RmsNorm)
ONE_FFN = (
    vit.Block, vit.ResPostBlock, relpos.RelPosBlock, relpos.ResPostRelPosBlock, beit.Block, eva.EvaBlock,
    eva.EvaBlockPostNorm, hiera.HieraBlock, swin_transformer.SwinTransformerBlock, swin_transformer_v2.SwinTransformerV2Block,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Family:
    """A row of `vitprune models`. `tokens`: what a criterion can look at; `halves`: its blocks come in two halves, which
    block-by-block repair and some criteria need; `stays`: what of its attention cannot go, with the reason. `names`: what
    the tests take through the whole road, as tiny models."""

    title: str
    names: tuple[str, ...]
    tokens: Literal["class", "patches", "stages"] = "class"
    halves: bool = True
    stays: Mapping[str, str] = field(default_factory=dict)


def _all_of(kind: str) -> dict[str, str]:
    return dict.fromkeys(
        ("values", "query_keys", "heads"), f"the attention of {kind} is not supported, only its FFN units are"
    )


ROTARY = {"query_keys": "rotary embeddings stand behind queries and keys"}
FAMILIES: dict[str, Family] = {
    "vit": Family("ViT, class token", ("vit_tiny_patch16_224",)),
    "vit-gap": Family("ViT, average pooling (MAE)", ("vit_base_patch16_gap_224",), "patches"),
    "deit": Family("DeiT", ("deit_tiny_patch16_224",)),
    "deit-distilled": Family("DeiT, distilled", ("deit_tiny_distilled_patch16_224",)),
    "deit3": Family("DeiT-III", ("deit3_small_patch16_224",)),
    "dinov2": Family("DINOv2", ("vit_small_patch14_dinov2",)),
    "dinov2-reg": Family("DINOv2 with registers", ("vit_small_patch14_reg4_dinov2",)),
    "dinov2-giant": Family("DINOv2 giant, packed SwiGLU", ("vit_giant_patch14_dinov2",)),
    "vit-relpos": Family("ViT, relative positions", ("vit_relpos_small_patch16_224",), "patches"),
    "vit-post-norm": Family(
        "ViT, norms after the layers",
        ("vit_base_patch16_rpn_224", "vit_relpos_small_patch16_rpn_224"),
        "patches",
        False,
    ),
    "vit-parallel": Family(
        "ViT, parallel attention and FFN", ("vit_base_patch16_xp_224",), "class", False, _all_of("ParallelScalingBlock")
    ),
    "vit-things": Family("ViT, two FFNs side by side", ("vit_small_patch16_18x2_224",), "class", False),
    "siglip": Family("SigLIP, attention pooling", ("vit_base_patch16_siglip_224",), "patches"),
    "clip": Family("CLIP's image tower", ("vit_base_patch16_clip_224", "vit_base_patch16_clip_quickgelu_224")),
    "aimv2": Family("AIMv2, SwiGLU without biases", ("aimv2_large_patch14_224",), "patches"),
    "beit": Family("BEiT", ("beit_base_patch16_224", "beitv2_base_patch16_224"), "patches"),
    "eva": Family("EVA", ("eva_giant_patch14_224",), "patches"),
    "eva02": Family("EVA-02, SwiGLU", ("eva02_tiny_patch14_224",), "patches", stays=ROTARY),
    "eva02-norm": Family("EVA-02, SwiGLU with a norm inside", ("eva02_base_patch14_224",), "patches", stays=ROTARY),
    "dinov3": Family("DINOv3", ("vit_small_patch16_dinov3",), "patches", stays=ROTARY),
    "naflexvit": Family("NaFlexViT", ("naflexvit_base_patch16_gap", "naflexvit_base_patch16_siglip"), "patches"),
    "hiera": Family("Hiera", ("hiera_tiny_224",), "stages", False, _all_of("Hiera")),
    "swin": Family("Swin", ("swin_tiny_patch4_window7_224",), "stages", False, _all_of("SwinTransformer")),
    "swinv2": Family("Swin v2", ("swinv2_tiny_window8_256",), "stages", False, _all_of("SwinTransformerV2")),
    "torchvision": Family("torchvision's ViT", ("torchvision:vit_b_16",), "class", False, _all_of("another library")),
    "transformers": Family(
        "transformers' ViT, DeiT, DINOv2 (an extra)",
        (
            "transformers:ViTForImageClassification",
            "transformers:DeiTForImageClassificationWithTeacher",
            "transformers:Dinov2ForImageClassification",
            "transformers:Dinov2WithRegistersForImageClassification",
        ),
        "class",
        False,
        _all_of("another library"),
    ),
}


def ffn_sites(model: nn.Module) -> list[FfnSite]:
    """The model's FFNs in the order of the forward pass. Raises UserError naming the module that does not fit."""
    if isinstance(model, Foreign):
        sites = model.sites()
    else:
        _known(model)
        input_shape(model)
        sites = [site for i, (path, block) in enumerate(_blocks(model)) for site in _sites_of(i, path, block)]
    if not sites:
        raise UserError("model: has no blocks, there is nothing to prune")
    _nothing_shared(model, sites)
    return sites


def _known(model: nn.Module) -> None:
    """The model is of exactly one of the classes here, and does what its class says."""
    kinds, kind = (*PLAIN, *HIERARCHICAL), type(model).__name__
    if type(model) in kinds:
        plain.require("model", model)
    elif isinstance(model, kinds):
        raise UserError(f"model: {kind} changes a class of timm's; say where its FFNs are with vitprune.declare")
    else:
        inside = [name for name, part in model.named_children() if isinstance(part, kinds)]
        way = f"give the model inside, its .{inside[0]}" if inside else "see `vitprune models`"
        raise UserError(f"model: {kind} is not supported; {way}")


def _blocks(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every block with its path, in the order of the forward pass."""
    stages = [f"layers.{i}" for i in range(len(getattr(model, "layers", ())))]
    for path in stages:
        plain.require(path, model.get_submodule(path), STAGES)
    for path in [f"{stage}.blocks" for stage in stages] or ["blocks"]:
        plain.require(path, model.get_submodule(path), ROWS)
        for name, block in model.get_submodule(path).named_children():
            yield f"{path}.{name}", block


def _sites_of(i: int, path: str, block: nn.Module) -> list[FfnSite]:
    if type(block) in ONE_FFN:
        plain.require(path, block)
        return [_site(i, f"{path}.mlp", block.get_submodule("mlp"))]
    if type(block) is vit.ParallelThingsBlock:
        plain.require(path, block)
        side_by_side = block.get_submodule("ffns")
        plain.require(f"{path}.ffns", side_by_side, ROWS)
        for k, half in side_by_side.named_children():
            plain.require(f"{path}.ffns.{k}", half, ROWS)
        return [
            _site(i, f"{path}.ffns.{k}.mlp", half.get_submodule("mlp")) for k, half in side_by_side.named_children()
        ]
    if type(block) is vit.ParallelScalingBlock and block.mlp_out_proj is not None:
        plain.require(path, block)
        parts = {f"{path}.{name}": part for name, part in block.named_children()}
        fc1, act, fc2, width = f"{path}.in_proj", f"{path}.mlp_act", f"{path}.mlp_out_proj", block.in_split[0]  # type: ignore[index]
        site = FfnSite(i, fc1, act, fc2, int(width), split=path)
        _plain_layers(site, parts, f"{path}.mlp_drop")
        return [site]
    raise UserError(f"{path}: {type(block).__name__} is not supported; see `vitprune models`")


def _site(i: int, path: str, mlp: nn.Module) -> FfnSite:
    """The site of one of timm's FFN modules."""
    names = {Mlp: ("fc1", None), GluMlp: ("fc1", None), SwiGLU: ("fc1_x", "fc1_g")}.get(type(mlp))
    if names is None:
        raise UserError(f"{path}: {type(mlp).__name__} is not supported; a linear Mlp, GluMlp or SwiGLU is needed")
    plain.require(path, mlp)
    fc1, gate = (name and f"{path}.{name}" for name in names)
    normed, fc2 = (getattr(mlp, name) for name in ("norm", "fc2"))
    norm = None if type(normed) is nn.Identity else f"{path}.norm"
    plain.require(f"{path}.norm", normed, NORMS if norm else plain.IDLE)
    plain.require(f"{path}.fc2", fc2, plain.LINEAR)
    width, parts = fc2.in_features, 2 if type(mlp) is GluMlp else 1
    site = FfnSite(i, str(fc1), f"{path}.act", f"{path}.fc2", width, gate, parts, norm)
    _plain_layers(site, {f"{path}.{name}": part for name, part in mlp.named_children()}, f"{path}.drop1")
    return site


def _plain_layers(site: FfnSite, parts: dict[str, nn.Module], drop: str) -> None:
    """What stands between an FFN's input and fc2's output is what its class says; `drop` is the dropout in front of fc2."""
    for path in (site.fc1, site.gate, site.fc2):
        if path is not None:
            plain.require(path, parts.get(path), plain.LINEAR)
    plain.require(drop, parts.get(drop), plain.IDLE)
    plain.require_per_unit(site.act, parts[site.act], site.size)


def _nothing_shared(model: nn.Module, sites: list[FfnSite]) -> None:
    """An FFN's weights may serve that FFN alone."""
    places = plain.shared(model)
    for site in sites:
        for path in site.layers:
            for weight in model.get_submodule(path).parameters():
                if id(weight) in places:
                    raise UserError(
                        f"{path}: shares its weights with another layer ({places[id(weight)]}); untie them first"
                    )


def token_layout(model: nn.Module) -> TokenLayout:
    """Where the class token is and what the head reads; without a head, what its output is made of.

    Raises UserError for a pooling that is not known.
    """
    if isinstance(model, HIERARCHICAL):
        return TokenLayout(0, False, plain=False)
    prefix = prefix_tokens(model)
    if reads(model) == "tokens":
        return TokenLayout(prefix, has_class_token(model))
    if isinstance(model, Foreign):
        return model.layout
    if isinstance(model, deit.VisionTransformerDistilled):
        return TokenLayout(prefix, True, 0, 2)
    pooling = getattr(model, "global_pool", None)
    if pooling == "token" and getattr(model, "attn_pool", None) is None:
        return TokenLayout(prefix, bool(getattr(model, "has_class_token", True)), 0, 1)
    if getattr(model, "attn_pool", None) is None and pooling not in ("avg", "avgmax", "max"):
        raise UserError(f"model.global_pool: `{pooling}` is not supported; token, avg, avgmax, max or map is")
    return TokenLayout(prefix, False, 0 if getattr(model, "pool_include_prefix", False) else prefix)


def input_shape(model: nn.Module) -> tuple[int, int, int]:
    """Channels, height, width the model was built for."""
    if isinstance(model, Foreign):
        return model.input_shape
    if isinstance(model, naflexvit.NaFlexVit):
        return int(model.in_chans), *_naflex_size(model)
    if isinstance(model, hiera.Hiera):
        height, width = (t * s for t, s in zip(model.tokens_spatial_shape, model.patch_stride, strict=True))
        return int(model.patch_embed.proj.in_channels), height, width
    embed = getattr(model, "patch_embed", model)
    proj = getattr(embed, "proj", None)
    if hasattr(embed, "backbone") or not isinstance(proj, nn.Conv2d):
        raise UserError(
            f"patch_embed: {type(embed).__name__} is not supported, no convolutional stem is; see `vitprune models`"
        )
    height, width = getattr(embed, "img_size", None) or (224, 224)
    return proj.in_channels, int(height), int(width)


def _naflex_size(model: naflexvit.NaFlexVit) -> tuple[int, int]:
    """Height and width that its weights were made for: it takes any, and its grid of position embeddings is another's."""
    if model.embeds.default_img_size is not None:
        height, width = map(int, model.embeds.default_img_size)
        return height, width
    stated = (getattr(model, "pretrained_cfg", None) or {}).get("input_size")
    if isinstance(stated, list | tuple) and len(stated) == 3 and all(type(v) is int and 1 <= v <= MOST for v in stated):
        return int(stated[1]), int(stated[2])
    grid, patch = model.embeds.pos_embed_grid_size or (16, 16), model.embeds.patch_size
    return int(grid[0] * patch[0]), int(grid[1] * patch[1])


@contextmanager
def written_out(model: nn.Module) -> Iterator[None]:
    """Attention by matrix products inside, where ONNX's own operator cannot take a family's (five dimensions)."""
    changed = [m for m in model.modules() if isinstance(m, hiera.MaskUnitAttention) and m.fused_attn]
    try:
        for module in changed:
            module.fused_attn = False
        yield
    finally:
        for module in changed:
            module.fused_attn = True
