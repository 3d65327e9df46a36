"""ONNX files, their parity on real images, their agreement on the whole test split, and their latency."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from vitprune.core.errors import UserError
from vitprune.core.files import write_json
from vitprune.core.reading import Json, sha256
from vitprune.core.version import __version__
from vitprune.deploy import bench, runtime, timing
from vitprune.deploy.onnx import exporting, precision_checks
from vitprune.deploy.onnx.precision import Sweep, to_fp16, to_int8
from vitprune.deploy.predict import calibrate
from vitprune.exam import logits
from vitprune.model import families
from vitprune.model import size as model_size
from vitprune.model.load import opening
from vitprune.runs.results import shortcut
from vitprune.runs.state.run import Run

LATENCY_BATCH = 32
FILES = {"fp32": "model.onnx", "fp16": "model.fp16.onnx", "int8": "model.int8.onnx"}
CALIBRATION_IMAGES = 256
FLOOR_IMAGES = 2000  # 0.05 points each
T = TypeVar("T")


def export(run: Run) -> list[Path]:
    """ONNX of every slim model in every precision, each examined on the whole test split, and the latencies of fp32.

    int8 is calibrated and chosen on the probe split; the test split is read when all files are written. A file that
    cannot be made or does not run is left out and said why; the others and the run go on.
    """
    if not run.recipe.export.onnx:
        return []
    stage = run.folder.stage_folder("export")
    dense, no_dense = stage / "dense.onnx", dict[str, str]()
    outputs = list(range(run.loaded.outputs))
    every = metadata(run, run.classes.every(), outputs) | model_size.size(run.loaded.model)

    def whole() -> float:
        exporting.export(run.loaded.model, dense, every)
        return max(exporting.parity(run.loaded.model, dense, _real(run)).values())

    parity = _attempt(run, no_dense, "dense", dense, whole)
    files = exporting.parts(dense) if parity is not None else []
    for group, targets in run.classes.sets().items():
        folder = run.folder.root / (group or "")
        result, made = _of_one(run, folder, targets, dense if dense in files else None, dict(no_dense))
        write_json(stage / f"{group or 'all'}.json", result | {"dense_parity": parity})
        files += [*made, stage / f"{group or 'all'}.json"]
    return files


def _of_one(
    run: Run, folder: Path, targets: list[int], dense: Path | None, failed: dict[str, str]
) -> tuple[Json, list[Path]]:
    """The record of one slim model's files, and the files; its latency beside that of the `dense` one."""
    slim = opening.load(folder, run.device)
    about, open_set = metadata(run, targets, _outputs(run, targets)), _open_set(run, slim, targets)
    made, sweep = _written(run, folder, slim, targets, about | ({"open_set": open_set} if open_set else {}), failed)
    examined = _examined(run, slim, made, targets, failed)
    if sweep and "int8" in examined:
        examined["int8"]["sweep"] = sweep.as_json()
    fp32 = examined.get("fp32", {})
    result = {
        "opset": fp32.get("opset"),
        "parity": fp32.get("parity", {}),
        "agreement": fp32.get("agreement"),
        "dense_parity": None,
        "files": list(examined.values()),
        "failed": failed,
        "latency": _latency(run, dense, folder / FILES["fp32"]) if fp32 and dense else [],
        "open_set": open_set,
        "sha256": fp32.get("sha256"),
    }
    return result, [part for precision in examined for part in exporting.parts(made[precision])]


def _attempt(run: Run, failed: dict[str, str], name: str, path: Path, work: Callable[[], T]) -> T | None:
    """`work`; where it fails, no file is left, the reason goes to `failed` and the result is None.

    A disk that is full or may not be written is no fault of the file: that still ends the run, which can go on later.
    """
    run.reporter.say(f"export: {path}")
    try:
        return work()
    except Exception as error:
        causes: list[BaseException | None] = [error, error.__cause__, error.__context__]
        if any(isinstance(cause, OSError) for cause in causes):
            raise
        path.unlink(missing_ok=True)
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        failed[name] = f"{kind}{' '.join(str(error).split())[:300]}"
        run.reporter.say(f"export: {path.name} is left out: {failed[name]}")
        return None


