"""The library's door: what the verbs are given, checked and brought into one form, or one line that says what to do.

Legend: N images [N, C, H, W] as the model takes them (already normalised), labels [N] output indices.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from vitprune.core import device
from vitprune.core.errors import UserError
from vitprune.model import families

EXACT = (torch.float32, torch.float64)  # what scores, repairs and their sums are worked out in
CHECKPOINTING = ("grad_checkpointing", "gradient_checkpointing")  # timm's word and transformers'


def bare(verb: str, model: nn.Module, dtypes: tuple[torch.dtype, ...] | None = EXACT) -> nn.Module:
    """The model itself, out of DataParallel and torch.compile. Raises UserError for one that cannot be worked with:
    `dtypes` are those its weights may have (None: any floating type)."""
    while isinstance(inner := _inside(model), nn.Module):
        model = inner
    if not isinstance(model, nn.Module):
        raise UserError(f"{verb}: the model is a {type(model).__name__}, not a torch module; see vitprune.load")
    weights = list(model.parameters())
    if not weights or any(weight.is_meta for weight in weights):
        raise UserError(f"{verb}: the model has no weights (it is on the meta device?); load them first")
    if any(weight.is_inference() for weight in weights):
        raise UserError(f"{verb}: the model was made inside torch.inference_mode(); build or load it outside of it")
    devices = sorted({str(weight.device) for weight in weights})
    if len(devices) > 1:
        raise UserError(f"{verb}: the model lies on {' and '.join(devices)}; move it to one device, model.to('cpu')")
    found = sorted({str(weight.dtype).removeprefix("torch.") for weight in weights if weight.dtype != weights[0].dtype})
    kind = str(weights[0].dtype).removeprefix("torch.")
    if found:
        raise UserError(f"{verb}: the model's weights are {kind} and {', '.join(found)}; take one, model.float()")
    if not weights[0].is_floating_point() or (dtypes is not None and weights[0].dtype not in dtypes):
        wanted = " or ".join(str(d).removeprefix("torch.") for d in dtypes or EXACT)
        raise UserError(f"{verb}: the model's weights are {kind}, {wanted} is needed: take model.float()")
    return model


def _inside(model: Any) -> Any:
    """What a wrapper wraps; None for a model that is none."""
    if isinstance(model, DataParallel | DistributedDataParallel):
        return model.module
    return model._modules.get("_orig_mod") if isinstance(model, nn.Module) else None  # torch.compile's


class Inside:
    """Around a verb's work: eval mode, frozen weights, no gradient checkpointing, nothing compiled (it would not see our
    hooks), no autocast, no inference mode; outside, all of it as it was."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __enter__(self) -> None:
        self.attributes: list[tuple[nn.Module, str, Any]] = []
        for module in self.model.modules():
            self.attributes.append((module, "training", module.training))
            for name in CHECKPOINTING:
                if getattr(module, name, False) is True:
                    self._put(module, name, False)
            if vars(module).get("_compiled_call_impl") is not None:
                self._put(module, "_compiled_call_impl", None)
        self.grads = [(p, p.requires_grad) for p in self.model.parameters()]
        self.modes = ExitStack()
        self.modes.enter_context(torch.inference_mode(False))
        self.modes.enter_context(torch.autocast(device.device_of(self.model).type, enabled=False))
        self.model.eval().requires_grad_(False)

    def _put(self, module: nn.Module, name: str, value: Any) -> None:
        self.attributes.append((module, name, getattr(module, name)))
        setattr(module, name, value)

    def __exit__(self, *_: object) -> None:
        self.modes.close()
        for module, name, value in self.attributes:
            setattr(module, name, value)
        for parameter, grad in self.grads:
            parameter.requires_grad_(grad)


