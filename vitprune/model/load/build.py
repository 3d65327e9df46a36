"""Where models come from: a timm name, `torchvision:NAME`, `transformers:NAME`; built from a name and arguments alone.

A name with arguments is all that a checkpoint folder says of an architecture. Nothing here runs code that comes with
weights: transformers models are built from the library's own classes, never from a repository's.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import logging
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models.naflexvit import NaFlexVit
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torchvision.models import get_model_weights
from torchvision.models.vision_transformer import VisionTransformer as TorchvisionViT

from vitprune.core.errors import UserError
from vitprune.core.reading import Json
from vitprune.model.declared import Foreign
from vitprune.model.load import timm_names
from vitprune.model.load.spec import Args
from vitprune.model.load.weights.towers.configs import TOWERS
from vitprune.model.sites.base import TokenLayout

TORCHVISION = {  # patch_size, num_layers, num_heads, hidden_dim, mlp_dim
    "vit_b_16": (16, 12, 12, 768, 3072),
    "vit_b_32": (32, 12, 12, 768, 3072),
    "vit_l_16": (16, 24, 16, 1024, 4096),
    "vit_l_32": (32, 24, 16, 1024, 4096),
    "vit_h_14": (14, 32, 16, 1280, 5120),
}
SIZES = ("patch_size", "num_layers", "num_heads", "hidden_dim", "mlp_dim")
CLASSIFIERS = ("classifier", "cls_classifier", "distillation_classifier")
TRANSFORMERS = {  # tokens that are no patches, and which the head reads
    "ViTForImageClassification": (1, (0, 1)),
    "DeiTForImageClassification": (2, (0, 1)),
    "DeiTForImageClassificationWithTeacher": (2, (0, 2)),
    "Dinov2ForImageClassification": (1, (0, None)),
    "Dinov2WithRegistersForImageClassification": (1, (0, None)),
}
SHAPING = (  # of a transformers configuration: what the computation depends on
    "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "mlp_ratio", "hidden_act",
    "layer_norm_eps", "image_size", "patch_size", "num_channels", "qkv_bias", "layerscale_value", "use_swiglu_ffn",
    "num_register_tokens", "pooler_output_size", "pooler_act", "id2label",
)  # fmt: skip
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "interpolation": "bilinear", "crop_pct": 0.875}
HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "interpolation": "bilinear", "crop_pct": 1.0}


def known(name: str) -> bool:
    """Whether `build` can make this architecture."""
    source, _, own = name.rpartition(":")
    tables: dict[str, Json] = {"torchvision": TORCHVISION, "transformers": TRANSFORMERS}
    return own in tables[source] if source in tables else not source and timm.is_model(own)


def close_to(name: str) -> list[str]:
    """A few names that this one may have been meant to be."""
    source, _, own = name.rpartition(":")
    if source == "torchvision":
        return difflib.get_close_matches(own, TORCHVISION)
    if source == "transformers":
        return difflib.get_close_matches(own, TRANSFORMERS)
    return timm_names.close(own.split(".")[0], timm_names.names().ours or timm.list_models())


def build(name: str, args: Args, *, pretrained: bool = False) -> nn.Module:
    """The architecture `name` under `args`, weights random or `pretrained` (fetched). Raises what its library raises."""
    source, _, own = name.rpartition(":")
    if source == "torchvision":
        return _torchvision(own, args, pretrained)
    if source == "transformers":
        return _transformers(own, args, pretrained)
    return _sized(timm.create_model(name, pretrained=pretrained, **args), args)


def _sized(model: nn.Module, args: Args) -> nn.Module:
    """A NaFlexViT takes any size, so `img_size` alone leaves no trace in it: it is what its images are made to."""
    size, cfg = args.get("img_size"), getattr(model, "pretrained_cfg", None)
    if isinstance(model, NaFlexVit) and size is not None and isinstance(cfg, dict):
        height, width = size if isinstance(size, list | tuple) else (size, size)
        model.pretrained_cfg = {**cfg, "input_size": (int(model.in_chans), int(height), int(width))}  # type: ignore[assignment]
    return model


class _Skipped(TorchFunctionMode):
    """Nothing that would only fill a tensor without memory: three quarters of the time that a build takes there."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        fills = name.endswith("_") and not name.endswith("__") and name != "requires_grad_"
        if fills and args and isinstance(args[0], Tensor) and args[0].is_meta:
            return args[0]
        return func(*args, **(kwargs or {}))


