"""ONNX files at work: numpy and onnxruntime, never torch."""

from __future__ import annotations

import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from vitprune.errors import UserError

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}


def onnxruntime() -> ModuleType:
    """The installed onnxruntime, or one line that says which extra to install."""
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise UserError("onnxruntime is not installed: pip install 'vitprune[cpu]' (or [gpu], never both)") from error
    if not hasattr(ort, "InferenceSession"):
        raise UserError("onnxruntime is broken (both builds installed?): uninstall both, then install one extra")
    return ort


def session(path: Path, provider: str = "cpu", threads: int | None = None) -> Any:
    """An inference session on exactly the provider asked for. Raises UserError when it is not active."""
    ort = onnxruntime()
    name = PROVIDERS.get(provider, provider)
    if name not in ort.get_available_providers():
        have = ", ".join(p.removesuffix("ExecutionProvider") for p in ort.get_available_providers())
        raise UserError(
            f"provider `{provider}`: not available in this onnxruntime (it has {have}); see `vitprune doctor`"
        )
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if threads:
        options.intra_op_num_threads = threads
    try:
        made = ort.InferenceSession(str(path), options, providers=[name])
    except Exception as error:
        raise UserError(f"{path}: onnxruntime cannot open it ({' '.join(str(error).split())[:160]})") from error
    if made.get_providers()[0] != name:
        raise UserError(
            f"provider `{provider}`: onnxruntime fell back to {made.get_providers()[0]}; see `vitprune doctor`"
        )
    return made


def predict(made: Any, images: np.ndarray) -> np.ndarray:
    """Logits [B, C] of images [B, channels, H, W] float32."""
    return np.asarray(made.run(None, {made.get_inputs()[0].name: images})[0])


def interleaved(sessions: dict[str, Any], images: np.ndarray, seconds: float = 3.0) -> dict[str, dict[str, float]]:
    """Milliseconds per call of each session on the same batch, taken in turn so that drift cancels.

    Returns per session the median and quartiles over at least 5 rounds.
    """
    for made in sessions.values():
        for _ in range(2):
            predict(made, images)
    times: dict[str, list[float]] = {name: [] for name in sessions}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(times.values()))) < 5:
        for name, made in sessions.items():
            start = time.perf_counter()
            predict(made, images)
            times[name].append((time.perf_counter() - start) * 1e3)
    return {
        name: dict(zip(("q25_ms", "median_ms", "q75_ms"), map(float, np.percentile(t, [25, 50, 75])), strict=True))
        for name, t in times.items()
    }