def _written(
    run: Run, folder: Path, slim: nn.Module, targets: list[int], about: dict[str, Any], failed: dict[str, str]
) -> tuple[dict[str, Path], Sweep | None]:
    """The files of a class set that could be written, fp32 first; the others are made from it and probe images alone."""
    paths = {precision: folder / FILES[precision] for precision in FILES}
    wanted = [precision for precision in paths if precision in list[str](run.recipe.export.precisions)]
    sweep: Sweep | None = None

    def write(precision: str) -> bool:
        nonlocal sweep
        if precision == "fp32":
            shortcut.write(run, slim, paths["fp32"], about, _real(run))
        elif precision == "fp16":
            to_fp16(paths["fp32"], paths["fp16"])
        else:
            sweep = _int8(run, paths["fp32"], paths["int8"], targets)
        return True

    made: dict[str, Path] = {}
    for precision in wanted:
        if "fp32" in failed:
            failed[precision] = "it is made from the fp32 file"
        elif _attempt(run, failed, precision, paths[precision], lambda precision=precision: write(precision)):  # type: ignore[misc]
            made[precision] = paths[precision]
    for precision in paths.keys() - made.keys():
        paths[precision].unlink(missing_ok=True)  # of an earlier run, and examined by none
    return made, sweep


def _int8(run: Run, source: Path, path: Path, targets: list[int]) -> Sweep:
    """The int8 file, from two disjoint parts of the probe images: one calibrates, one judges."""
    images, size = run.images, min(run.batching.batch, 64)
    probe = run.split.probe[np.isin(images.labels[run.split.probe], targets)]
    calibration, judging = two_parts(probe, CALIBRATION_IMAGES, FLOOR_IMAGES)
    sweep = to_int8(
        source,
        path,
        [x.cpu().numpy() for x, _ in images.batches(calibration, size)],
        [x.cpu().numpy() for x, _ in images.batches(judging, size)],
        _own(run, images.labels[judging], targets),
        run.recipe.export.int8_floor_points,
    )
    run.reporter.say(f"export: int8: {sweep.why}")
    return sweep


