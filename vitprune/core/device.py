"""Where a model computes: its device, the device that a name means, the machine, the installed packages."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from vitprune.core.errors import UserError
from vitprune.core.version import __version__

Precision = Literal["float32", "tf32", "bfloat16"]
PACKAGES = ("torch", "torchvision", "timm", "torch-pruning", "onnx", "onnxruntime", "onnxruntime-gpu", "numpy")


def device_of(model: nn.Module) -> torch.device:
    """The device of the model's first parameter."""
    return next(model.parameters()).device


def resolve_device(name: str) -> torch.device:
    """`auto`, `cpu`, `cuda[:k]` or `mps`; a device that is not there is the user's to mend."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"--device {name}: not a device; use auto, cpu, cuda or mps") from error
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available.get(device.type, False):
        raise UserError(f"--device {name}: not available here; use --device cpu, or see `vitprune doctor`")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {name}: only {torch.cuda.device_count()} CUDA device(s) here")
    return device


def wide(device: torch.device) -> torch.device:
    """Where float64 sums of what is computed on a device live: there, or on the processor for one without float64 (mps)."""
    return torch.device("cpu") if device.type == "mps" else device


def widened(x: Tensor) -> Tensor:
    """The tensor in float64, where that lives (see `wide`)."""
    return x.to(wide(x.device)).double()


def moved(x: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device; from the processor to CUDA through pinned memory, so that the copy waits for nobody."""
    if device.type == "cuda" and x.device.type == "cpu":
        x = x if x.is_pinned() else x.pin_memory()
    return x.to(device, non_blocking=True) if device.type == "cuda" else x.to(device)


def host_copy(x: Tensor, pinned: bool) -> Tensor:
    """A copy of the tensor in the processor's memory, in pages that CUDA copies to and from by itself where `pinned`.

    It is whole when this returns. Where no more memory can be pinned, plain memory holds the copy.
    """
    if not pinned or x.device.type != "cuda":
        return x.detach().to("cpu", copy=True)
    try:
        made = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
    except RuntimeError:  # pages that cannot be moved are few, however much memory is free
        return x.detach().to("cpu", copy=True)
    return made.copy_(x.detach())


@contextmanager
def products(kind: Precision, device: torch.device) -> Iterator[None]:
    """Inside, matrix products of float32 are made in `kind`: tf32 on CUDA alone, bfloat16 by autocast; all else as it is."""
    matmul, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, convolutions.allow_tf32
    matmul.allow_tf32 = convolutions.allow_tf32 = kind == "tf32"
    try:
        with torch.autocast(device.type, torch.bfloat16, enabled=kind == "bfloat16"):
            yield
    finally:
        matmul.allow_tf32, convolutions.allow_tf32 = before


def exact(x: Tensor) -> Tensor:
    """The tensor as sums take it: what a pass in half precision gave becomes float32."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def versions() -> dict[str, str]:
    """Installed versions of what a result depends on."""
    found = {"vitprune": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine(device: torch.device) -> dict[str, str | int | None]:
    """Processor, cores and device."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        cpu = names[0] if names else cpu
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    return {"cpu": cpu, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "device": name}
