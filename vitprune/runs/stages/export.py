"""ONNX files, their parity on real images, their agreement on the whole test split, and their latency."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

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
from vitprune.recipe.exports import told_batch
from vitprune.runs.engine.base import Columns, Job
from vitprune.runs.engine.parts import packed, unpacked
from vitprune.runs.results import shortcut
from vitprune.runs.results.onnx_files import DENSE, EXAM, FILES, File, attempted, outputs_of, path_of
from vitprune.runs.results.side_by_side import Asked, Table, table
from vitprune.runs.stages.exams import files as feature_files
from vitprune.runs.stages.versions import version
from vitprune.runs.state.run import Run
from vitprune.runs.state.workspace import PARTS

CALIBRATION_IMAGES, FLOOR_IMAGES = 256, 2000  # the latter: 0.05 points each


def export(run: Run) -> list[Path]:
    """ONNX of every slim model in every precision, each examined on the whole test split, and the latencies of fp32.

    int8 is calibrated and chosen on the probe split; the test split is read when all files are written. A file that
    cannot be made or does not run is left out and said why; the others and the run go on. Every file is a part of a job;
    latencies are measured when no part is at work.
    """
    if not run.recipe.export.onnx:
        return []
    stage, groups = run.folder.stage_folder("export"), list(run.classes.sets())
    open_sets = _open_sets(run)
    first = attempted(run, "fp32", [(None, DENSE), *((group, "fp32") for group in groups)], _first, open_sets)
    made, told = _written(run, first)
    known = _logits(run, made) if run.backbone is None else None
    examined = attempted(run, EXAM, made, _examined, known)
    no_dense = {name: first[None, DENSE]["failed"] for name in (DENSE,) if "failed" in first[None, DENSE]}
    files = [] if no_dense else exporting.parts(path_of(run, None, DENSE))
    for group in groups:
        mine = {p: (told | examined)[group, p] for p in FILES if (group, p) in told | examined}
        sweep = told.get((group, "int8"), {}).get("sweep")
        result, own = _of_one(run, group, mine, no_dense, sweep)
        more: Json = {"open_set": open_sets.get(group), "dense_parity": first[None, DENSE].get("parity")}
        write_json(stage / f"{group or 'all'}.json", result | more)
        files += [*own, stage / f"{group or 'all'}.json"]
    run.folder.clear(stage / PARTS, set())
    return files


def _of_one(
    run: Run, group: str | None, examined: dict[str, Json], no_dense: dict[str, str], sweep: Json | None
) -> tuple[Json, list[Path]]:
    """The record of one slim model's files, and the files; its latency beside that of the dense one."""
    failed = no_dense | {precision: row["failed"] for precision, row in examined.items() if "failed" in row}
    found = {precision: row for precision, row in examined.items() if precision not in failed}
    for row in (one for one in found.values() if "top1" in one):
        row["top1_change_points"] = (row["top1"] - found["fp32"]["top1"]) * 100 if "fp32" in found else None
    if sweep and "int8" in found:
        found["int8"]["sweep"] = sweep
    fp32, dense = found.get("fp32", {}), path_of(run, None, DENSE)
    result = {
        "opset": fp32.get("opset"),
        "parity": fp32.get("parity", {}),
        "agreement": fp32.get("agreement"),
        "dense_parity": None,
        "files": list(found.values()),
        "failed": failed,
        "latency": _latency(run, dense, {p: path_of(run, group, p) for p in found}) if fp32 and not no_dense else [],
        "open_set": None,
        "sha256": fp32.get("sha256"),
    }
    return result, [part for precision in found for part in exporting.parts(path_of(run, group, precision))]


def _first(run: Run, which: File, open_sets: dict[str | None, Json]) -> Json:
    """The fp32 file of the dense model or of a class set's, from which the others are made."""
    (group, precision), path = which, path_of(run, *which)
    if precision == DENSE:
        dense, outputs = run.loaded.model, list(range(run.loaded.outputs))
        exporting.export(dense, path, metadata(run, run.classes.every(), outputs) | model_size.size(dense))
        return {"parity": max(exporting.parity(dense, path, _real(run)).values())}
    targets = run.classes.sets()[group]
    about = metadata(run, targets, outputs_of(run, targets))
    about |= {"open_set": open_sets[group]} if group in open_sets else {}
    shortcut.write(run, _slim(run, group), path, about, _real(run))
    return {}


