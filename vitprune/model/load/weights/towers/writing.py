"""timm's model of an image tower as a folder that transformers opens: config.json, model.safetensors, and its preparation.

transformers builds a tower from one hidden width for all of its FFNs and whole attention, and DINOv2's from a whole
multiple of its dimensions: a slim model of other sizes is for timm's names and `vitprune.load`, and is refused here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import save as to_bytes
from timm.layers import RotaryEmbeddingDinoV3
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from vitprune.core import ledger
from vitprune.core.errors import UserError
from vitprune.core.files import replacing, write_json
from vitprune.core.reading import Json
from vitprune.model.families import ffn_sites, input_shape
from vitprune.model.load.weights.towers import names
from vitprune.model.load.weights.towers.configs import ACTIVATIONS, EPS
from vitprune.model.load.weights.towers.names import Kind
from vitprune.model.sites import attention
from vitprune.model.sites.ffn import FfnSite

FILES = ("config.json", "model.safetensors", "preprocessor_config.json")
PROCESSORS = {
    "dinov2": "BitImageProcessor", "dinov3": "DINOv3ViTImageProcessor", "clip": "CLIPImageProcessor",
    "siglip": "SiglipImageProcessor",
}  # fmt: skip
LAYERS = {"GELU": "gelu", "QuickGELU": "quick_gelu", "GELUTanh": "gelu_pytorch_tanh", "GeluTanh": "gelu_pytorch_tanh"}
OWN = "this one loads with vitprune.load"
OTHERS = "leave its folder to timm"
RESAMPLE = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}


def save(folder: Path, model: nn.Module, data_config: Json) -> str:
    """The class of transformers that opens what was written. Raises UserError where none of them can be this model."""
    config = configuration(model)
    kind, swiglu = _kind(model), config.get("use_swiglu_ffn") is True
    state = names.shown({k: v.detach().cpu() for k, v in model.state_dict().items()}, kind, swiglu=swiglu)
    prefix = "vision_model." if "projection_dim" in config else ""
    placed = {k if k.startswith("visual_projection") else f"{prefix}{k}": v.contiguous() for k, v in state.items()}
    for name in FILES[:2] if ledger.says_so(folder / "config.json") else FILES:
        ledger.guard(folder / name, anywhere=True)
    with replacing(folder / "model.safetensors") as temporary:
        temporary.write_bytes(to_bytes(placed, metadata={"format": "pt"}))
    write_json(folder / "preprocessor_config.json", prepared(kind, data_config))
    write_json(folder / "config.json", config)
    return str(config["architectures"][0])


def _kind(model: nn.Module) -> Kind:
    """Which tower the model is built like."""
    tower: Any = model
    if type(model) is Eva and type(tower.rope) is RotaryEmbeddingDinoV3 and tower.pos_embed is None:
        if tower.global_pool == "token" and tower.cls_token is not None and tower.blocks[0].gamma_1 is not None:
            return "dinov3"
        raise UserError(
            f"transformers: its DINOv3 gives the class token; make it with global_pool='token', or {OTHERS}"
        )
    if type(model) is not VisionTransformer:
        raise UserError(f"transformers: {type(model).__name__} is no tower of DINOv2, DINOv3, CLIP or SigLIP; {OTHERS}")
    normed, scaled = type(tower.norm_pre) is not nn.Identity, hasattr(tower.blocks[0].ls1, "gamma")
    if tower.attn_pool is not None and not tower.num_prefix_tokens and not scaled:
        return "siglip"
    if tower.has_class_token and tower.global_pool == "token" and normed != scaled:
        return "clip" if normed else "dinov2"
    raise UserError(f"transformers: the model is built like no tower of DINOv2, DINOv3, CLIP or SigLIP; {OTHERS}")


def configuration(model: nn.Module) -> Json:
    """What transformers calls the model's sizes. Raises UserError for sizes that its class cannot have."""
    kind, sites, slim = _kind(model), ffn_sites(model), attention.slim(model)
    tower: Any = model
    widths, dim = sorted({site.size for site in sites}), int(tower.embed_dim)
    if slim or len(widths) > 1:
        what = "slim attention" if slim else f"FFNs of {widths[0]} to {widths[-1]} hidden units"
        raise UserError(f"transformers: has no tower with {what}: prune FFN units alone, `allocation: uniform`; {OWN}")
    channels, height, side = input_shape(model)
    outputs = _outputs(model, kind)
    if height != side or any(abs(n.eps / EPS[kind] - 1) > 1e-6 for n in (tower.norm, tower.blocks[0].norm1)):
        raise UserError(f"transformers: its {kind} is for squares and norms of {EPS[kind]}; {OWN}")
    made: Json = {
        "hidden_size": dim, "num_hidden_layers": len(tower.blocks), "image_size": side, "num_channels": channels,
        "num_attention_heads": int(tower.blocks[0].attn.num_heads), "patch_size": int(tower.patch_embed.patch_size[0]),
        "layer_norm_eps": EPS[kind],
    }  # fmt: skip
    cls, more = _of_kind(tower, kind, sites[0], outputs)
    return {"architectures": [cls], "dtype": "float32", **made, **more, "vitprune": {"tower": kind}}


