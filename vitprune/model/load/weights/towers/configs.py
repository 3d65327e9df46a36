"""What a config.json of transformers says of an image tower, as a name of timm's with arguments; and the other way."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitprune.core.errors import UserError
from vitprune.core.reading import Json
from vitprune.model.load.saving import ratio_for
from vitprune.model.load.spec import Args
from vitprune.model.load.weights.towers.names import Kind

TOWERS: dict[str, tuple[Kind, str]] = {  # kind, and what stands before the tower's names in the file of a larger model
    "Dinov2Model": ("dinov2", ""),
    "Dinov2WithRegistersModel": ("dinov2", ""),
    "DINOv3ViTModel": ("dinov3", ""),
    "CLIPVisionModel": ("clip", ""),
    "CLIPVisionModelWithProjection": ("clip", "vision_model."),
    "CLIPModel": ("clip", "vision_model."),
    "SiglipVisionModel": ("siglip", ""),
    "SiglipModel": ("siglip", "vision_model."),
}
PROJECTED = ("CLIPVisionModelWithProjection", "CLIPModel")
ACTIVATIONS = {"gelu": "gelu", "quick_gelu": "quick_gelu", "gelu_pytorch_tanh": "gelu_tanh"}
ACTS = {
    "dinov2": "gelu",
    "dinov3": "gelu",
    "clip": "quick_gelu",
    "siglip": "gelu_pytorch_tanh",
}  # where a configuration does not say it
EPS = {"dinov2": 1e-6, "dinov3": 1e-5, "clip": 1e-5, "siglip": 1e-6}
TINY = {192: "tiny"}
SIZES = {384: "small", 768: "base", 1024: "large"}
MOST, DEEPEST = 1 << 16, 512


@dataclass(frozen=True, slots=True)
class Tower:
    """An image tower of transformers in timm's words: `name` with `args` builds it at the `side` (pixels) of its weights.
    `prefix` stands before its names in the file; `swiglu`: its FFNs are gated."""

    cls: str
    kind: Kind
    prefix: str
    name: str
    args: Args
    side: int
    swiglu: bool = False


def is_tower(record: Any) -> bool:
    """Whether a configuration is of a model whose image tower can be taken."""
    return _class(record) in TOWERS


def tower(record: Json, where: Path, width: int) -> Tower:
    """The tower that a configuration describes; `width`: hidden units of its FFNs, which the file's tensors say.

    Raises UserError naming the key for what timm's model cannot be.
    """
    cls = str(_class(record))
    kind, prefix = TOWERS[cls]
    own = record.get("vision_config", record) if cls in ("CLIPModel", "SiglipModel") else record
    if not isinstance(own, dict):
        raise UserError(f"{where}: vision_config is not a block of keys")
    own = {"num_channels": 3, "patch_size": 16, "layer_norm_eps": EPS[kind], "hidden_act": ACTS[kind], **own}
    swiglu, registers = kind == "dinov2" and own.get("use_swiglu_ffn") is True, "WithRegisters" in cls
    _refuse(own, kind, where, swiglu)
    args = _args(own, where)
    if kind == "dinov3":
        return _rotary(own, args, where, width)
    args["mlp_ratio"] = ratio_for(
        args["embed_dim"], 2 * width if swiglu else width
    )  # of a gate and its values together
    act = str(own["hidden_act"])
    if not swiglu:
        args["act_layer"] = ACTIVATIONS[act]
    if kind == "dinov2" and own.get("qkv_bias", True) is not True:
        args["qkv_bias"] = False
    if cls in PROJECTED:
        args["num_classes"] = _number(record, "projection_dim", where)
    if registers:
        args["reg_tokens"] = _number({"num_register_tokens": 4, **own}, "num_register_tokens", where)
    name = _name(kind, args["embed_dim"], swiglu, registers, act)
    return Tower(cls, kind, prefix, name, args, args["img_size"], swiglu)


def _rotary(own: Json, args: Args, where: Path, width: int) -> Tower:
    """DINOv3's tower, whose positions are rotations of queries and keys, so that its weights are for any size."""
    gated, biases = own.get("use_gated_mlp") is True, own.get("query_bias", True) is True
    asked = {"hidden_act": "silu" if gated else "gelu", "key_bias": False, "proj_bias": True, "mlp_bias": True}
    for key, value in (asked | {"value_bias": biases}).items():
        if (found := own.get(key, key != "key_bias")) != value:
            raise UserError(f"{where}: {key} {str(found)[:40]}: {value} is what timm's dinov3 has of this kind")
    theta = own.get("rope_theta", 100.0)
    if type(theta) not in (int, float) or not 1 < theta <= MOST:
        raise UserError(f"{where}: rope_theta is {str(theta)[:40]}, a number above 1 up to {MOST} is needed")
    dim, heads = args["embed_dim"], args["num_heads"]
    if dim // heads % 4:
        raise UserError(f"{where}: heads of {dim // heads} dimensions, which rotations in two directions cannot have")
    registers = own.get("num_register_tokens", 0)
    args["num_reg_tokens"] = _number(own, "num_register_tokens", where) if registers else 0
    args |= {"mlp_ratio": ratio_for(dim, width), "global_pool": "token"}
    args |= {"rope_temperature": float(theta)} if theta != 100 else {}
    args |= {"swiglu_align_to": 1} if gated and width % 8 else {}  # else that of the architecture's name
    size = (
        f"{'huge' if dim == 1280 else 'small'}_plus" if gated else ((TINY if biases else {}) | SIZES).get(dim, "base")
    )
    name = f"vit_{size}_patch16_dinov3{'_qkvb' * biases}"
    return Tower("DINOv3ViTModel", "dinov3", "", name, args, args["img_size"])


