"""A recipe's model without its weights: built on the meta device, its shapes held against the file's header.

For what only needs to know which model it is: `vitprune recipe check --model`, and defaults that a model may not allow.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from vitprune.core.errors import UserError
from vitprune.core.errors import one_line as line
from vitprune.core.reading import Json, read_json
from vitprune.model import families
from vitprune.model.declared import Foreign
from vitprune.model.load import build, folders, headers, opening
from vitprune.model.load.describing import Source, describe
from vitprune.model.load.loaded import Loaded, _shapes, as_backbone
from vitprune.model.load.weights import shards
from vitprune.model.load.weights.towers import configs as towers
from vitprune.model.load.weights.towers import opening as towers_files
from vitprune.recipe import inputs
from vitprune.runs.state.defaults import Facts

FITTED = (
    "pos_embed",
    "patch_embed",
    "rel_pos",
    "relative_position",
    "attn_mask",
)  # timm fits these to the image's size


def facts(spec: inputs.Model) -> Facts:
    """What a default may not fit in the model that a recipe names."""
    model = opened(spec).model
    return Facts.of(model, families.ffn_sites(model))


def opened(spec: inputs.Model) -> Loaded:
    """What `checkpoint.open_model` gives, on the meta device. Raises UserError as it does, less what only weights tell.

    A model of the Hugging Face hub is not fetched, but opened where it has been.
    """
    found = opening.own_folder(spec)
    if found is None:
        return _named(spec)
    config, weights = folders.files_of(found, theirs=spec.name.startswith("transformers:"))
    record = read_json(config)
    stored = shards.shapes(weights)
    if spec.name.startswith("transformers:"):
        if not isinstance(record, dict):
            raise UserError(f"{config}: not a transformers configuration")
        if towers.is_tower(record):
            return _tower(found, record, spec)
        architecture, args = build.transformers_folder(found, record)
        folders.in_range(args, config)
        prepared = found / "preprocessor_config.json"
        cfg = build.transformers_cfg(read_json(prepared)) if prepared.is_file() else None
        return _described(architecture, args, None, Source(cfg, spec.preprocess), f"{config}: ")
    architecture, args, sizes = folders.checked(record, config)
    source = Source(record.get("pretrained_cfg"), spec.preprocess)
    loaded = _described(architecture, args, sizes, source, f"{config}: ")
    expected = _shapes(loaded.model)
    for key in sorted(expected.keys() | stored.keys()):
        if expected.get(key) != stored.get(key):
            raise UserError(
                f"{weights}: `{key}` is {stored.get(key, 'missing')}, {config.name} says {expected.get(key, 'nothing')}"
            )
    return loaded


def _tower(folder: Path, record: Json, spec: inputs.Model) -> Loaded:
    """An image tower of transformers, at the size that its weights are for."""
    config, weights = folders.files_of(folder, theirs=True)
    path = folder / "preprocessor_config.json"
    cfg = build.transformers_cfg(read_json(path)) if path.is_file() else None
    made, _, plan = towers_files.planned(record, config, weights)
    as_backbone(plan)
    return describe(plan.eval().requires_grad_(False), made.name, made.args, Source(cfg, spec.preprocess))


def _named(spec: inputs.Model) -> Loaded:
    """A name of timm's, torchvision's or transformers' with its arguments."""
    opening.refuse_name(spec)
    name = spec.name
    loaded = _described(name, dict(spec.args), None, Source(None, spec.preprocess), f"model `{name}`: ")
    if spec.checkpoint is not None and spec.checkpoint.suffix == ".safetensors":
        _fits(loaded.model, spec.checkpoint)
    return loaded


def _described(
    architecture: str,
    args: dict[str, Any],
    sizes: folders.Sizes | None,
    source: Source,
    where: str,
) -> Loaded:
    try:
        with torch.device("meta"):
            model = folders.resized(build.build(architecture, args), sizes)
    except UserError:
        raise
    except Exception as error:  # timm raises what the architecture's constructor happens to raise
        raise UserError(f"{where}`{architecture}` cannot be built ({line(error)}); see model.args") from error
    return describe(model.eval().requires_grad_(False), architecture.split(".")[0], args, source)


def _fits(model: nn.Module, file: Path) -> None:
    """Raises UserError for a tensor of the model's own name in another shape. Only what is fitted to another size of image
    may differ, and a file in other names is left to the run, which knows how trainers write them."""
    stored, expected = headers.shapes(file), _shapes(model.net if isinstance(model, Foreign) else model)
    for key in sorted(expected.keys() & stored.keys()):
        if expected[key] != stored[key] and not any(part in key for part in FITTED):
            raise UserError(
                f"model.checkpoint {file}: `{key}` is {stored[key]}, the model's is {expected[key]}; see model.args "
                "(num_classes, img_size)"
            )