def _of_kind(tower: Any, kind: Kind, site: FfnSite, outputs: int) -> tuple[str, Json]:
    """The class of transformers, and what its configuration says beside the sizes that all kinds have."""
    dim, width, block = int(tower.embed_dim), site.size, tower.blocks[0]
    if kind == "dinov3":
        biases, gated = block.attn.q_bias is not None, site.gate is not None
        made: Json = {
            "model_type": "dinov3_vit", "intermediate_size": width, "use_gated_mlp": gated, "query_bias": biases,
            "value_bias": biases, "key_bias": False, "num_register_tokens": int(tower.num_prefix_tokens) - 1,
            "rope_theta": float(tower.rope.temperature),
        }  # fmt: skip
        return "DINOv3ViTModel", made | {"hidden_act": "silu" if gated else _activation(block.mlp.act)}
    if kind == "dinov2":
        swiglu, registers = site.parts == 2 and not site.gate, int(tower.num_reg_tokens)
        made = {
            "model_type": f"dinov2{'_with_registers' if registers else ''}",
            "mlp_ratio": _times(dim, width, swiglu),
        }
        made |= {"num_register_tokens": registers} if registers else {"use_mask_token": False}
        made |= {"use_swiglu_ffn": swiglu, "qkv_bias": block.attn.qkv.bias is not None}
        made |= {} if swiglu else {"hidden_act": _activation(block.mlp.act)}
        return f"Dinov2{'WithRegisters' if registers else ''}Model", made
    if kind == "siglip" and tower.attn_pool.mlp.fc1.out_features != width:
        raise UserError(f"transformers: a SigLIP's pooling has FFNs as wide as the blocks'; {OWN}")
    made = {"model_type": f"{kind}_vision_model", "intermediate_size": width, "hidden_act": _activation(block.mlp.act)}
    made |= {"projection_dim": outputs} if outputs else {}
    return "SiglipVisionModel" if kind == "siglip" else f"CLIPVisionModel{'WithProjection' * bool(outputs)}", made


def _outputs(model: nn.Module, kind: Kind) -> int:
    """Dimensions of the projection, 0 without one; a classifier is no part of a tower."""
    head: Any = model.head
    if type(head) is nn.Identity:
        return 0
    if kind != "clip" or head.bias is None or bool(head.bias.any()):
        raise UserError("transformers: the model has a classifier, a tower has none; give model.head: none")
    return int(head.out_features)


def _times(dim: int, width: int, swiglu: bool) -> int:
    """DINOv2's mlp_ratio, which is a whole number."""
    for ratio in range(1, 17):
        if (int(dim * ratio * 2 / 3) + 7) // 8 * 8 * swiglu + dim * ratio * (not swiglu) == width:
            return ratio
    raise UserError(
        f"transformers: its DINOv2 has FFNs of a whole multiple of {dim} hidden units, not {width}; this one loads with "
        "vitprune.load and timm"
    )


def _activation(act: nn.Module) -> str:
    name = LAYERS.get(type(act).__name__)
    if name is None or name not in ACTIVATIONS:
        raise UserError(f"transformers: {type(act).__name__} is not an activation of these towers")
    return name


def prepared(kind: Kind, data_config: Json) -> Json:
    """A preprocessor_config.json that says what timm's data_config does."""
    side = int(data_config["input_size"][-1])
    whole = {"height": side, "width": side}
    made: Json = {
        "image_processor_type": PROCESSORS[kind], "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
        "image_mean": [float(v) for v in data_config["mean"]], "image_std": [float(v) for v in data_config["std"]],
        "do_resize": True, "resample": RESAMPLE.get(str(data_config["interpolation"]), 3),
    }  # fmt: skip
    if data_config.get("crop_mode", "center") == "squash" or kind == "siglip":
        return made | {"size": whole, "do_center_crop": False}
    edge = int(side / float(data_config["crop_pct"]))
    return made | {"size": {"shortest_edge": edge}, "do_center_crop": True, "crop_size": whole}
