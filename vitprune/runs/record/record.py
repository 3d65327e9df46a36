"""The run's record: what report.json holds and the other report pages are made from; see report/schema.json."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from vitprune.core import places
from vitprune.core.device import machine, versions
from vitprune.core.reading import digest, sha256
from vitprune.model import size
from vitprune.model.load import prepared
from vitprune.model.load.build import known as known_by_name
from vitprune.recipe.parse import dump
from vitprune.report import grid, write_report
from vitprune.report.card import write_cards
from vitprune.report.reading.values import plain
from vitprune.runs.record import matrices
from vitprune.runs.record.figures import evaluated, stage_json
from vitprune.runs.results import losses, shortcut
from vitprune.runs.results.onnx_files import FILES
from vitprune.runs.seeing import stage as seeing
from vitprune.runs.stages import score
from vitprune.runs.state import lengths, told
from vitprune.runs.state.run import CONTENTS, Run
from vitprune.see import usage

BESIDE = {f"{name}.data": name for name in FILES.values()}  # where the weights of a large file are
PRECISION = {"model.safetensors": "fp32", **{name: precision for precision, name in FILES.items()}}
ALIKE = 1e-6  # of 1 - cosine
TOLERANCE = 1e-4
MADE_BY = {
    "model.safetensors": "prune",
    "config.json": "prune",
    "masks.safetensors": "prune",
    "split.json": "prune",
    **dict.fromkeys((*FILES.values(), *BESIDE), "export"),
    "recipe.yaml": "",
}


def build(run: Run, done: Sequence[dict[str, Any]], command: str) -> dict[str, Any]:
    """Gather what the finished stages left; what is missing is named in `missing`."""
    recipe, root = run.recipe, run.folder.root
    ran = {stage["name"] for stage in done}
    examined = stage_json(run, "evaluate", "rows.json") if "evaluate" in ran else None
    record: dict[str, Any] = {
        "schema": 1,
        "name": recipe.name,
        "created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "command": command,
        "recipe": told.recipe(recipe, root).written(),
        "recipe_yaml": dump(told.recipe(recipe, root)),
        "versions": versions(),
        "machine": machine(run.device),
        "classes": [run.classes.name(int(i)) for i in run.images.output_of_class],
        "target_classes": [run.classes.name(i) for i in run.classes.every()],
        "split": _split(run),
        "preprocessing": prepared.facts(run.loaded.data_config, run.loaded.origin.said_by),
        "stages": list(done),
        "notes": _notes(run)
        + [f"{row['path']} was not made, --force tries again: {row['why']}" for row in _left_out(run, ran)],
        "usage": _usage(run),
    }
    record["hashes"] = _hashes(run)
    if run.choice:
        record["choice"] = {name: value for name, value in run.choice.items() if name != "key"}
    if "prune" in ran and (found := losses.every(run)):
        record["losses"] = found
        record["notes"] += [losses.sentence(one) for one in found]
    record["checks"] = _checks(run, ran)
    record["files"] = _files(run, ran)
    record["export"] = {"files": _exported(run, ran), "failed": _left_out(run, ran)}
    record |= _discovered(run) | (seeing.told(run) if "see" in ran else {})
    if examined:
        record |= evaluated(run, examined, "export" in ran)
        record["notes"] += shortcut.note(recipe, record["model"])
    needed = ["discover", "prune", "evaluate"] + (["export"] if recipe.export.onnx else [])
    record["missing"] = [name for name in needed if name not in ran]
    record["complete"] = not record["missing"]
    return dict(told.scrubbed(record, recipe, root))


def write(record: dict[str, Any], folder: Path) -> list[Path]:
    """report.json, report.md and report.html, and the model card of every checkpoint."""
    return write_report(record, folder) + write_cards(plain(record), folder)


def _hashes(run: Run) -> dict[str, str]:
    """What the run was made from: digests of the recipe, the model, the images and their split."""
    return {
        "recipe": run.recipe.fingerprint(),
        "model": run.model_digest,
        "data": run.data_digest,
        "split": digest(run.split_record["probe"], run.split_record["test"]),
    }


def _notes(run: Run) -> list[str]:
    m = run.recipe.model
    notes = [grid.sentence(run.choice)] if run.choice else []
    notes += [*run.split_record.get("notes", []), *run.loaded.notes]
    notes += [f"Default {note}" for note in run.notes]
    if m.pretrained or m.checkpoint or m.name == "bundled" or m.name.startswith("local-dir:"):
        return notes
    if m.name.startswith("transformers:") and not known_by_name(m.name):  # a folder, which has its weights
        return notes
    return [*notes, "The model's weights are RANDOM: the recipe gives neither model.pretrained nor model.checkpoint."]


def _usage(run: Run) -> str:
    folder = places.place(run.folder.root)
    if run.backbone is not None:
        lines = "model = vitprune.load({!r})  # a timm model in eval mode\ntokens = model.forward_features(images)"
        return f"import vitprune\n{lines.format(folder)}\nfeatures = model(images)"
    return f"import vitprune\nmodel = vitprune.load({folder!r})  # a timm model in eval mode\nlogits = model(images)"


def _split(run: Run) -> dict[str, Any]:
    found = dict(run.split_record)
    probe, test = found.pop("probe"), found.pop("test")
    return found | {"probe": len(probe), "test": len(test)}


def _groups(run: Run) -> list[str]:
    return [group or "all" for group in run.classes.sets()]


def _checks(run: Run, ran: set[str]) -> list[dict[str, Any]]:
    shared = run.split.shared(load_file(run.folder.stage_folder("split") / CONTENTS)["content"])
    checks = [_check("probe and test split share no image", shared, 0, "counted by the images' pixels")]
    for group in _groups(run):
        label = "" if group == "all" else f" ({group})"
        pruned = stage_json(run, "prune", f"{group}.json") if "prune" in ran else None
        if pruned:
            detail = "masked dense model against the model with the units removed, before repair, 16 probe images"
            checks.append(_check(f"masked = sliced{label}", pruned["masked_vs_sliced"], 1e-5, detail))
        exported = stage_json(run, "export", f"{group}.json") if "export" in ran else None
        if exported:
            for precision, why in exported["failed"].items():
                row = {"name": f"{precision} file was made{label}", "passed": False, "value": None, "limit": None}
                checks.append(row | {"detail": why})
            of = "logit" if run.backbone is None else "feature"
            if exported["dense_parity"] is not None:
                detail = f"largest {of} difference, torch against onnxruntime, real images at batch 1, 2 and 7"
                checks.append(
                    _check(f"ONNX parity of the dense model{label}", exported["dense_parity"], TOLERANCE, detail)
                )
            for batch, difference in exported["parity"].items():
                detail = f"largest {of} difference, torch against onnxruntime, real images"
                checks.append(_check(f"ONNX parity at batch {batch}{label}", difference, TOLERANCE, detail))
            if (a := exported["agreement"]) and run.backbone is not None:
                detail = "mean of 1 - cosine to the slim model's features"
                checks.append(_check("ONNX features on the test split", 1 - a["cosine"], ALIKE, detail))
            elif a:
                checks.append(
                    _check(f"ONNX logits on the test split{label}", a["max_abs_diff"], TOLERANCE, f"{a['n']} images")
                )
                differing = a["n"] - a["same_top1"]
                detail = "images whose top-1 differs"
                checks.append(_check(f"ONNX top-1 on the test split{label}", differing, 0, detail))
            checks += shortcut.check(run.recipe, exported, size.macs(run.loaded.model), label)
            made = [check for file in exported["files"] for check in file.get("checks", [])]
            checks += [_check(f"{c['name']}{label}", c["value"], c["limit"], c["detail"]) for c in made]
    return checks


def _left_out(run: Run, ran: set[str]) -> list[dict[str, str]]:
    """Files that the recipe asks for and that could not be made, and why."""
    found: dict[str, str] = {}
    for group in run.classes.sets() if "export" in ran else []:
        exported = stage_json(run, "export", f"{group or 'all'}.json") or {"failed": {}}
        for precision, why in exported["failed"].items():
            name = "stages/export/dense.onnx" if precision == "dense" else f"{group or ''}/{FILES[precision]}"
            found[name.lstrip("/")] = why
    return [{"path": path, "why": why} for path, why in found.items()]


def _check(name: str, value: float, limit: float, detail: str) -> dict[str, Any]:
    return {"name": name, "passed": bool(value <= limit), "value": value, "limit": limit, "detail": detail}


def _files(run: Run, ran: set[str]) -> list[dict[str, Any]]:
    root = run.folder.root
    what = {
        "model.safetensors": "slim model's weights",
        "config.json": "timm-style configuration with the width of every block",
        "masks.safetensors": "which hidden units were kept",
        "split.json": "names of the probe and test images",
        **{name: f"ONNX, {precision}, dynamic batch" for precision, name in FILES.items()},
        **{name: f"the weights of {of}, to be kept beside it" for name, of in BESIDE.items()},
        "recipe.yaml": "the recipe as resolved",
    }
    found: list[dict[str, Any]] = []
    for folder in [root / (group or "") for group in run.classes.sets()] + [root]:
        for name, text in what.items():
            path = folder / name
            relative = path.relative_to(root).as_posix()
            made_now = MADE_BY[name] in ran | {""}
            if made_now and path.is_file() and relative not in {f["path"] for f in found}:
                made = {"path": relative, "bytes": path.stat().st_size, "sha256": sha256(path), "what": text}
                found.append(made | ({"precision": PRECISION[name]} if name in PRECISION else {}))
    return found


def _exported(run: Run, ran: set[str]) -> list[dict[str, Any]]:
    """Every ONNX file with its exam, the way it was made, and the promise int8 was made with."""
    results = [stage_json(run, "export", f"{group}.json") for group in _groups(run) if "export" in ran]
    return [row for result in results if result for row in result["files"]]


def _discovered(run: Run) -> dict[str, Any]:
    """Most frequent path per class and the classes' similarity; for a criterion that finds paths only."""
    discoveries = {"discoveries": score.notes_of(run)}
    scores = matrices.scores(run)
    if scores is None:
        return discoveries
    targets = run.classes.every()
    names = [run.classes.name(i) for i in targets]
    best = np.stack([block[targets].numpy().argmax(1) for block in scores.sites.values()], 1).tolist()
    found: dict[str, Any] = {
        "paths": {
            "t": lengths.of(run, run.recipe.criterion.name, run.recipe.keep),
            "images": scores.images,
            "most_frequent": dict(zip(names, best, strict=True)),
        }
    }
    if len(targets) <= matrices.INLINE:
        alike = usage.alike(block[targets].numpy() for block in scores.sites.values())
        matrix = [[round(v, 4) for v in row] for row in alike.tolist()]
        found["class_similarity"] = {"classes": names, "matrix": matrix}
    return discoveries | found
