"""Models in and out: timm names, local checkpoints and folders in; a timm-style folder out, loaded again by `load`.

A folder is config.json + model.safetensors. Nothing in it is trusted: no pickle, sizes are checked against the
architecture on the meta device before anything is allocated, and what `save` wrote is held against its checksums.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import huggingface_hub
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from vitprune.core.errors import UserError
from vitprune.core.errors import one_line as line
from vitprune.core.reading import opened, read_json
from vitprune.model import classifier, families
from vitprune.model.families import ffn_sites
from vitprune.model.inside import backbone
from vitprune.model.load import build, folders, timm_names
from vitprune.model.load.describing import Source, describe
from vitprune.model.load.loaded import ASSUMED, PROJECTION, READS, Loaded, as_backbone
from vitprune.model.load.spec import ModelSpec, PreprocessSpec
from vitprune.model.load.weights import checksums, fetching, filling, shards
from vitprune.model.load.weights.towers import configs as towers
from vitprune.model.load.weights.towers import opening as towers_files


def open_model(spec: ModelSpec, device: torch.device | None = None) -> Loaded:
    """The model a recipe names. Raises UserError when it cannot be found, does not fit or is not supported."""
    folder = own_folder(spec)
    if folder is None:
        loaded = _open_named(spec)
    elif spec.name.startswith("transformers:"):
        loaded = _open_transformers(folder, spec.preprocess)
    else:
        loaded = _open_folder(folder, spec.preprocess)
    ffn_sites(loaded.model)
    _head(loaded, spec)
    channels = families.input_shape(loaded.model)[0]
    if channels not in (1, 3):
        raise UserError(
            f"model: takes images of {channels} channels; files give 1 (grey) or 3 (RGB), see model.args.in_chans"
        )
    loaded.model = _ready(loaded.model).to(device or "cpu")
    return loaded


def _head(loaded: Loaded, spec: ModelSpec) -> None:
    """Nothing; the model is left the head that is asked for, and is a classifier or a backbone from here on."""
    if spec.head == "none":
        backbone.remove_head(loaded.model)
    if spec.features is not None:  # else as its folder says it
        backbone.read(loaded.model, spec.features)
    if backbone.of(loaded.model) is None:
        classifier.outputs(loaded.model)
    else:
        loaded.labels = None


def load(folder: str | Path, device: torch.device | str = "cpu") -> nn.Module:
    """A timm model from a folder that vitprune (or timm) wrote, in eval mode, its slim FFNs and attention included; the
    folder may be the Hub's, `hf-hub:OWNER/NAME` or `hf-hub:OWNER/NAME@REVISION`, of which the two files are fetched.
    `local-dir:FOLDER` and `transformers:FOLDER` are what they are in a recipe."""
    given = str(folder)
    if given.startswith("transformers:"):
        loaded = _open_transformers(Path(given.partition(":")[2]), None)
        ffn_sites(loaded.model)
    elif given.startswith("hf-hub:"):
        loaded = _open_folder(fetched(given))
    else:
        loaded = _open_folder(Path(given.removeprefix("local-dir:")))
    return _ready(loaded.model).to(device)


def _ready(model: nn.Module) -> nn.Module:
    return model.eval().requires_grad_(False)


def own_folder(spec: ModelSpec) -> Path | None:
    """The folder of a model that brings its own weights, fetched where it is the hub's; None for the name of one without.

    Raises UserError where other weights or arguments are given too.
    """
    if spec.name.startswith("hf-hub:"):
        return _fetched(spec)
    foreign = spec.name.startswith("transformers:") and not build.known(spec.name)
    if not (spec.name == "bundled" or spec.name.startswith("local-dir:") or foreign):
        return None
    if spec.checkpoint is not None or spec.args or spec.pretrained:
        raise UserError(
            f"model `{spec.name[:80]}`: brings its own weights; remove model.checkpoint, model.args and model.pretrained"
        )
    return folders.BUNDLED if spec.name == "bundled" else Path(spec.name.partition(":")[2])


def refuse_name(spec: ModelSpec) -> None:
    """Nothing; raises UserError for a name that nobody knows, with those it may mean, and for arguments that are none."""
    if not build.known(spec.name.split(".")[0]):
        raise UserError(f"model.name `{spec.name[:80]}`: {timm_names.unknown(build.close_to(spec.name))}")
    bad = folders.FORBIDDEN_ARGS & spec.args.keys()
    if bad:
        raise UserError(f"model.args.{min(bad)}: not accepted there; use model.pretrained or model.checkpoint")


def _open_named(spec: ModelSpec) -> Loaded:
    refuse_name(spec)
    name = spec.name
    if spec.checkpoint is not None:
        with opened(spec.checkpoint, f"model.checkpoint {spec.checkpoint}"):
            pass
    try:
        with fetching.at_hand(f"model `{name}`") if spec.pretrained and ":" not in name else nullcontext():
            model = build.build(name, spec.args, pretrained=spec.pretrained)
    except UserError:
        raise
    except fetching.NOT_THERE as error:
        raise UserError(
            f"model `{name}`: its weights cannot be fetched ({line(error)}); use model.checkpoint"
        ) from error
    except Exception as error:  # timm raises what the architecture's constructor happens to raise
        raise UserError(f"model `{name}`: timm cannot build it ({line(error)}); see model.args") from error
    notes = filling.load(model, spec.checkpoint, spec.checkpoint_key) if spec.checkpoint is not None else []
    source = Source(None, spec.preprocess, timms=spec.pretrained, trained=spec.checkpoint is not None)
    loaded = describe(model, name.split(".")[0], dict(spec.args), source)
    loaded.notes = [*notes, *loaded.notes]
    return loaded


def _fetched(spec: ModelSpec) -> Path:
    """The folder of a Hugging Face hub id, config.json and model.safetensors alone, fetched into the hub's own cache."""
    if not spec.pretrained or spec.checkpoint is not None or spec.args:
        raise UserError(f"model `{spec.name[:80]}`: is fetched with its weights; give pretrained: true and no more")
    return fetched(spec.name)


