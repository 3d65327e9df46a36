"""ONNX files, their parity on real images, their agreement on the whole test split, and their latency."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import vitprune
from vitprune import checkpoint, evaluation, models, onnx_export, onnx_precision, runtime
from vitprune.context import Context
from vitprune.files import sha256, write_json
from vitprune.onnx_precision import Sweep
from vitprune.predict import calibrate
from vitprune.stages.prune import label

LATENCY_BATCH = 32
FILES = {"fp32": "model.onnx", "fp16": "model.fp16.onnx", "int8": "model.int8.onnx"}
CALIBRATION_IMAGES = 256
FLOOR_IMAGES = 2000  # 0.05 points each


def export(context: Context) -> list[Path]:
    """ONNX of every slim model in every precision, each examined on the whole test split, and the latencies of fp32.

    int8 is calibrated and chosen on the probe split; the test split is read when all files are written.
    """
    if not context.recipe.export.onnx:
        return []
    stage = context.folder.stage_folder("export")
    dense = stage / "dense.onnx"
    outputs = list(range(context.loaded.outputs))
    every = metadata(context, context.every_target(), outputs) | onnx_export.size(context.loaded.model)
    onnx_export.export(context.loaded.model, dense, every)
    files = [dense]
    for group, targets in context.class_sets().items():
        folder = context.folder.root / (group or "")
        slim, path = checkpoint.load(folder, context.device), folder / FILES["fp32"]
        context.reporter.say(f"export: {path}")
        about, open_set = metadata(context, targets, _outputs(context, targets)), _open_set(context, slim, targets)
        about |= onnx_export.size(slim)
        onnx_export.export(slim, path, about | ({"open_set": open_set} if open_set else {}))
        made, sweep = _other_precisions(context, folder, targets)
        examined = _examined(context, slim, {"fp32": path} | made, targets)
        if sweep:
            examined["int8"]["sweep"] = sweep.as_json()
        result = {
            "opset": examined["fp32"]["opset"],
            "parity": examined["fp32"]["parity"],
            "agreement": examined["fp32"]["agreement"],
            "files": list(examined.values()),
            "latency": _latency(context, dense, path),
            "open_set": open_set,
            "sha256": sha256(path),
        }
        write_json(stage / f"{group or 'all'}.json", result)
        files += [path, *made.values(), stage / f"{group or 'all'}.json"]
    return files


def _other_precisions(context: Context, folder: Path, targets: list[int]) -> tuple[dict[str, Path], Sweep | None]:
    """fp16 and int8 beside model.onnx, as far as the recipe asks for them, from probe images alone."""
    wanted, sweep, made = context.recipe.export.precisions, None, {}
    if "fp16" in wanted:
        made["fp16"] = folder / FILES["fp16"]
        onnx_precision.to_fp16(folder / FILES["fp32"], made["fp16"])
    if "int8" in wanted:
        made["int8"] = folder / FILES["int8"]
        context.reporter.say(f"export: {made['int8']}")
        images, size = context.images, min(context.batch, 64)
        probe = context.split.probe[np.isin(images.labels[context.split.probe], targets)]
        calibration, judging = two_parts(probe, CALIBRATION_IMAGES, FLOOR_IMAGES)
        sweep = onnx_precision.to_int8(
            folder / FILES["fp32"],
            made["int8"],
            [x.numpy() for x, _ in images.batches(calibration, size)],
            [x.numpy() for x, _ in images.batches(judging, size)],
            _own(context, images.labels[judging], targets),
            context.recipe.export.int8_floor_points,
        )
        context.reporter.say(f"export: int8: {sweep.why}")
    return made, sweep


def two_parts(index: np.ndarray, first: int, second: int) -> tuple[np.ndarray, np.ndarray]:
    """Two disjoint samples of `index`, evenly spread over it: at most `first` and `second`, at least one each if there
    are two; of few images a third calibrates."""
    if len(index) < 2:
        return index, index
    count = max(1, min(first, len(index) // 3))
    chosen = np.linspace(0, len(index) - 1, count).round().astype(int)
    rest = np.delete(index, chosen)
    return index[chosen], rest[np.linspace(0, len(rest) - 1, min(second, len(rest))).round().astype(int)]


def _examined(
    context: Context, slim: nn.Module, paths: dict[str, Path], targets: list[int]
) -> dict[str, dict[str, Any]]:
    """What report.json says of every written file: parity at three batch sizes and the exam on the whole test split."""
    most = max(onnx_export.PARITY_BATCHES)
    real, _ = next(context.images.batches(np.resize(context.split.probe, most), most))
    root = context.folder.root
    torch_logits, _ = evaluation.test_logits(evaluation.predictor(slim), context.images, context.split, context.batch)
    narrowed = not context.keeps_head(targets)
    found = {}
    for precision, path in paths.items():
        parity = {str(batch): gap for batch, gap in onnx_export.parity(slim, path, real).items()}
        found[precision] = {
            "path": path.relative_to(root).as_posix(),
            "precision": precision,
            "bytes": path.stat().st_size,
            "sha256": sha256(path),
            **onnx_export.facts(path),
            "parity": parity,
            "agreement": _agreement(context, torch_logits, path, targets),
        }
        found[precision]["top1"] = found[precision]["agreement"]["onnx_top1_targets" if narrowed else "onnx_top1"]
        found[precision]["top1_change_points"] = (found[precision]["top1"] - found["fp32"]["top1"]) * 100
    return found


def metadata(context: Context, targets: list[int], outputs: list[int]) -> dict[str, Any]:
    """What an ONNX file carries: labels of its outputs, preprocessing, classes, recipe hash, versions."""
    return {
        "labels": [label(context, i).split("\t")[-1] for i in outputs],
        "preprocessing": {k: list(v) if isinstance(v, tuple) else v for k, v in context.loaded.data_config.items()},
        "preprocessing_said_by": context.loaded.origin.said_by,
        "classes": [context.class_name(i) for i in targets],
        "recipe_hash": context.recipe.fingerprint(),
        "versions": {"vitprune": vitprune.__version__, "torch": torch.__version__},
    }


def _open_set(context: Context, slim: nn.Module, targets: list[int]) -> dict[str, Any] | None:
    """A specialist's threshold for "not one of my classes", from the probe images of its classes; None for a generalist."""
    if context.recipe.classes is None and context.recipe.groups is None:
        return None
    probe = context.split.probe
    index = probe[np.isin(context.images.labels[probe], targets)]
    ask = evaluation.predictor(slim)
    own = [_outputs(context, targets).index(i) for i in targets]
    return calibrate(np.concatenate([ask(x).numpy() for x, _ in context.images.batches(index, context.batch)]), own)


