"""A file of weights into a model: safetensors, torch without pickled code, Google's npz; all of it or a refusal."""

from __future__ import annotations

import pickle
from pathlib import Path

import timm
import torch
from safetensors.torch import load_file
from torch import nn

from vitprune import archives
from vitprune.errors import UserError
from vitprune.foreign import Foreign


def load(model: nn.Module, path: Path) -> None:
    """A local file in the model's own key names: safetensors, torch (no pickled code) or Google's npz."""
    archives.check(path, sum(4 * weight.numel() for weight in model.state_dict().values()))
    try:
        if isinstance(model, Foreign):
            plain = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
            model.net.load_state_dict(plain, strict=True)
        elif path.suffix.lower() == ".npz":
            _npz(model, path)
        else:
            timm.models.load_checkpoint(model, str(path), weights_only=True)
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path}: holds pickled Python objects, which could run code; re-save its state_dict as safetensors"
        ) from error
    except Exception as error:  # a file may hold anything, and torch and timm raise as many things
        raise UserError(f"{path}: does not fit the model {_name_of(model)} ({line(error)})") from error


def _npz(model: nn.Module, path: Path) -> None:
    """timm's loader takes what it finds there and leaves the rest as it was, so that is looked for."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.fill_(torch.nan)
    timm.models.load_checkpoint(model, str(path), weights_only=True)
    for name, weight in model.named_parameters():
        if bool(weight.isnan().any()):
            raise UserError(f"{path}: holds nothing of this shape for `{name}`; see model.args (num_classes, img_size)")


def _name_of(model: nn.Module) -> str:
    return type(model.net if isinstance(model, Foreign) else model).__name__


def line(error: BaseException) -> str:
    """An error of another library in one line."""
    return " ".join(str(error).split())[:160] or type(error).__name__