def two_parts(index: np.ndarray, first: int, second: int) -> tuple[np.ndarray, np.ndarray]:
    """Two disjoint samples of `index`, evenly spread over it: at most `first` and `second`, at least one each if there
    are two; of few images a third calibrates."""
    if len(index) < 2:
        return index, index
    count = max(1, min(first, len(index) // 3))
    chosen = np.linspace(0, len(index) - 1, count).round().astype(int)
    rest = np.delete(index, chosen)
    return index[chosen], rest[np.linspace(0, len(rest) - 1, min(second, len(rest))).round().astype(int)]


def _real(run: Run) -> torch.Tensor:
    """Probe images for the parity, as many as its largest batch."""
    most = max(exporting.PARITY_BATCHES)
    return next(run.images.batches(np.resize(run.split.probe, most), most))[0].cpu()


def _examined(
    run: Run, slim: nn.Module, paths: dict[str, Path], targets: list[int], failed: dict[str, str]
) -> dict[str, dict[str, Any]]:
    """What report.json says of every written file: parity at three batch sizes and the exam on the whole test split."""
    if not paths:
        return {}
    real = _real(run)
    torch_logits, _ = logits.test_logits(logits.predictor(slim), run.images, run.split, run.batching.batch)
    key = "onnx_top1" if run.classes.keeps_head(targets) else "onnx_top1_targets"
    found: dict[str, dict[str, Any]] = {}

    def examine(precision: str, path: Path) -> dict[str, Any]:
        relative = path.relative_to(run.folder.root).as_posix()
        provider = "cpu" if precision == "int8" else runtime.provider_of(run.device.type)
        row = {
            "path": relative,
            "precision": precision,
            "bytes": exporting.bytes_of(path),
            "sha256": sha256(path),
            **exporting.facts(path),
            "parity": {str(batch): gap for batch, gap in exporting.parity(slim, path, real, provider).items()},
            "agreement": _agreement(run, torch_logits, path, targets, precision, provider),
        }
        row |= {"provider": provider} if provider != "cpu" else {}
        row["top1"] = row["agreement"][key]
        if precision in precision_checks.LIMITS:
            batches, floor = _batches_differ(path, real.numpy(), provider), run.recipe.export.int8_floor_points
            row["checks"] = precision_checks.checks(precision, relative, row["agreement"], batches, floor)
        return row

    for precision, path in paths.items():
        row = _attempt(run, failed, precision, path, lambda p=precision, f=path: examine(p, f))  # type: ignore[misc]
        if row is not None:
            found[precision] = row
            row["top1_change_points"] = (row["top1"] - found["fp32"]["top1"]) * 100 if "fp32" in found else None
    return found


def _batches_differ(path: Path, real: np.ndarray, provider: str) -> float:
    """Largest change of an image's probability with the size of the batch that it is in."""
    made = runtime.session(path, provider)
    whole = precision_checks.probabilities(runtime.predict(made, real))
    parts = [precision_checks.probabilities(runtime.predict(made, real[:n])) for n in exporting.PARITY_BATCHES]
    return max(float(np.abs(part - whole[: len(part)]).max()) for part in parts)


def metadata(run: Run, targets: list[int], outputs: list[int]) -> dict[str, Any]:
    """What an ONNX file carries: labels of its outputs, preprocessing, classes, recipe hash, versions."""
    return {
        "labels": [run.classes.name(i) for i in outputs],
        **({"labels_by_order": True} if run.classes.by_order else {}),
        "preprocessing": {k: list(v) if isinstance(v, tuple) else v for k, v in run.loaded.data_config.items()},
        "preprocessing_said_by": run.loaded.origin.said_by,
        "classes": [run.classes.name(i) for i in targets],
        "recipe_hash": run.recipe.fingerprint(),
        "versions": {"vitprune": __version__, "torch": torch.__version__},
    }


def _open_set(run: Run, slim: nn.Module, targets: list[int]) -> dict[str, Any] | None:
    """A specialist's threshold for "not one of my classes", from the probe images of its classes; None for a generalist."""
    if run.recipe.classes is None and run.recipe.groups is None:
        return None
    probe = run.split.probe
    index = probe[np.isin(run.images.labels[probe], targets)]
    ask = logits.predictor(slim)
    own = [_outputs(run, targets).index(i) for i in targets]
    return calibrate(np.concatenate([ask(x).numpy() for x, _ in run.images.batches(index, run.batching.batch)]), own)


def _outputs(run: Run, targets: list[int]) -> list[int]:
    """The dense model's outputs that a class set's exported model has, in its order."""
    return list(range(run.loaded.outputs)) if run.classes.keeps_head(targets) else targets


def _own(run: Run, labels: np.ndarray, targets: list[int]) -> np.ndarray:
    """Labels in the numbering of a class set's exported head; -1 for classes it has no output for."""
    outputs = _outputs(run, targets)
    position = np.full(run.loaded.outputs, -1)
    position[outputs] = np.arange(len(outputs))
    return position[labels]


def _agreement(
    run: Run, torch_logits: np.ndarray, path: Path, targets: list[int], precision: str, provider: str
) -> dict[str, Any]:
    """A written ONNX file against the reloaded checkpoint on all test images."""
    made = runtime.session(path, provider, exact=True)
    onnx_logits, labels = logits.test_logits(
        lambda x: torch.from_numpy(runtime.predict(made, x.cpu().numpy())), run.images, run.split, run.batching.batch
    )
    hit = onnx_logits.argmax(1) == _own(run, labels, targets)
    limit = precision_checks.LIMITS.get(precision)
    return precision_checks.compare(torch_logits, onnx_logits, limit.tie if limit else 0.0) | {
        "onnx_top1": float(hit.mean()),
        "onnx_top1_targets": float(hit[np.isin(labels, targets)].mean()),
    }


def _latency(run: Run, dense: Path, slim: Path) -> list[dict[str, Any]]:
    """Dense and slim timed in turn, with what speaks against each figure."""
    sessions = {"dense": runtime.session(dense, in_turn=True), "slim": runtime.session(slim, in_turn=True)}
    macs = bench.facts_of(sessions["slim"])["macs"] / bench.facts_of(sessions["dense"])["macs"]
    rows = []
    for batch in sorted({*run.recipe.export.latency_batches, LATENCY_BATCH}):
        shape = (batch, *families.input_shape(run.loaded.model))
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
                "ratio_quartiles": s["relative_quartiles"],
                "rounds": s["rounds"],
                "efficiency": macs / s["relative"],
                "other_cores": s["other_cores"],
                "notes": timing.notes(s, macs / s["relative"]),
                "dense_quartiles_ms": [d["q25_ms"], d["q75_ms"]],
                "slim_quartiles_ms": [s["q25_ms"], s["q75_ms"]],
                "runtime": f"onnxruntime {sessions['slim'].get_providers()[0]}",
            }
        )
    return rows