def images_of(verb: str, model: nn.Module, images: Any) -> Tensor:
    """Images [N, C, H, W] in the type of the model's weights, free of any gradient."""
    if isinstance(images, np.ndarray):
        images = _tensor_of(verb, "images", images)
    if not isinstance(images, Tensor):
        raise UserError(
            f"{verb}: images are a {type(images).__name__}; one tensor [N, C, H, W] is needed (torch.stack of several)"
        )
    if not images.is_floating_point():
        kind = str(images.dtype).removeprefix("torch.")
        raise UserError(
            f"{verb}: images are {kind}; give them as the model takes them: float, scaled by 1/255, then normalised"
        )
    channels, height, width = expected = families.input_shape(model)
    shape = tuple(images.shape)
    if shape[1:] != expected or not len(images):
        wanted = f"[N, {channels}, {height}, {width}] is needed{_way(shape, expected)}"
        raise UserError(f"{verb}: images are {list(shape)}, {wanted}")
    images = images.detach().to(next(model.parameters()).dtype)
    if images.is_inference():
        images = images.clone()
    if not bool(torch.isfinite(images).all()):
        raise UserError(f"{verb}: some pixels are not finite numbers; look at how the images are normalised")
    return images


def _way(shape: tuple[int, ...], expected: tuple[int, int, int]) -> str:
    """What to do about images of another shape."""
    channels, height, width = expected
    if shape[1:] == expected:
        return ", and there are none"
    if shape == expected:
        return "; for one image images[None]"
    if len(shape) == 4 and shape[1:] == (height, width, channels):
        return ": channels come first, images.permute(0, 3, 1, 2)"
    if len(shape) == 4 and shape[1] == channels:
        return ": resize them, or build the model with another img_size"
    return ""


def batches_of(verb: str, model: nn.Module, images: Any, batch: int) -> list[Tensor]:
    """Batches of images from one tensor, or from an iterable of batches, alone or with their labels (a DataLoader)."""
    if isinstance(images, Tensor | np.ndarray):
        return list(images_of(verb, model, images).split(batch))
    if isinstance(images, str | bytes | dict) or not isinstance(images, Iterable):
        raise UserError(f"{verb}: images are a {type(images).__name__}; a tensor [N, C, H, W] or batches are needed")
    found = []
    for part in images:
        if isinstance(part, dict):
            keys = ", ".join(map(str, list(part)[:4]))
            raise UserError(f"{verb}: a batch of images is a dict of {keys}; give the tensor of images alone")
        pair = isinstance(part, tuple | list) and len(part) > 0 and isinstance(part[0], Tensor | np.ndarray)
        found.append(images_of(verb, model, part[0] if pair else part))
    return found


def labels_of(verb: str, images: Tensor, labels: Any, outputs: int) -> Tensor:
    """Labels [N] int64, one per image, each an output."""
    if isinstance(labels, np.ndarray | list | tuple):
        labels = _tensor_of(verb, "labels", labels)
    if not isinstance(labels, Tensor):
        raise UserError(f"{verb}: labels are a {type(labels).__name__}; a tensor [N] of output indices is needed")
    if labels.ndim != 1:
        way = "labels.argmax(1)" if labels.ndim == 2 and labels.shape[1] == outputs > 1 else "labels.flatten()"
        raise UserError(f"{verb}: labels are {list(labels.shape)}; [N] output indices are needed, {way}")
    if len(images) != len(labels):
        raise UserError(f"{verb}: {len(images)} images and {len(labels)} labels; give as many of one as of the other")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise UserError(f"{verb}: labels are {labels.dtype}; output indices are integers")
    labels = labels.detach().to(torch.int64)
    if labels.is_inference():
        labels = labels.clone()
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= outputs:
        raise UserError(f"{verb}: labels run from {low} to {high}, the head's outputs from 0 to {outputs - 1}")
    return labels


def _tensor_of(verb: str, what: str, values: Any) -> Tensor:
    try:
        return torch.from_numpy(np.array(values))
    except (TypeError, ValueError) as error:
        raise UserError(f"{verb}: {what} cannot be made a tensor ({' '.join(str(error).split())[:120]})") from error


def check_batch(verb: str, batch: Any) -> None:
    """A batch holds at least one image."""
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        raise UserError(f"{verb}: batch {batch!r}; a count of images, at least 1, is needed")
