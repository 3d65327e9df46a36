"""ONNX files at work: numpy and onnxruntime, never torch."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from vitprune.core import external
from vitprune.core.errors import UserError, one_line

FLOAT = "tensor(float)"
OLDEST = (1, 23)  # the first that knows opset 23
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}


def onnxruntime() -> ModuleType:
    """The installed onnxruntime, or one line that says which extra to install."""
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise UserError("onnxruntime is not installed: pip install 'vitprune[cpu]' (or [gpu], never both)") from error
    if not hasattr(ort, "InferenceSession"):
        raise UserError("onnxruntime is broken (both builds installed?): uninstall both, then install one extra")
    version = str(getattr(ort, "__version__", ""))
    if OLDEST > tuple(int(part) for part in version.split(".")[:2] if part.isdigit()) > ():
        raise UserError(f"onnxruntime {version} is too old for these files: pip install -U 'vitprune[cpu]' (or [gpu])")
    return ort


def available() -> list[str]:
    """Which of cpu, cuda and tensorrt this onnxruntime has."""
    have = onnxruntime().get_available_providers()
    return [short for short, name in PROVIDERS.items() if name in have]


def provider_of(device: str) -> str:
    """Which provider examines the files of a run on a device of this type: CUDA's where both are there, else the processor."""
    return "cuda" if device == "cuda" and "cuda" in available() else "cpu"


def session(
    model: Path | bytes, provider: str = "cpu", threads: int | None = None, in_turn: bool = False, exact: bool = False
) -> Any:
    """An inference session on exactly the provider asked for. Raises UserError when it is not active, or when the file
    keeps its weights where they are not read from (external.py).

    `in_turn`: its threads stop waiting actively as soon as a run ends, for sessions that are timed one after the other.
    `exact`: products of float32 are made in float32 on CUDA too, where they are else in tf32.
    """
    ort = onnxruntime()
    name = PROVIDERS.get(provider, provider)
    have = ort.get_available_providers()
    if name not in have:
        shown = ", ".join(p.removesuffix("ExecutionProvider") for p in have)
        raise UserError(
            f"provider `{provider}`: not available in this onnxruntime (it has {shown}); see `vitprune doctor`"
        )
    if isinstance(model, Path) and model.exists():
        external.check(model)
    options = ort.SessionOptions()
    options.add_session_config_entry("session.load_model_format", "ONNX")  # whatever the file's name ends with
    options.log_severity_level = 3
    if threads:
        options.intra_op_num_threads = threads
    if in_turn:
        options.add_session_config_entry("session.force_spinning_stop", "1")
    # What TensorRT does not take goes to CUDA; what CUDA does not take, to the processor, by onnxruntime's own rule.
    chain: list[Any] = [name] + [PROVIDERS["cuda"]] * (name == PROVIDERS["tensorrt"] and PROVIDERS["cuda"] in have)
    if exact and name == PROVIDERS["cuda"]:
        chain = [(name, {"use_tf32": "0"})]
    try:
        made = ort.InferenceSession(str(model) if isinstance(model, Path) else model, options, providers=chain)
    except Exception as error:
        where = str(model) if isinstance(model, Path) else "model"
        raise UserError(f"{where}: onnxruntime cannot open it ({one_line(error)})") from error
    if made.get_providers()[0] != name:
        raise UserError(
            f"provider `{provider}`: onnxruntime fell back to {made.get_providers()[0]}; see `vitprune doctor`"
        )
    return made


def image_shape(made: Any, where: Path | str) -> list[Any]:
    """What a session takes beside the batch, as [channels, H, W]. Raises UserError for a file of another kind of model."""
    inputs, outputs = made.get_inputs(), made.get_outputs()
    if len(inputs) != 1 or inputs[0].type != FLOAT or len(inputs[0].shape) < 2 or not outputs[0].shape:
        takes = ", ".join(f"{x.name}: {x.type} {x.shape}" for x in inputs)[:120]
        raise UserError(f"{where}: is no image classifier's file: it takes {takes}, not one batch of float images")
    return list(inputs[0].shape[1:])


def predict(made: Any, images: np.ndarray) -> np.ndarray:
    """Logits [B, C], or a backbone's features [B, D], of images [B, channels, H, W] float32: the first output. Raises
    UserError for images that the file does not take."""
    return outputs(made, images, 1)[0]


def outputs(made: Any, images: np.ndarray, count: int | None = None) -> list[np.ndarray]:
    """The first `count` outputs (None: all) of images [B, channels, H, W] float32. Raises UserError as `predict` does."""
    names = [one.name for one in made.get_outputs()][:count]
    try:
        return [np.asarray(one) for one in made.run(names, {made.get_inputs()[0].name: images})]
    except Exception as error:  # onnxruntime raises classes of its own
        reason = one_line(error)
        raise UserError(f"a batch {list(images.shape)}: onnxruntime cannot run it ({reason})") from error


def interleaved(runners: dict[str, Any], images: np.ndarray, seconds: float = 3.0) -> dict[str, dict[str, Any]]:
    """Milliseconds per call of each runner (a session, or a function of the images) on the same batch, taken in turn.

    Returns per runner median and quartiles over at least 5 rounds and `seconds`, and `relative`: the median over the
    rounds of its time divided by the first runner's in the same round, so that a drift of the machine cancels. Rounds
    go on until the quartiles of that ratio agree, or PATIENCE times as long; `other_cores`: what others used meanwhile.
    """
    from vitprune.deploy import timing

    calls = {name: made if callable(made) else partial(predict, made) for name, made in runners.items()}
    for call in calls.values():
        for _ in range(2):
            call(images)
    times: dict[str, list[float]] = {name: [] for name in calls}
    load, started, rounds, due = timing.Load(), time.perf_counter(), 0, seconds
    found: dict[str, dict[str, Any]] = {}
    while True:
        for name, call in calls.items():
            start = time.perf_counter()
            call(images)
            times[name].append((time.perf_counter() - start) * 1e3)
        rounds, spent = rounds + 1, time.perf_counter() - started
        if rounds < 5 or spent < due:
            continue
        due = spent + seconds / 4
        found = _summary(times)
        wide = any(timing.spread(x["relative_quartiles"], x["relative"]) > timing.SPREAD for x in found.values())
        if not wide or spent >= timing.PATIENCE * seconds:
            break
    others = load.others()
    return {name: row | {"rounds": rounds, "other_cores": others} for name, row in found.items()}


def _summary(times: dict[str, list[float]]) -> dict[str, dict[str, Any]]:
    first = np.array(next(iter(times.values())))
    found: dict[str, dict[str, Any]] = {}
    for name, measured in times.items():
        low, median, high = map(float, np.percentile(measured, [25, 50, 75]))
        below, relative, above = map(float, np.percentile(np.array(measured) / first, [25, 50, 75]))
        found[name] = {"q25_ms": low, "median_ms": median, "q75_ms": high, "relative": relative}
        found[name]["relative_quartiles"] = [below, above]
    return found