def on_meta(name: str, args: Args) -> nn.Module:
    """The architecture without memory for its weights. Raises what `build` raises."""
    with torch.device("meta"), _Skipped():
        return build(name, args)


def _torchvision(name: str, args: Args, pretrained: bool) -> Foreign:
    """torchvision's ViT: a class token, which the head reads alone; where no outputs are asked for, without a head."""
    bare = args.get("num_classes") == 0
    args = {key: value for key, value in args.items() if not (bare and key == "num_classes")}
    settings: Args = {**dict(zip(SIZES, TORCHVISION[name], strict=True)), "image_size": 224, **args}
    _no_others(settings, {*SIZES, "image_size", "num_classes"})
    cfg: Json = dict(IMAGENET)
    net = TorchvisionViT(**settings)
    if pretrained:
        weights = get_model_weights(name).DEFAULT  # type: ignore[attr-defined]
        net.load_state_dict(weights.get_state_dict(progress=False, check_hash=True))
        cfg["label_names"] = list(weights.meta["categories"])
    ffns: list[tuple[str, ...]] = [(f"{path}.0", f"{path}.1", f"{path}.3") for path in _paths(net, "mlp")]
    shape = (3, settings["image_size"], settings["image_size"])
    outputs, layout = settings.get("num_classes", 1000), TokenLayout(1, True, 0, 1)
    return _headed(Foreign(net, ffns, shape, outputs, layout, cfg, ["heads"], _of_torchvision), bare)


def _headed(model: Foreign, bare: bool) -> Foreign:
    if bare:
        model.remove_head()
    return model


