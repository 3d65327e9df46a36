"""Models in and out: timm names, local checkpoints and folders in; a timm-style folder out, loaded again by `load`.

A folder is config.json + model.safetensors. Nothing in it is trusted: no pickle, sizes are checked against the
architecture on the meta device before anything is allocated, and what `save` wrote is held against its checksums.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from timm.data import ImageNetInfo, resolve_model_data_config
from torch import nn

from vitprune.core.errors import UserError
from vitprune.core.errors import one_line as line
from vitprune.core.reading import opened, read_json
from vitprune.images.preprocess import Preprocessing
from vitprune.model import classifier, families, kinds
from vitprune.model.declared import Foreign
from vitprune.model.families import ffn_sites
from vitprune.model.load import build, checksums, prepared, timm_names
from vitprune.model.load import weights as weights_of
from vitprune.model.load.loaded import ASSUMED, KEPT_CFG, RAGGED, Loaded, Widths, _shapes
from vitprune.model.load.spec import ModelSpec, PreprocessSpec
from vitprune.model.sites import base, ffn
from vitprune.model.sites.base import names

BUNDLED = Path(__file__).parents[2] / "demo" / "model"
MAX_CONFIG = 1 << 20
MOST_SITES = 4096
FORBIDDEN_ARGS = {
    "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir", "features_only", "scriptable",
}  # fmt: skip


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
    classifier.outputs(loaded.model)
    channels = families.input_shape(loaded.model)[0]
    if channels not in (1, 3):
        raise UserError(
            f"model: takes images of {channels} channels; files give 1 (grey) or 3 (RGB), see model.args.in_chans"
        )
    loaded.model = _ready(loaded.model).to(device or "cpu")
    return loaded


def load(folder: str | Path, device: torch.device | str = "cpu") -> nn.Module:
    """A timm model from a folder that vitprune (or timm) wrote, in eval mode, its pruned widths included."""
    return _ready(_open_folder(Path(folder)).model).to(device)


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
    return BUNDLED if spec.name == "bundled" else Path(spec.name.partition(":")[2])


def refuse_name(spec: ModelSpec) -> None:
    """Nothing; raises UserError for a name that nobody knows, with those it may mean, and for arguments that are none."""
    if not build.known(spec.name.split(".")[0]):
        raise UserError(f"model.name `{spec.name[:80]}`: {timm_names.unknown(build.close_to(spec.name))}")
    bad = FORBIDDEN_ARGS & spec.args.keys()
    if bad:
        raise UserError(f"model.args.{min(bad)}: not accepted there; use model.pretrained or model.checkpoint")


def _open_named(spec: ModelSpec) -> Loaded:
    refuse_name(spec)
    name = spec.name
    if spec.checkpoint is not None:
        with opened(spec.checkpoint, f"model.checkpoint {spec.checkpoint}"):
            pass
    try:
        model = build.build(name, spec.args, pretrained=spec.pretrained)
    except UserError:
        raise
    except (OSError, ConnectionError) as error:
        raise UserError(
            f"model `{name}`: its weights cannot be fetched ({line(error)}); use model.checkpoint"
        ) from error
    except Exception as error:  # timm raises what the architecture's constructor happens to raise
        raise UserError(f"model `{name}`: timm cannot build it ({line(error)}); see model.args") from error
    notes = weights_of.load(model, spec.checkpoint, spec.checkpoint_key) if spec.checkpoint is not None else []
    source = Source(None, spec.preprocess, timms=spec.pretrained, trained=spec.checkpoint is not None)
    loaded = _describe(model, name.split(".")[0], dict(spec.args), source)
    loaded.notes = [*notes, *loaded.notes]
    return loaded


def _fetched(spec: ModelSpec) -> Path:
    """The folder of a Hugging Face hub id, config.json and model.safetensors alone, fetched into the hub's own cache."""
    if not spec.pretrained or spec.checkpoint is not None or spec.args:
        raise UserError(f"model `{spec.name[:80]}`: is fetched with its weights; give pretrained: true and no more")
    repository, _, revision = spec.name.removeprefix("hf-hub:").partition("@")
    try:
        files = ["config.json", "model.safetensors"]
        return Path(huggingface_hub.snapshot_download(repository, revision=revision or None, allow_patterns=files))
    except (OSError, ValueError) as error:  # the hub's own errors are both
        raise UserError(
            f"model `{spec.name[:80]}`: cannot be fetched ({line(error)}); copy its folder and use local-dir:FOLDER"
        ) from error