def fetched(name: str) -> Path:
    """The folder of `hf-hub:ID` or `hf-hub:ID@REVISION` in the Hub's own cache, fetched where it is not there."""
    repository, _, revision = name.removeprefix("hf-hub:").partition("@")
    try:
        files = ["config.json", "model.safetensors"]
        with fetching.at_hand(f"model `{name[:80]}`"):
            return Path(huggingface_hub.snapshot_download(repository, revision=revision or None, allow_patterns=files))
    except fetching.NOT_FETCHED as error:
        raise UserError(
            f"model `{name[:80]}`: cannot be fetched ({line(error)}); copy its folder and use local-dir:FOLDER"
        ) from error


def _open_transformers(folder: Path, given: PreprocessSpec | None) -> Loaded:
    """A folder that transformers wrote: config.json, model.safetensors, and how its images are prepared."""
    config, weights = folders.files_of(folder, theirs=True)
    record = read_json(config, folders.MAX_CONFIG)
    if not isinstance(record, dict):
        raise UserError(f"{config}: not a transformers configuration")
    path = folder / "preprocessor_config.json"
    prepared = read_json(path, folders.MAX_CONFIG) if path.is_file() else None
    cfg = build.transformers_cfg(prepared) if path.is_file() else None
    if towers.is_tower(record):
        model, made, notes = towers_files.opened(record, config, weights, prepared)
        loaded = describe(model, made.name, made.args, Source(cfg, given))
        loaded.notes = [*notes, *loaded.notes]
        return loaded
    architecture, args = build.transformers_folder(folder, record)
    folders.in_range(args, config)
    shards.shapes(weights)  # before the library follows the names in an index
    try:
        model = build.in_folder(architecture, args, folder)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{weights}: does not fit {architecture} ({line(error)})") from error
    return describe(model, architecture, args, Source(cfg, given))


def _open_folder(folder: Path, given: PreprocessSpec | None = None) -> Loaded:
    config, weights = folders.files_of(folder)
    record = read_json(config, folders.MAX_CONFIG)
    architecture, args, sizes = folders.checked(record, config)
    checksums.verify(record, config, weights)
    about = record.get("vitprune") or {}
    model = folders.empty(architecture, args, sizes, weights)
    try:
        model.load_state_dict(load_file(weights), strict=True)
    except (RuntimeError, SafetensorError) as error:
        raise UserError(f"{weights}: does not fit {config.name} ({line(error)})") from error
    if about.get(PROJECTION) is True:
        as_backbone(model)
    if about.get(READS) == "pooled" and backbone.of(model) is not None:
        backbone.read(model, "pooled")
    assumed = about.get(ASSUMED)
    unsaid = {str(key) for key in assumed} if isinstance(assumed, list) else set()
    loaded = describe(model, architecture, args, Source(record.get("pretrained_cfg"), given, unsaid=unsaid))
    worked_out = ("widths", "attention", "added_biases", ASSUMED, PROJECTION, READS, *checksums.KEYS)
    loaded.about = {key: value for key, value in about.items() if key not in worked_out}
    return loaded
