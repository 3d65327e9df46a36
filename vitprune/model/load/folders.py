"""A model folder, config.json and model.safetensors: what its configuration says, checked before anything is made of it.

Nothing in it is trusted: sizes are checked against the architecture on the meta device before anything is allocated.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from vitprune.core.errors import UserError
from vitprune.core.errors import one_line as line
from vitprune.model import kinds
from vitprune.model.families import ffn_sites
from vitprune.model.load import build, stated
from vitprune.model.load.loaded import RAGGED, Widths, _shapes
from vitprune.model.load.spec import Args
from vitprune.model.load.weights import shards
from vitprune.model.sites import attention, base, ffn
from vitprune.model.sites.base import names

BUNDLED = Path(__file__).parents[2] / "demo" / "model"
MAX_CONFIG = 1 << 20
FORBIDDEN_ARGS = {
    "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir", "features_only", "scriptable",
}  # fmt: skip  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sizes:
    """What `config` says that the architecture does not: units of every FFN, sizes of slim attention (`stated.Attention`), and
    whether every fc2 has a bias that a repair added."""

    config: Path
    widths: Widths | None
    attention: stated.Attention
    biases: bool


def files_of(folder: Path, *, theirs: bool = False) -> tuple[Path, Path]:
    """The two files of a model folder, which are there and of a size that can be; of `theirs`, which transformers wrote, the
    second may be the index of several (see shards.py)."""
    config, weights = folder / "config.json", folder / shards.WHOLE
    weights = (shards.weights_of(folder) or weights) if theirs else weights
    if not folder.is_dir():
        raise UserError(f"{folder}: no such model folder; it holds config.json and model.safetensors")
    for path in (config, weights):
        if not path.is_file():
            raise shards.missing(folder, path.name)
    if config.stat().st_size > MAX_CONFIG:
        raise UserError(f"{config}: larger than a configuration can be")
    return config, weights


def checked(record: Any, path: Path) -> tuple[str, dict[str, Any], Sizes]:
    """Architecture, model_args and sizes of a config.json, checked for type and size."""
    if not isinstance(record, dict) or not isinstance(record.get("pretrained_cfg", {}), dict):
        raise UserError(f"{path}: not a timm configuration")
    architecture, args = record.get("architecture"), record.get("model_args") or {}
    if architecture is None and (record.get("architectures") or record.get("model_type")):
        raise UserError(f"{path}: is transformers', not timm's; give the folder as transformers:{path.parent}")
    if not isinstance(architecture, str) or not build.known(architecture):
        raise UserError(f"{path}: architecture {str(architecture)[:60]!r} is not a timm model")
    if not isinstance(args, dict) or FORBIDDEN_ARGS & args.keys():
        raise UserError(f"{path}: model_args may only describe the architecture")
    args = {key: value for key, value in args.items() if key != RAGGED}
    for key in ("num_classes", "global_pool"):
        if key in record:
            args.setdefault(key, record[key])
    in_range(args, path)
    block = record.get("vitprune") or {}
    if not isinstance(block, dict):
        raise UserError(f"{path}: vitprune is not a block of keys")
    widths, slim = _widths(block.get("widths"), path), stated.attention(block.get("attention"), path)
    return architecture, args, Sizes(path, widths, slim, block.get("added_biases") is True)


def _widths(given: Any, path: Path) -> Widths | None:
    """Units by site name; a list, block by block, in folders written before sites had names."""
    if given is None:
        return None
    counts = list(given.values()) if isinstance(given, dict) else given
    if (
        not isinstance(counts, list)
        or len(counts) > stated.MOST_SITES
        or not all(type(w) is int and 1 <= w <= 1 << 20 for w in counts)
    ):
        raise UserError(f"{path}: vitprune.widths must be one positive integer per site")
    return given


def in_range(args: Args, path: Path) -> None:
    """Numbers that an architecture can have, before anything is made from them."""
    for key, value in args.items():
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int | float) and not abs(number) <= (512 if key == "depth" else 1 << 16):
                raise UserError(f"{path}: model_args.{key} = {str(number)[:40]} is out of range")


def empty(architecture: str, args: Args, sizes: Sizes, weights: Path) -> nn.Module:
    """The empty model, made only after its shapes on the meta device are those of the weights' header."""
    config = sizes.config
    try:
        with safe_open(weights, "pt") as f:
            stored = {key: tuple(f.get_slice(key).get_shape()) for key in f.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{weights}: not a sound safetensors file ({line(error)}); copy or export it again") from error
    try:
        with torch.device("meta"):
            plan = resized(build.build(architecture, args), sizes)
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
    return resized(build.build(architecture, args), sizes)


def resized(model: nn.Module, sizes: Sizes | None) -> nn.Module:
    """The model itself with these sizes (fresh weights); None leaves it as it is."""
    if sizes is not None and sizes.widths is not None:
        _resize_ffns(model, sizes.widths, sizes.biases)
    if sizes is not None and sizes.attention:
        _resize_attention(model, sizes)
    return model


def _resize_ffns(model: nn.Module, widths: Widths, biases: bool) -> None:
    """Give every site the number of units in `widths` and, with `biases`, every fc2 a bias."""
    sites = ffn_sites(model)
    if biases:
        ffn.add_biases(model, sites)
    if isinstance(widths, list):
        if len(sites) != len(widths):
            raise UserError(f"vitprune.widths: {len(widths)} entries for a model of {len(sites)} blocks")
        widths = dict(zip(names(sites), widths, strict=True))
    for name, site in kinds.named(model, list(widths)).items():
        base.resize(model, site, widths[name])


def _resize_attention(model: nn.Module, sizes: Sizes) -> None:
    """Give every attention that is named its heads and dimensions, of those that the architecture has."""
    try:
        sites = {site.path: site for site in attention.attention_sites(model)}
    except UserError as error:
        raise UserError(f"{sizes.config}: vitprune.attention: {error}") from error
    for path, state in sizes.attention.items():
        if path not in sites:
            raise UserError(f"{sizes.config}: vitprune.attention: this model has no attention {path[:60]!r}")
        site, (heads, queries, dim) = sites[path], _state(state)
        most = site.asking(site.dim)
        if heads > site.heads or dim > site.dim or queries > most:
            raise UserError(
                f"{sizes.config}: vitprune.attention: {path} has at most {site.heads} heads of {site.dim} dimensions, "
                f"not {' of '.join(map(str, state))}"
            )
        whole = (dim == site.dim or site.values) and (queries == most or site.query_keys)
        if heads and not (whole and (heads == site.heads or site.whole_heads)):
            raise UserError(
                f"{sizes.config}: vitprune.attention: {path} has {site.heads} heads of {site.dim} dimensions, of which not "
                f"all can go; not {' of '.join(map(str, state))}"
            )
    for path, state in sizes.attention.items():
        heads, queries, dim = _state(state)
        attention.resize(model, sites[path], heads, dim, queries)


def _state(state: tuple[int, ...]) -> tuple[int, int, int]:
    """Heads, dimensions of queries and keys, and of values."""
    return (state[0], state[1], state[-1])