def _open_transformers(folder: Path, given: PreprocessSpec | None) -> Loaded:
    """A folder that transformers wrote: config.json, model.safetensors, and how its images are prepared."""
    config, weights = _folder_of(folder)
    record = read_json(config, MAX_CONFIG)
    if not isinstance(record, dict):
        raise UserError(f"{config}: not a transformers configuration")
    architecture, args = build.transformers_folder(folder, record)
    _in_range(args, config)
    try:
        model = build.in_folder(architecture, args, folder)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{weights}: does not fit {architecture} ({line(error)})") from error
    path = folder / "preprocessor_config.json"
    cfg = build.transformers_cfg(read_json(path, MAX_CONFIG)) if path.is_file() else None
    return _describe(model, architecture, args, Source(cfg, given))


def _folder_of(folder: Path) -> tuple[Path, Path]:
    """The two files of a model folder, which are there and of a size that can be."""
    config, weights = folder / "config.json", folder / "model.safetensors"
    if not folder.is_dir():
        raise UserError(f"{folder}: no such model folder; it holds config.json and model.safetensors")
    for path in (config, weights):
        if not path.is_file():
            raise UserError(f"{folder}: has no {path.name}; a model folder holds config.json and model.safetensors")
    if config.stat().st_size > MAX_CONFIG:
        raise UserError(f"{config}: larger than a configuration can be")
    return config, weights


def _open_folder(folder: Path, given: PreprocessSpec | None = None) -> Loaded:
    config, weights = _folder_of(folder)
    record = read_json(config, MAX_CONFIG)
    architecture, args, widths = _checked(record, config)
    checksums.verify(record, config, weights)
    about = record.get("vitprune") or {}
    model = _build(architecture, args, widths, config, weights, about.get("added_biases") is True)
    try:
        model.load_state_dict(load_file(weights), strict=True)
    except (RuntimeError, SafetensorError) as error:
        raise UserError(f"{weights}: does not fit {config.name} ({line(error)})") from error
    assumed = about.get(ASSUMED)
    unsaid = {str(key) for key in assumed} if isinstance(assumed, list) else set()
    loaded = _describe(model, architecture, args, Source(record.get("pretrained_cfg"), given, unsaid=unsaid))
    worked_out = ("widths", "added_biases", ASSUMED, *checksums.KEYS)
    loaded.about = {key: value for key, value in about.items() if key not in worked_out}
    return loaded


def _checked(record: Any, path: Path) -> tuple[str, dict[str, Any], Widths | None]:
    """Architecture, model_args and widths of a config.json, checked for type and size."""
    if not isinstance(record, dict) or not isinstance(record.get("pretrained_cfg", {}), dict):
        raise UserError(f"{path}: not a timm configuration")
    architecture, args = record.get("architecture"), record.get("model_args") or {}
    if not isinstance(architecture, str) or not build.known(architecture):
        raise UserError(f"{path}: architecture {str(architecture)[:60]!r} is not a timm model")
    if not isinstance(args, dict) or FORBIDDEN_ARGS & args.keys():
        raise UserError(f"{path}: model_args may only describe the architecture")
    args = {key: value for key, value in args.items() if key != RAGGED}
    for key in ("num_classes", "global_pool"):
        if key in record:
            args.setdefault(key, record[key])
    _in_range(args, path)
    block = record.get("vitprune") or {}
    if not isinstance(block, dict):
        raise UserError(f"{path}: vitprune is not a block of keys")
    return architecture, args, _widths(block.get("widths"), path)


def _widths(given: Any, path: Path) -> Widths | None:
    """Units by site name; a list, block by block, in folders written before sites had names."""
    if given is None:
        return None
    counts = list(given.values()) if isinstance(given, dict) else given
    if (
        not isinstance(counts, list)
        or len(counts) > MOST_SITES
        or not all(type(w) is int and 1 <= w <= 1 << 20 for w in counts)
    ):
        raise UserError(f"{path}: vitprune.widths must be one positive integer per site")
    return given


def _in_range(args: dict[str, Any], path: Path) -> None:
    """Numbers that an architecture can have, before anything is made from them."""
    for key, value in args.items():
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int | float) and not abs(number) <= (512 if key == "depth" else 1 << 16):
                raise UserError(f"{path}: model_args.{key} = {str(number)[:40]} is out of range")


