"""Versions, devices, providers, and the clashes that cost people an afternoon."""

from __future__ import annotations

import sys
from importlib import metadata

from vitprune.core.reading import Json
from vitprune.deploy.runtime import OLDEST
from vitprune.runs.engine import threads

NAMES = (
    "vitprune", "torch", "torchvision", "timm", "torch-pruning", "numpy", "safetensors", "onnx", "onnxscript",
    "onnxruntime", "onnxruntime-gpu",
)  # fmt: skip
# torch release: the torchvision releases that were built for it. torchvision does not always pin torch.
PAIRS = {"2.13": ("0.28",), "2.14": ("0.29",), "2.15": ("0.29",)}


def examine() -> Json:
    """Everything `vitprune doctor` prints; `problems` holds one line per clash, each with its cure."""
    found: Json = {"python": sys.version.split()[0], "versions": _versions(), "notes": [], "problems": []}
    problems: list[str] = found["problems"]
    found["devices"] = _devices(problems)
    if found["devices"] and (crowded := threads.crowded_here()):
        found["notes"].append(crowded)
    found["providers"] = _providers(found["versions"], problems)
    if wrong := wrong_pair(found["versions"].get("torch"), found["versions"].get("torchvision")):
        problems.append(wrong)
    try:
        import torchvision  # noqa: F401
    except Exception as error:
        problems.append(
            f"torchvision does not fit torch ({' '.join(str(error).split())[:100]}): reinstall both together"
        )
    return found


def wrong_pair(torch: str | None, torchvision: str | None) -> str | None:
    """One line where torch and torchvision are not of one release; None where they are, or are newer than this list."""
    if torch is None or torchvision is None:
        return None
    own = PAIRS.get(".".join(torch.split(".")[:2]))
    if own is None or any(torchvision == v or torchvision.startswith((f"{v}.", f"{v}+")) for v in own):
        return None
    return (
        f"torch {torch} goes with torchvision {' or '.join(own)}, not {torchvision}: "
        f"pip install 'torch=={torch}' 'torchvision=={own[-1]}.*'"
    )


def too_old(onnxruntime: str | None) -> bool:
    """Whether an installed onnxruntime cannot open the files of this package (opset 23)."""
    try:
        return onnxruntime is not None and tuple(map(int, onnxruntime.split(".")[:2])) < OLDEST
    except ValueError:
        return False


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
    devices = [f"cpu ({torch.get_num_threads()} threads, waiting {threads.waiting()})"]
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
    for name in ("onnxruntime", "onnxruntime-gpu"):
        if too_old(versions.get(name)):
            problems.append(
                f"{name} {versions[name]} is too old for the files made here (opset 23): pip install '{name}>=1.23'"
            )
    try:
        import onnxruntime

        return [name.removesuffix("ExecutionProvider") for name in onnxruntime.get_available_providers()]
    except Exception:
        problems.append("onnxruntime is missing or broken: pip install 'vitprune[cpu]' (or [gpu], never both)")
        return []


def text(found: Json) -> str:
    """The examination as plain lines."""
    lines = [f"python {found['python']}"]
    lines += [f"{name} {version or '-'}" for name, version in found["versions"].items()]
    lines.append("devices: " + (", ".join(found["devices"]) or "none"))
    lines.append("onnxruntime providers: " + (", ".join(found["providers"]) or "none"))
    lines += [f"note: {note}" for note in found["notes"]]
    lines += [f"PROBLEM: {problem}" for problem in found["problems"]] or ["no problems found"]
    return "\n".join(lines)