def _written(run: Run, first: dict[File, Json]) -> tuple[list[File], dict[File, Json]]:
    """The files that could be written, and what is told of every one that is not fp32, or could not be."""
    groups, asked = list(run.classes.sets()), list[str](run.recipe.export.precisions)
    wanted = [precision for precision in FILES if precision in asked]
    told = {one: found for one, found in first.items() if one[1] != DENSE and "failed" in found}
    for group in groups:
        if (group, "fp32") in told:
            told |= {(group, p): {"failed": "it is made from the fp32 file"} for p in wanted if p != "fp32"}
    others = [(group, p) for p in reversed(wanted) for group in groups if p != "fp32" and (group, p) not in told]
    told |= attempted(run, "others", others, _other, None)
    for why in (found["why"] for found in told.values() if "why" in found):
        run.reporter.say(f"export: int8: {why}")
    files = [(group, p) for group in groups for p in wanted if "failed" not in told.get((group, p), {})]
    for one in {(group, p) for group in groups for p in FILES} - {*files}:
        path_of(run, *one).unlink(missing_ok=True)  # of an earlier run, and examined by none
    return files, told


def _other(run: Run, which: File, given: None) -> Json:
    """A file made from the fp32 file and probe images alone."""
    (group, precision), path = which, path_of(run, *which)
    if precision == "fp16":
        to_fp16(path_of(run, group, "fp32"), path)
        return {}
    sweep = _int8(run, path_of(run, group, "fp32"), path, run.classes.sets()[group])
    return {"sweep": sweep.as_json(), "why": sweep.why}


def _int8(run: Run, source: Path, path: Path, targets: list[int]) -> Sweep:
    """The int8 file, from two disjoint parts of the probe images: one calibrates, one judges."""
    images, size = run.images, min(run.batching.batch, 64)
    probe = run.split.probe[np.isin(images.labels[run.split.probe], targets)]
    calibration, judging = two_parts(probe, CALIBRATION_IMAGES, FLOOR_IMAGES)
    return to_int8(
        source,
        path,
        [x.cpu().numpy() for x, _ in images.batches(calibration, size)],
        [x.cpu().numpy() for x, _ in images.batches(judging, size)],
        None if run.backbone is not None else _own(run, images.labels[judging], targets),
        run.recipe.export.int8_floor_points,
    )


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


def _slim(run: Run, group: str | None) -> nn.Module:
    return opening.load(run.folder.root / (group or ""), run.device)


def _of_item(run: Run, item: Json) -> nn.Module:
    return _slim(run, item["group"])


def _logits(run: Run, files: Sequence[File]) -> Table:
    """Those of every slim model that has a file, on the whole test split."""
    pruned = run.folder.record("prune")
    about = [pruned and pruned["inputs"], version("export"), run.device.type]
    asked = Asked("test", None, [{"group": group} for group in dict.fromkeys(group for group, _ in files)])
    return table(run, [asked], _of_item, about, run.folder.stage_folder("export") / PARTS / "logits", "export, logits")


def _examined(run: Run, which: File, known: Table | None) -> Json:
    """What report.json says of a written file: parity at three batch sizes and the exam on the whole test split."""
    (group, precision), path, real = which, path_of(run, *which), _real(run)
    relative = path.relative_to(run.folder.root).as_posix()
    provider = "cpu" if precision == "int8" else runtime.provider_of(run.device.type)
    row = {
        "path": relative,
        "precision": precision,
        "bytes": exporting.bytes_of(path),
        "sha256": sha256(path),
        **exporting.facts(path),
        "parity": {str(batch): gap for batch, gap in exporting.parity(_slim(run, group), path, real, provider).items()},
    }
    row |= {} if provider == "cpu" else {"provider": provider}
    if known is None:
        return row | feature_files.examined(run, _slim(run, group), path, precision, provider, real)
    targets, torch_logits = run.classes.sets()[group], known.of("test", {"group": group})
    assert torch_logits is not None
    row["agreement"] = _agreement(run, torch_logits, path, targets, precision, provider)
    row["top1"] = row["agreement"]["onnx_top1" if run.classes.keeps_head(targets) else "onnx_top1_targets"]
    if precision in precision_checks.LIMITS:
        batches = precision_checks.batches_differ(path, real.numpy(), provider, exporting.PARITY_BATCHES)
        floor = run.recipe.export.int8_floor_points
        row["checks"] = precision_checks.checks(precision, relative, row["agreement"], batches, floor)
    return row


