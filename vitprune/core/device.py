"""Where a model computes: its device, the device that a name means, the machine, the installed packages."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

import torch
from torch import nn

from vitprune.core.errors import UserError
from vitprune.core.version import __version__

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
