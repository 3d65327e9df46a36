"""A file of weights into a model: safetensors, torch without pickled code, Google's npz; all of it or a refusal."""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import timm
import torch
from safetensors.torch import load_file
from torch import nn

from vitprune.core.errors import UserError, one_line
from vitprune.model.declared import Foreign
from vitprune.model.load.weights import archives, readings, sets
from vitprune.model.load.weights.sets import Reading

T = TypeVar("T")


def load(model: nn.Module, path: Path, key: str | None = None) -> list[str]:
    """Fill a model from a local file, all of it: the one set of weights in the file that fits (see readings.py), or the
    one of several that `key` names. Returns what there is to say of it. Raises UserError."""
    archives.check(path, sum(4 * weight.numel() for weight in model.state_dict().values()))
    if path.suffix.lower() == ".npz" and not isinstance(model, Foreign):
        if key is not None:
            raise UserError(f"{path}: an .npz file holds one set of weights; remove model.checkpoint_key")
        _in_one_line(model, path, lambda: _npz(model, path))
        return []
    content = _in_one_line(model, path, lambda: _content(path))
    try:
        chosen = readings.choose(content, model, key)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    net = sets.inner(model)
    names = net.state_dict().keys()
    wanted = {name: value for name, value in chosen.tensors.items() if name in names}
    _in_one_line(model, path, lambda: net.load_state_dict(wanted, strict=True))
    return _said(path, content, chosen)


def _in_one_line(model: nn.Module, path: Path, work: Callable[[], T]) -> T:
    try:
        return work()
    except UserError:
        raise
    except Exception as error:  # a file may hold anything, and torch and timm raise as many things
        if isinstance(error, pickle.UnpicklingError) and _is_pickle(path):
            raise UserError(
                f"{path}: holds pickled Python objects{_objects(path)}, which could run code; where you trust it, load "
                "it with torch and re-save its state_dict as safetensors"
            ) from error
        what = "does not fit" if path.suffix.lower() == ".npz" else "cannot be read as weights of"
        raise UserError(
            f"{path}: {what} {type(sets.inner(model)).__name__} ({one_line(error)}); see model.args, or save the model's "
            "state_dict as safetensors"
        ) from error


def _content(path: Path) -> Any:
    """What is in the file: tensors and plain values, and the settings that timm's own training puts beside them."""
    if path.suffix.lower() == ".safetensors":
        return load_file(path)
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, "cpu", weights_only=True)


def _is_pickle(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4).startswith((b"PK\x03\x04", b"\x80"))


def _objects(path: Path) -> str:
    """The kinds of objects that stand in the way, where torch can list them without making any."""
    try:
        found = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # an old format, which it cannot list
        return ""
    kinds = sorted(set(found) - {"argparse.Namespace"})
    return f" ({', '.join(kinds[:3])[:160]}{', …' if len(kinds) > 3 else ''})" if kinds else ""


def _said(path: Path, content: Any, chosen: Reading) -> list[str]:
    """Where in the file the weights stood and what was left, where it was not the whole file."""
    top = content if isinstance(content, dict) else {}
    outside = [str(key) for key in top if key not in chosen.where[:1]] if chosen.where else []
    left = [*chosen.beside, *outside]
    if not chosen.where and not chosen.spelled and not left:
        return []
    place = " and ".join(
        [f"the set `{'.'.join(chosen.where)}`"] * bool(chosen.where)
        + [f"the names after `{chosen.spelled}`"] * bool(chosen.spelled)
    )
    place = place or "those at its top level"
    more = f", and {len(left) - 6} more" if len(left) > 6 else ""
    rest = f"; not read: {', '.join(f'`{name[:60]}`' for name in left[:6])}{more}" if left else ""
    return [f"Weights of {path.name}: {place}{rest}."]


def _npz(model: nn.Module, path: Path) -> None:
    """timm's loader takes what it finds there and leaves the rest as it was, so that is looked for."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.fill_(torch.nan)
    timm.models.load_checkpoint(model, str(path), weights_only=True)
    for name, weight in model.named_parameters():
        if bool(weight.isnan().any()):
            raise UserError(f"{path}: holds nothing of this shape for `{name}`; see model.args (num_classes, img_size)")