def metadata(run: Run, targets: list[int], outputs: list[int]) -> dict[str, Any]:
    """What an ONNX file carries: labels of its outputs, preprocessing, classes, recipe hash, versions."""
    named = {
        "labels": [run.classes.name(i) for i in outputs],
    }
    return {
        **(named if run.backbone is None else {"features": run.backbone.reads}),
        **({"labels_by_order": True} if run.classes.by_order else {}),
        "preprocessing": {k: list(v) if isinstance(v, tuple) else v for k, v in run.loaded.data_config.items()},
        "preprocessing_said_by": run.loaded.origin.said_by,
        "classes": [run.classes.name(i) for i in targets],
        "recipe_hash": run.recipe.fingerprint(),
        "versions": {"vitprune": __version__, "torch": torch.__version__},
    }


def _open_sets(run: Run) -> dict[str | None, Json]:
    """Every specialist's threshold for "not one of my classes"; a generalist has none."""
    if run.recipe.classes is None and run.recipe.groups is None:
        return {}
    groups, folder = list(run.classes.sets()), run.folder.stage_folder("export") / PARTS / "open-set"
    run.folder.clear(folder, set())
    job = Job("export-open-set", groups, functools.partial(_open_set, run), None, kept=False)
    return dict(zip(groups, map(unpacked, run.executor.run(job, folder)), strict=True))


def _open_set(run: Run, group: str | None) -> Columns:
    """A specialist's threshold, from the probe images of its classes."""
    probe, targets = run.split.probe, run.classes.sets()[group]
    index = probe[np.isin(run.images.labels[probe], targets)]
    ask = logits.predictor(_slim(run, group))
    own = [outputs_of(run, targets).index(i) for i in targets]
    found = np.concatenate([ask(x).numpy() for x, _ in run.images.batches(index, run.batching.batch)])
    return packed(calibrate(found, own))


def _own(run: Run, labels: np.ndarray, targets: list[int]) -> np.ndarray:
    """Labels in the numbering of a class set's exported head; -1 for classes it has no output for."""
    outputs = outputs_of(run, targets)
    position = np.full(run.loaded.outputs, -1)
    position[outputs] = np.arange(len(outputs))
    return position[labels]


def _agreement(run: Run, known: np.ndarray, path: Path, targets: list[int], precision: str, provider: str) -> Json:
    """A written ONNX file against the reloaded checkpoint on all test images."""
    made = runtime.session(path, provider, exact=True)
    onnx_logits, labels = logits.test_logits(
        lambda x: torch.from_numpy(runtime.predict(made, x.cpu().numpy())), run.images, run.split, run.batching.batch
    )
    hit = onnx_logits.argmax(1) == _own(run, labels, targets)
    limit = precision_checks.LIMITS.get(precision)
    return precision_checks.compare(known, onnx_logits, limit.tie if limit else 0.0) | {
        "onnx_top1": float(hit.mean()),
        "onnx_top1_targets": float(hit[np.isin(labels, targets)].mean()),
    }


def _latency(run: Run, dense: Path, slim: dict[str, Path]) -> list[Json]:
    """Each slim file timed in turn with the dense fp32 one, and what speaks against it: fp32 at every batch, others at one."""
    batches = sorted({*run.recipe.export.latency_batches, (one := told_batch(run.recipe.export))})
    asked = [(p, batches if p == "fp32" else [one]) for p in sorted(slim, key=lambda p: p != "fp32")]
    rows = (row for p, sizes in asked for row in _timed(run, dense, slim[p], p, sizes))
    return list(run.reporter.track(rows, "export, latency", sum(len(sizes) for _, sizes in asked)))


def _timed(run: Run, dense: Path, slim: Path, precision: str, batches: Sequence[int]) -> Iterator[Json]:
    """A row for every batch size of one file."""
    sessions = {"dense": runtime.session(dense, in_turn=True), "slim": runtime.session(slim, in_turn=True)}
    macs = {name: bench.facts_of(made)["macs"] for name, made in sessions.items()}
    for batch in batches:
        shape = (batch, *families.input_shape(run.loaded.model))
        images = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
        found = runtime.interleaved(sessions, images, seconds=2.0)
        d, s = found["dense"], found["slim"]
        # a multiply-add of another precision takes a time of its own
        efficiency = macs["slim"] / macs["dense"] / s["relative"] if precision == "fp32" else None
        yield {
            "batch": batch,
            "precision": precision,
            "dense_ms": d["median_ms"],
            "slim_ms": s["median_ms"],
            "ratio": s["relative"],
            "ratio_quartiles": s["relative_quartiles"],
            "rounds": s["rounds"],
            "efficiency": efficiency,
            "other_cores": s["other_cores"],
            "notes": timing.notes(s, efficiency),
            "dense_quartiles_ms": [d["q25_ms"], d["q75_ms"]],
            "slim_quartiles_ms": [s["q25_ms"], s["q75_ms"]],
            "runtime": f"onnxruntime {sessions['slim'].get_providers()[0]}",
        }
