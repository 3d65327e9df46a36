"""Which tensors of a file that transformers wrote a parameter of timm's model is made of, for four kinds of image tower.

The names are those that stand in the files, which have stayed the same while the library's own modules were renamed.
Legend: D width, P patches, L blocks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["dinov2", "dinov3", "clip", "siglip"]
BLOCK = re.compile(r"blocks\.(\d+)\.(.+)\.(weight|bias|gamma)")
ALONE = re.compile(r"blocks\.(\d+)\.(attn\.[qv]_bias|gamma_[12])")
DINO = {
    "norm1": "norm1", "norm2": "norm2", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2", "attn.proj": "attention.output.dense",
    "attn.q": "attention.attention.query", "attn.k": "attention.attention.key", "attn.v": "attention.attention.value",
    "ls1": "layer_scale1", "ls2": "layer_scale2",
}  # fmt: skip
DINO3 = {
    "norm1": "norm1", "norm2": "norm2", "mlp.fc1": "mlp.up_proj", "mlp.fc1_x": "mlp.up_proj", "mlp.fc1_g": "mlp.gate_proj",
    "mlp.fc2": "mlp.down_proj", "attn.proj": "attention.o_proj",
    "attn.q": "attention.q_proj", "attn.k": "attention.k_proj", "attn.v": "attention.v_proj",
}  # fmt: skip
LOOSE = {  # of a block, where timm has a parameter without a layer
    "attn.q_bias": "attention.q_proj.bias", "attn.v_bias": "attention.v_proj.bias", "gamma_1": "layer_scale1.lambda1",
    "gamma_2": "layer_scale2.lambda1",
}  # fmt: skip
CLIP = {
    "norm1": "layer_norm1", "norm2": "layer_norm2", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2",
    "attn.proj": "self_attn.out_proj",
    "attn.q": "self_attn.q_proj", "attn.k": "self_attn.k_proj", "attn.v": "self_attn.v_proj",
}  # fmt: skip
LAYERS: dict[Kind, tuple[str, dict[str, str]]] = {
    "dinov2": ("encoder.layer", DINO),
    "dinov3": ("layer", DINO3),
    "clip": ("encoder.layers", CLIP),
    "siglip": ("encoder.layers", CLIP),
}
OUTSIDE: dict[Kind, dict[str, str]] = {
    "dinov2": {
        "cls_token": "embeddings.cls_token",
        "reg_token": "embeddings.register_tokens",
        "pos_embed": "embeddings.position_embeddings",
        "patch_embed.proj": "embeddings.patch_embeddings.projection",
        "norm": "layernorm",
    },
    "dinov3": {
        "cls_token": "embeddings.cls_token",
        "reg_token": "embeddings.register_tokens",
        "patch_embed.proj": "embeddings.patch_embeddings",
        "norm": "norm",
    },
    "clip": {
        "cls_token": "embeddings.class_embedding",
        "pos_embed": "embeddings.position_embedding.weight",
        "patch_embed.proj": "embeddings.patch_embedding",
        "norm_pre": "pre_layrnorm",
        "norm": "post_layernorm",
        "head": "visual_projection",
    },
    "siglip": {
        "pos_embed": "embeddings.position_embedding.weight",
        "patch_embed.proj": "embeddings.patch_embedding",
        "norm": "post_layernorm",
        "attn_pool.latent": "head.probe",
        "attn_pool.proj": "head.attention.out_proj",
        "attn_pool.norm": "head.layernorm",
        "attn_pool.mlp.fc1": "head.mlp.fc1",
        "attn_pool.mlp.fc2": "head.mlp.fc2",
    },
}
POOLED = {"attn_pool.q": (0, 1), "attn_pool.kv": (1, 3)}  # thirds of the pooling's packed queries, keys and values


def sources(kind: Kind, key: str) -> tuple[str, ...]:
    """The file's tensors, one below the other, that timm's parameter `key` is."""
    if found := BLOCK.fullmatch(key):
        (rows, table), (block, layer, leaf) = LAYERS[kind], found.groups()
        if layer == "attn.qkv":
            return tuple(f"{rows}.{block}.{table[f'attn.{one}']}.{leaf}" for one in "qkv")
        return (f"{rows}.{block}.{table[layer]}.{'lambda1' if leaf == 'gamma' else leaf}",)
    if found := ALONE.fullmatch(key):
        return (f"{LAYERS[kind][0]}.{found[1]}.{LOOSE[found[2]]}",)
    table = OUTSIDE[kind]
    layer, _, leaf = key.rpartition(".")
    return (table[key],) if key in table else (f"{table[layer]}.{leaf}",)


def gated(kind: Kind, name: str) -> str:
    """The name of a gated FFN's layer in a file; in DINOv2's gate and value lie packed in one."""
    if kind == "dinov3":
        return name
    assert kind == "dinov2", kind
    return name.replace("mlp.fc1.", "mlp.weights_in.").replace("mlp.fc2.", "mlp.weights_out.")


def shown(state: Mapping[str, Tensor], kind: Kind, *, swiglu: bool) -> dict[str, Tensor]:
    """timm's `state` under the names and in the shapes of a file of transformers."""
    made: dict[str, Tensor] = {}
    for key, value in state.items():
        layer, _, leaf = key.rpartition(".")
        if layer in POOLED:
            continue
        if key == "head.bias":  # transformers' projection has none
            continue
        names = sources(kind, key)
        for name, part in zip(names, value.chunk(len(names)), strict=True):
            made[gated(kind, name) if swiglu else name] = part
    if kind == "siglip":
        for leaf in ("weight", "bias"):
            packed = [state[f"{layer}.{leaf}"] for layer in POOLED]
            made[f"head.attention.in_proj_{leaf}"] = torch.cat(packed)
    return _squeezed(made, kind)