def _outputs(context: Context, targets: list[int]) -> list[int]:
    """The dense model's outputs that a class set's exported model has, in its order."""
    return list(range(context.loaded.outputs)) if context.keeps_head(targets) else targets


def _own(context: Context, labels: np.ndarray, targets: list[int]) -> np.ndarray:
    """Labels in the numbering of a class set's exported head; -1 for classes it has no output for."""
    outputs = _outputs(context, targets)
    position = np.full(context.loaded.outputs, -1)
    position[outputs] = np.arange(len(outputs))
    return position[labels]


def _agreement(context: Context, torch_logits: np.ndarray, path: Path, targets: list[int]) -> dict[str, Any]:
    """A written ONNX file against the reloaded checkpoint on all test images."""
    made = runtime.session(path)
    onnx_logits, labels = evaluation.test_logits(
        lambda x: torch.from_numpy(runtime.predict(made, x.numpy())), context.images, context.split, context.batch
    )
    hit = onnx_logits.argmax(1) == _own(context, labels, targets)
    return {
        "n": len(labels),
        "max_abs_diff": float(np.abs(torch_logits - onnx_logits).max()),
        "same_top1": int((torch_logits.argmax(1) == onnx_logits.argmax(1)).sum()),
        "onnx_top1": float(hit.mean()),
        "onnx_top1_targets": float(hit[np.isin(labels, targets)].mean()),
    }


def _latency(context: Context, dense: Path, slim: Path) -> list[dict[str, Any]]:
    sessions = {"dense": runtime.session(dense, in_turn=True), "slim": runtime.session(slim, in_turn=True)}
    rows = []
    for batch in sorted({*context.recipe.export.latency_batches, LATENCY_BATCH}):
        shape = (batch, *models.input_shape(context.loaded.model))
        images = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
        found = runtime.interleaved(sessions, images, seconds=2.0)
        d, s = found["dense"], found["slim"]
        rows.append(
            {
                "batch": batch,
                "precision": "fp32",
                "dense_ms": d["median_ms"],
                "slim_ms": s["median_ms"],
                "ratio": s["relative"],
                "dense_quartiles_ms": [d["q25_ms"], d["q75_ms"]],
                "slim_quartiles_ms": [s["q25_ms"], s["q75_ms"]],
                "runtime": f"onnxruntime {sessions['slim'].get_providers()[0]}",
            }
        )
    return rows
