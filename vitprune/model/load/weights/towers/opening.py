"""A folder that transformers wrote of an image tower, opened as timm's model: sizes first, then the tensors."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitprune.core.errors import UserError, one_line
from vitprune.core.reading import Json
from vitprune.model.load import build
from vitprune.model.load.loaded import as_backbone
from vitprune.model.load.weights import shards
from vitprune.model.load.weights.towers import names
from vitprune.model.load.weights.towers.configs import Tower, tower

FIRST_FFN = re.compile(
    r"((vision_model\.|dinov2\w*\.)?encoder\.layers?\.0\.mlp\.(fc2|weights_out)|(model\.)?layer\.0\.mlp\.down_proj)\.weight"
)
PREFIXES = ("", "vision_model.", "dinov2.", "dinov2_with_registers.")  # under which a tower may stand in its own file
INSIDE = "model."  # under which newer versions have DINOv3's blocks, and nothing else of it
TORCHS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def planned(record: Json, config: Path, weights: Path) -> tuple[Tower, str, nn.Module]:
    """The tower, what stands before its names in `weights`, and timm's model of it on the meta device.

    Raises UserError where the file's header does not hold the tensors that the configuration says, before one is read.
    """
    stored = shards.shapes(weights)
    found = next(((key, shape) for key, shape in stored.items() if FIRST_FFN.fullmatch(key)), None)
    if found is None or len(found[1]) != 2:
        raise UserError(f"{weights}: has no FFN of a first block (such as encoder.layer.0.mlp)")
    made = tower(record, config, found[1][1])
    prefix = next((p for p in PREFIXES if any(key.startswith(f"{p}embeddings.") for key in stored)), made.prefix)
    if made.kind == "dinov3":
        prefix = INSIDE if any(key.startswith(f"{INSIDE}layer.") for key in stored) else ""
    try:
        plan = build.on_meta(made.name, made.args)
    except Exception as error:  # timm raises what the architecture's constructor happens to raise
        raise UserError(f"{config}: timm cannot build `{made.name}` from it ({one_line(error)})") from error
    for key, value in names.shown(plan.state_dict(), made.kind, swiglu=made.swiglu).items():
        place, expected = placed(key, prefix), tuple(value.shape)
        if stored.get(place) != expected and not key.endswith("mask_token"):
            raise UserError(f"{weights}: `{place}` is {stored.get(place, 'missing')}, {config.name} says {expected}")
    return made, prefix, plan


def placed(key: str, prefix: str) -> str:
    """Where a tensor of the tower stands in a file; a projection stands outside of the tower."""
    outside = not key.startswith("layer.") if prefix == INSIDE else key.startswith("visual_projection")
    return key if outside else f"{prefix}{key}"


def side_of(made: Tower, prepared: Any) -> int:
    """The side in pixels at which the tower is used: what its images are cropped or made to, where DINOv2's positions and
    DINOv3's rotations may follow."""
    found = prepared if isinstance(prepared, dict) else {}
    cropped = bool(found.get("do_center_crop"))
    said = found.get("crop_size" if cropped else "size")
    block: Json = said if isinstance(said, dict) else {}
    height, width = block.get("height"), block.get("width")
    patch, follows = made.args["patch_size"], made.kind == "dinov3" or (made.kind == "dinov2" and cropped)
    fits = isinstance(height, int) and height == width and patch <= height <= 1 << 13 and height % patch == 0
    return int(block["height"]) if follows and fits else made.side


def opened(record: Json, config: Path, weights: Path, prepared: Any) -> tuple[nn.Module, Tower, list[str]]:
    """timm's model with the file's weights, the tower as it was built, and what a report should say of it."""
    made, prefix, plan = planned(record, config, weights)
    side = side_of(made, prepared)
    like = plan.state_dict()
    wanted = [key for key in names.shown(like, made.kind, swiglu=made.swiglu) if not key.endswith("mask_token")]
    found = shards.tensors(weights, [placed(key, prefix) for key in wanted])
    held = {key: found[placed(key, prefix)] for key in wanted}
    for key, value in held.items():
        if value.dtype not in TORCHS:
            raise UserError(f"{weights}: `{key}` is of {value.dtype}; a tower's weights are floats")
    state = names.read({key: value.float() for key, value in held.items()}, like, made.kind, swiglu=made.swiglu)
    notes = []
    if side != made.side and made.kind == "dinov2":
        state["pos_embed"] = _resampled(state["pos_embed"], made, side)
        notes.append(
            f"The positions of {config.parent.name} are for {made.side} pixels and are resampled to the {side} that its "
            "images are cropped to, as transformers does in every pass."
        )
    if side != made.side:
        made = replace(made, prefix=prefix, args=made.args | {"img_size": side}, side=side)
    model = build.build(made.name, made.args)
    model.load_state_dict(state, strict=True)
    as_backbone(model)
    return model, made, notes


def _resampled(positions: Tensor, made: Tower, side: int) -> Tensor:
    """DINOv2's positions [1, (1 +) P, D] on another grid, bicubic; with registers smoothed first, as the library has it."""
    registers = "reg_tokens" in made.args
    own, grid = (positions[:, :0], positions) if registers else (positions[:, :1], positions[:, 1:])
    rows, count = made.side // made.args["patch_size"], side // made.args["patch_size"]
    square = grid.reshape(1, rows, rows, -1).permute(0, 3, 1, 2)
    turned = F.interpolate(square, size=(count, count), mode="bicubic", align_corners=False, antialias=registers)
    return torch.cat([own, turned.flatten(2).transpose(1, 2)], 1)