def _squeezed(made: dict[str, Tensor], kind: Kind) -> dict[str, Tensor]:
    """Tokens and positions as a file has them; where registers stand between, timm's class token has its position in it."""
    if kind == "dinov3":  # its positions are no tensor
        own = made["embeddings.cls_token"]
        made.setdefault("embeddings.register_tokens", own[:, :0])
        made["embeddings.mask_token"] = torch.zeros_like(own)
        return made
    if kind == "dinov2":
        place, own = OUTSIDE[kind]["pos_embed"], made["embeddings.cls_token"]
        if "embeddings.register_tokens" in made:
            made[place] = torch.cat([torch.zeros_like(own), made[place]], 1)
            made["embeddings.mask_token"] = torch.zeros_like(own[0])  # every such file has one, no tower reads it
        return made
    place = OUTSIDE[kind]["pos_embed"]
    made[place] = made[place][0]
    if kind == "clip":
        made["embeddings.class_embedding"] = made["embeddings.class_embedding"][0, 0]
    return made


def read(held: Mapping[str, Tensor], like: Mapping[str, Tensor], kind: Kind, *, swiglu: bool) -> dict[str, Tensor]:
    """timm's state, in the shapes of `like`, from the tensors of a file; positions in the file's own number."""
    made: dict[str, Tensor] = {}
    for key, value in like.items():
        layer, _, leaf = key.rpartition(".")
        if layer in POOLED:
            first, last = POOLED[layer]
            packed = held[f"head.attention.in_proj_{leaf}"]
            made[key] = packed[first * len(packed) // 3 : last * len(packed) // 3]
        elif key == "head.bias":
            made[key] = torch.zeros(value.shape)
        else:
            found = [held[gated(kind, name) if swiglu else name] for name in sources(kind, key)]
            whole = torch.cat(found)
            made[key] = whole if key == "pos_embed" or whole.ndim == value.ndim else whole.reshape(value.shape)
    return _told(made, kind)


def _told(made: dict[str, Tensor], kind: Kind) -> dict[str, Tensor]:
    if kind in ("clip", "siglip"):
        made["pos_embed"] = made["pos_embed"][None]
    elif kind == "dinov2" and "reg_token" in made:
        made["cls_token"] = made["cls_token"] + made["pos_embed"][:, :1]
        made["pos_embed"] = made["pos_embed"][:, 1:]
    return {key: value.contiguous() for key, value in made.items()}