def _refuse(own: Json, kind: Kind, where: Path, swiglu: bool) -> None:
    """Raises UserError for what timm's model of this kind does not have."""
    eps, act = own["layer_norm_eps"], own["hidden_act"]
    if type(eps) not in (int, float) or abs(eps / EPS[kind] - 1) > 1e-6:
        raise UserError(f"{where}: layer_norm_eps {str(eps)[:40]}: {EPS[kind]} is what timm's {kind} has")
    if kind != "dinov3" and not swiglu and (not isinstance(act, str) or act not in ACTIVATIONS):
        raise UserError(f"{where}: hidden_act {str(act)[:40]!r}: {', '.join(ACTIVATIONS)} are supported")
    if kind == "siglip" and own.get("vision_use_head", True) is not True:
        raise UserError(f"{where}: vision_use_head: false: a SigLIP tower without its pooling is not supported")


def _args(own: Json, where: Path) -> Args:
    """timm's words for the sizes."""
    words = {
        "embed_dim": "hidden_size", "depth": "num_hidden_layers", "num_heads": "num_attention_heads",
        "img_size": "image_size", "patch_size": "patch_size", "in_chans": "num_channels",
    }  # fmt: skip
    args: Args = {ours: _number(own, theirs, where) for ours, theirs in words.items()} | {"num_classes": 0}
    if args["depth"] > DEEPEST or args["embed_dim"] % args["num_heads"]:
        of = f"{args['depth']} blocks of {args['num_heads']} heads and {args['embed_dim']} dimensions"
        raise UserError(f"{where}: {of}; no such tower can be")
    return args


def _class(record: Any) -> Any:
    names = record.get("architectures") if isinstance(record, dict) else None
    return names[0] if isinstance(names, list) and names and isinstance(names[0], str) else None


def _number(own: Json, key: str, where: Path) -> int:
    """A positive whole number, of a square where there may be two."""
    value = own.get(key)
    if isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
        value = value[0]
    if type(value) is not int or not 1 <= value <= MOST:
        raise UserError(f"{where}: {key} is {str(value)[:40]}, a whole number up to {MOST} is needed")
    return value


def _name(kind: Kind, dim: int, swiglu: bool, registers: bool, act: str) -> str:
    """The timm architecture of this build, whose other sizes the arguments say."""
    if kind == "dinov2":
        return f"vit_{'giant' if swiglu else SIZES.get(dim, 'base')}_patch14_{'reg4_' * registers}dinov2"
    if kind == "clip":
        return f"vit_base_patch16_clip_{'quickgelu_' * (act == 'quick_gelu')}224"
    return "vit_base_patch16_siglip_224"
