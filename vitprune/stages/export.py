"""ONNX files, their parity on real images, their agreement on the whole test split, and their latency."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import vitprune
from vitprune import checkpoint, evaluation, models, onnx_export, runtime
from vitprune.context import Context
from vitprune.files import sha256, write_json
from vitprune.predict import calibrate

LATENCY_BATCH = 32


def export(context: Context) -> list[Path]:
    """ONNX of every slim model, parity on real images, agreement on the whole test split, latency beside the dense one."""
    if not context.recipe.export.onnx:
        return []
    stage = context.folder.stage_folder("export")
    dense = stage / "dense.onnx"
    onnx_export.export(context.loaded.model, dense, metadata(context, context.every_target()))
    files = [dense]
    for group, targets in context.class_sets().items():
        folder = context.folder.root / (group or "")
        slim, path = checkpoint.load(folder, context.device), folder / "model.onnx"
        context.reporter.say(f"export: {path}")
        about, open_set = metadata(context, targets), _open_set(context, slim, targets)
        onnx_export.export(slim, path, about | ({"open_set": open_set} if open_set else {}))
        probe = context.split.probe
        most = max(onnx_export.PARITY_BATCHES)
        real, _ = next(context.images.batches(np.resize(probe, most), most))
        result = {
            "opset": onnx_export.OPSET,
            "parity": {str(b): d for b, d in onnx_export.parity(slim, path, real).items()},
            "agreement": _agreement(context, slim, path),
            "latency": _latency(context, dense, path),
            "open_set": open_set,
            "sha256": sha256(path),
        }
        write_json(stage / f"{group or 'all'}.json", result)
        files += [path, stage / f"{group or 'all'}.json"]
    return files


def metadata(context: Context, targets: list[int]) -> dict[str, Any]:
    """What an ONNX file carries: labels, preprocessing, classes, recipe hash, versions."""
    labels = context.loaded.labels or [context.class_name(i) for i in range(context.loaded.outputs)]
    return {
        "labels": [label.split("\t")[-1] for label in labels],
        "preprocessing": {k: list(v) if isinstance(v, tuple) else v for k, v in context.loaded.data_config.items()},
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
    return calibrate(np.concatenate([ask(x).numpy() for x, _ in context.images.batches(index, context.batch)]), targets)


def _agreement(context: Context, slim: nn.Module, path: Path) -> dict[str, Any]:
    """The written ONNX file against the reloaded checkpoint on all test images."""
    made = runtime.session(path)
    images, split_, batch = context.images, context.split, context.batch
    torch_logits, labels = evaluation.test_logits(evaluation.predictor(slim), images, split_, batch)
    onnx_logits, _ = evaluation.test_logits(
        lambda x: torch.from_numpy(runtime.predict(made, x.numpy())), images, split_, batch
    )
    return {
        "n": len(labels),
        "max_abs_diff": float(np.abs(torch_logits - onnx_logits).max()),
        "same_top1": int((torch_logits.argmax(1) == onnx_logits.argmax(1)).sum()),
        "onnx_top1": float((onnx_logits.argmax(1) == labels).mean()),
    }


def _latency(context: Context, dense: Path, slim: Path) -> list[dict[str, Any]]:
    sessions = {"dense": runtime.session(dense), "slim": runtime.session(slim)}
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
                "ratio": s["median_ms"] / d["median_ms"],
                "dense_quartiles_ms": [d["q25_ms"], d["q75_ms"]],
                "slim_quartiles_ms": [s["q25_ms"], s["q75_ms"]],
                "runtime": f"onnxruntime {sessions['slim'].get_providers()[0]}",
            }
        )
    return rows