def _build(
    architecture: str, args: dict[str, Any], widths: Widths | None, config: Path, weights: Path, biases: bool
) -> nn.Module:
    """The empty model, made only after its shapes on the meta device are those of the weights' header."""
    try:
        with safe_open(weights, "pt") as f:
            stored = {key: tuple(f.get_slice(key).get_shape()) for key in f.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{weights}: not a sound safetensors file ({line(error)}); copy or export it again") from error
    try:
        with torch.device("meta"):
            plan = _resized(build.build(architecture, args), widths, biases)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{config}: timm cannot build `{architecture}` from it ({line(error)})") from error
    expected = _shapes(plan)
    for key in sorted(expected.keys() | stored.keys()):
        if expected.get(key) != stored.get(key):
            raise UserError(
                f"{weights}: `{key}` is {stored.get(key, 'missing')}, {config.name} says {expected.get(key, 'nothing')}"
            )
    return _resized(build.build(architecture, args), widths, biases)


def _resized(model: nn.Module, widths: Widths | None, biases: bool) -> nn.Module:
    """Give every site the number of units in `widths` (fresh weights) and, with `biases`, every fc2 a bias; None leaves
    the model as it is."""
    if widths is None:
        return model
    sites = ffn_sites(model)
    if biases:
        ffn.add_biases(model, sites)
    if isinstance(widths, list):
        if len(sites) != len(widths):
            raise UserError(f"vitprune.widths: {len(widths)} entries for a model of {len(sites)} blocks")
        widths = dict(zip(names(sites), widths, strict=True))
    for name, site in kinds.named(model, list(widths)).items():
        base.resize(model, site, widths[name])
    return model


@dataclass(frozen=True, slots=True)
class Source:
    """What is known of weights beside them: the folder's own `cfg`, less what it only assumed (`unsaid`); what the recipe
    says of the preprocessing; whether they are `timms` own, whose facts timm knows, or `trained` elsewhere."""

    cfg: dict[str, Any] | None
    given: PreprocessSpec | None
    timms: bool = False
    trained: bool = True
    unsaid: set[str] = field(default_factory=set)


def _describe(model: nn.Module, architecture: str, args: dict[str, Any], source: Source) -> Loaded:
    ffn_sites(model)
    cfg = source.cfg
    own = dict(getattr(model, "pretrained_cfg", None) or {})
    stated = {key for key, value in (own if source.timms else cfg or {}).items() if value is not None} - source.unsaid
    if not source.timms and not isinstance(model, Foreign):  # timm's default weights are not these
        own = {key: value for key, value in own.items() if key not in prepared.OF_WEIGHTS}
    own |= {k: v for k, v in (cfg or {}).items() if k in KEPT_CFG}
    model.pretrained_cfg = own  # type: ignore[assignment]
    channels, height, width = families.input_shape(model)
    own["input_size"] = (channels, height, width)
    for key in ("mean", "std"):  # a model made for other channels than its weights' keeps their average
        if isinstance(own.get(key), list | tuple) and own[key] and len(own[key]) != channels and key not in (cfg or {}):
            own[key] = (sum(own[key]) / len(own[key]),) * channels
    try:
        before = resolve_model_data_config(model, pretrained_cfg=own)
    except Exception as error:
        raise UserError(f"model `{architecture}`: its preprocessing cannot be read ({line(error)})") from error
    before["input_size"] = (channels, height, width)
    data_config = prepared.apply(before, source.given, fixed=cfg is not None)
    try:
        Preprocessing.of(data_config)
    except ValueError as error:
        raise UserError(f"model `{architecture}`: preprocessing {error} cannot be used") from error
    labels = _labels(own, int(getattr(model, "num_classes", 0)))
    widths = [site.size for site in ffn_sites(model)]
    origin = prepared.origin(before, data_config, source.given, stated, architecture, source.trained)
    return Loaded(model, architecture, args, data_config, labels, widths, origin=origin, notes=origin.notes)


def _labels(cfg: dict[str, Any], outputs: int) -> list[str] | None:
    """One name per output; two spellings (ImageNet's synset and plain name) are joined by a tab."""
    names, more = cfg.get("label_names"), cfg.get("label_descriptions")
    if names is None and outputs == 1000:
        info = ImageNetInfo()
        names, more = info.label_names(), [text.split(",")[0] for text in info.label_descriptions()]
    if not isinstance(names, list | tuple) or len(names) != outputs:
        return None
    if isinstance(more, dict):
        more = [more.get(name, name) for name in names]
    if not isinstance(more, list | tuple) or len(more) != outputs:
        more = names
    return [str(n) if n == m else f"{n}\t{m}" for n, m in zip(names, more, strict=True)]