def _of_torchvision(net: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """The class token and all tokens after the encoder's norm."""
    patches = net._process_input(images)
    tokens: Tensor = net.encoder(torch.cat([net.class_token.expand(patches.shape[0], -1, -1), patches], 1))
    return tokens[:, 0], tokens


def _transformers(name: str, args: Args, pretrained: bool, folder: Path | None = None) -> Foreign:
    """One of transformers' classifiers, built from the configuration's values, with the weights of a local folder."""
    if pretrained:
        raise ValueError("give the folder of its weights instead: model.name transformers:FOLDER")
    try:
        made = getattr(importlib.import_module("transformers"), name)
    except ImportError as error:
        raise UserError(
            f"model `transformers:{name}`: needs the extra: pip install 'vitprune[transformers]'"
        ) from error
    settings = dict(args)
    outputs = settings.pop("num_classes", None)
    bare = outputs == 0
    if bare:
        settings.pop("id2label", None)
    if outputs is not None and "id2label" not in settings:
        settings["num_labels"] = outputs or 1
    _no_others(settings, {*inspect.signature(made.config_class.__init__).parameters, "id2label", "num_labels"})
    config = made.config_class(**settings)
    net = made(config) if folder is None else with_weights(made, config, folder)
    prefix, (start, stop) = TRANSFORMERS[name]
    layout = TokenLayout(prefix + int(getattr(config, "num_register_tokens", 0)), True, start, stop)
    size = config.image_size if isinstance(config.image_size, int) else config.image_size[0]
    shape = (int(config.num_channels), int(size), int(size))
    cfg: Json = dict(HALF if name.startswith("ViT") else IMAGENET)
    labels = [str(config.id2label[i]) for i in range(config.num_labels)]
    if not labels[0].startswith("LABEL_"):
        cfg["label_names"] = labels
    heads = [path for path, _ in net.named_children() if path in CLASSIFIERS]
    ffns = [_hf_ffn(net, path) for path in _paths(net, "mlp")]
    tell = partial(_of_transformers, layout=layout)
    return _headed(Foreign(net, ffns, shape, config.num_labels, layout, cfg, heads, tell), bare)


def _of_transformers(net: Any, images: Tensor, layout: TokenLayout) -> tuple[Tensor, Tensor]:
    """What the class's classifier reads, and all tokens after the last norm: a class token, DINOv2's beside the mean of the
    patches; of two classifiers the mean of their tokens, as timm has it."""
    tokens: Tensor = net.base_model(images).last_hidden_state
    if layout.stop is None:
        return torch.cat([tokens[:, 0], tokens[:, layout.prefix :].mean(1)], 1), tokens
    return tokens[:, : layout.stop].mean(1), tokens


def with_weights(made: Any, config: Any, folder: Path) -> nn.Module:
    """transformers' own loading: it knows the names that its older versions wrote. Nothing pickled, nothing fetched."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    importlib.import_module("transformers").utils.logging.disable_progress_bar()
    net, found = made.from_pretrained(
        folder, config=config, local_files_only=True, use_safetensors=True, output_loading_info=True
    )
    for what in ("missing_keys", "mismatched_keys", "error_msgs"):
        if found.get(what):
            raise ValueError(f"{what.replace('_', ' ')}: {sorted(map(str, found[what]))[0]}")
    return net.float()


def _no_others(settings: Args, taken: set[str]) -> None:
    unknown = settings.keys() - (taken - {"self", "args", "kwargs"})
    if unknown:
        raise ValueError(f"unknown argument {min(unknown)}")


def _hf_ffn(net: nn.Module, path: str) -> tuple[str, ...]:
    """(fc1, act, fc2) or, gated, (fc1, act, fc2, gate)."""
    parts = {name for name, _ in net.get_submodule(path).named_children()}
    if {"fc1", "activation_fn", "fc2"} <= parts:
        return f"{path}.fc1", f"{path}.activation_fn", f"{path}.fc2"
    if {"up_proj", "act_fn", "down_proj", "gate_proj"} <= parts:
        return f"{path}.up_proj", f"{path}.act_fn", f"{path}.down_proj", f"{path}.gate_proj"
    raise UserError(f"{path}: {type(net.get_submodule(path)).__name__} is not supported")


def _paths(net: nn.Module, leaf: str) -> list[str]:
    return [path for path, _ in net.named_modules() if path.rpartition(".")[2] == leaf]


def in_folder(name: str, args: Args, folder: Path) -> nn.Module:
    """A `transformers:` architecture with the weights of a folder that transformers wrote."""
    return _transformers(name.partition(":")[2], args, False, folder)


def transformers_folder(folder: Path, config: Json) -> tuple[str, Json]:
    """Name and arguments of a folder that transformers wrote: what its config.json says of the architecture."""
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    if name not in TRANSFORMERS:
        raise UserError(f"{folder}: {str(name)[:60]} is not supported; there are {', '.join((*TRANSFORMERS, *TOWERS))}")
    return f"transformers:{name}", {key: config[key] for key in SHAPING if key in config}


def transformers_cfg(prepared: Any) -> Json:
    """timm's words for what a preprocessor_config.json says: resize to the input size, no crop, then normalise."""
    if not isinstance(prepared, dict):
        return {}
    mode = {0: "nearest", 3: "bicubic"}.get(prepared.get("resample", 2), "bilinear")
    made: Json = {"crop_pct": 1.0, "crop_mode": "squash", "interpolation": mode}
    size, crop = prepared.get("size"), prepared.get("crop_size")
    if isinstance(size, dict) and isinstance(crop, dict) and prepared.get("do_center_crop") and "shortest_edge" in size:
        made |= {"crop_mode": "center", "crop_pct": float(crop["height"]) / float(size["shortest_edge"])}
    for ours, theirs in (("mean", "image_mean"), ("std", "image_std")):
        if isinstance(prepared.get(theirs), list):
            made[ours] = tuple(prepared[theirs])
    return made
