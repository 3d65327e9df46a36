"""Versions, devices, providers, and the clashes that cost people an afternoon."""

from __future__ import annotations

import sys
from importlib import metadata
from typing import Any

NAMES = (
    "vitprune", "torch", "torchvision", "timm", "torch-pruning", "numpy", "safetensors", "onnx", "onnxscript",
    "onnxruntime", "onnxruntime-gpu",
)  # fmt: skip


def examine() -> dict[str, Any]:
    """Everything `vitprune doctor` prints; `problems` holds one line per clash, each with its cure."""
    found: dict[str, Any] = {"python": sys.version.split()[0], "versions": _versions(), "problems": []}
    problems: list[str] = found["problems"]
    found["devices"] = _devices(problems)
    found["providers"] = _providers(found["versions"], problems)
    try:
        import torchvision  # noqa: F401
    except Exception as error:
        problems.append(
            f"torchvision does not fit torch ({' '.join(str(error).split())[:100]}): reinstall both together"
        )
    return found


def _versions() -> dict[str, str | None]:
    result: dict[str, str | None] = {}
    for name in NAMES:
        try:
            result[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            result[name] = None
    return result


def _devices(problems: list[str]) -> list[str]:
    try:
        import torch
    except Exception as error:
        problems.append(f"torch cannot be imported ({error}): pip install 'vitprune[cpu]'")
        return []
    devices = [f"cpu ({torch.get_num_threads()} threads)"]
    if torch.cuda.is_available():
        devices += [f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        devices.append("mps")
    return devices


def _providers(versions: dict[str, str | None], problems: list[str]) -> list[str]:
    if versions["onnxruntime"] and versions["onnxruntime-gpu"]:
        problems.append(
            "onnxruntime and onnxruntime-gpu overwrite each other: pip uninstall -y onnxruntime onnxruntime-gpu, "
            "then install vitprune[cpu] or vitprune[gpu]"
        )
    try:
        import onnxruntime

        return [name.removesuffix("ExecutionProvider") for name in onnxruntime.get_available_providers()]
    except Exception:
        problems.append("onnxruntime is missing or broken: pip install 'vitprune[cpu]' (or [gpu], never both)")
        return []


def text(found: dict[str, Any]) -> str:
    """The examination as plain lines."""
    lines = [f"python {found['python']}"]
    lines += [f"{name} {version or '-'}" for name, version in found["versions"].items()]
    lines.append("devices: " + (", ".join(found["devices"]) or "none"))
    lines.append("onnxruntime providers: " + (", ".join(found["providers"]) or "none"))
    lines += [f"PROBLEM: {problem}" for problem in found["problems"]] or ["no problems found"]
    return "\n".join(lines)
