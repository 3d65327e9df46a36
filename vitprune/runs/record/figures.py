"""What the exam found, as report.json has it: rows, the exported model's among them, and both models' sizes."""

from __future__ import annotations

import math
from typing import Any

from vitprune.core.reading import Json, read_json
from vitprune.exam.features import NEIGHBOURS
from vitprune.model import size
from vitprune.model.sites.attention import attention_sites
from vitprune.recipe.exports import told_batch
from vitprune.runs.results import shortcut
from vitprune.runs.results.onnx_files import dense_bytes, outputs_of
from vitprune.runs.state import told
from vitprune.runs.state.run import Run

SAME_INDEX = 0.9  # of the ten nearest neighbours
TOO_FEW = 0.1  # of them by chance: less than a hundred test images


def evaluated(run: Run, found: Json, exported_now: bool) -> Json:
    """The rows, the exported model's among them, and what is told of both models."""
    if run.backbone is not None:
        return _of_backbone(run, found, exported_now)
    return _of_classifier(run, found, exported_now)


def _of_backbone(run: Run, evaluated: Json, exported_now: bool) -> Json:
    """The rows of features; `result` has what the costs predicted beside what was measured."""
    backbone, rows = run.backbone, evaluated["rows"]
    assert backbone is not None
    row = next(row for row in rows if row["exported"])
    rows = [{name: value for name, value in one.items() if name != "exported"} for one in rows]
    told, measured = evaluated["predicted"], {"cosine_loss": row["cosine_loss"], "fvu": row["output_fvu"]}
    ratio = measured["fvu"] / told["fvu"] if told["fvu"] and measured["fvu"] is not None else None
    row = {name: value for name, value in row.items() if name not in ("exported", "paired")}
    first = _result(run, row, exported_now) | {
        "predicted": told,
        "measured": measured,
        "measured_over_predicted": ratio,
    }
    found: Json = {"rows": rows, "result": first, "per_class": [], "confusions": {}, "worst": {}, "predictions": {}}
    about = {"features": backbone.reads, "class_token": backbone.class_token, "prefix": backbone.prefix}
    return found | {"backbone": about | {"index": _index(row)}} | _models(run, first, "", exported_now)


def _index(row: Json) -> str:
    """What becomes of an index of the dense model's features. Among few test images most are neighbours by chance, which says
    nothing."""
    if row["neighbours"] is None:
        return "With a single test image nothing is said of neighbours."
    others = row["n"] - 1
    by_chance = min(1.0, NEIGHBOURS / others)
    same = (
        f"{100 * row['neighbours']:.0f} % of the ten nearest test images are the same as by the dense model's features"
    )
    share = f"{same} ({100 * by_chance:.0f} % would be by chance)"
    if row["neighbours"] >= SAME_INDEX and by_chance > TOO_FEW:
        return (
            f"{share}: {row['n']} test images are too few to say what becomes of an index of those; take a few hundred."
        )
    if row["neighbours"] >= SAME_INDEX:
        return f"{share}: an index of them may stay, where so much is enough."
    return f"{share}: an index of those must be built again from this model's. A new head is trained on them as on any."


def _of_classifier(run: Run, evaluated: Json, exported_now: bool) -> Json:
    rows = evaluated["rows"]
    for row in rows:
        dense = next(
            (
                r
                for r in rows
                if r["criterion"] == "dense" and r["head"] == row["head"] and r["classes"] == row["classes"]
            ),
            None,
        )
        if dense and row["criterion"] != "dense":
            row["top1_change_points"] = (row["top1"] - dense["top1"]) * 100
    results = {row["group"] or "": _result(run, row, exported_now) for row in rows if row.pop("exported")}
    first = next(iter(results.values()))
    group = next(iter(results))
    found = {"rows": rows, "result": first, "per_class": _changes(evaluated["per_class"][group])}
    found["labels"] = [run.classes.name(i) for i in outputs_of(run, run.classes.sets()[group or None])]
    found |= {key: evaluated[key] for key in ("confusions", "worst", "predictions", "outputs")}
    if run.recipe.groups:
        found["results"] = results
        found["specialists"] = evaluated["specialists"]
        found["per_class_of_group"] = {g: _changes(v) for g, v in evaluated["per_class"].items()}
    return found | _models(run, first, group, exported_now)


def _models(run: Run, first: Json, group: str, exported_now: bool) -> Json:
    """Sizes of the dense and the exported model, and how fast both are."""
    found: Json = {}
    dense_widths = [site.size for site in run.sites]
    pruned = stage_json(run, "prune", f"{group or 'all'}.json") or {"widths": []}
    found["model"] = {
        "name": told.model_name(run.recipe.model.name),
        "architecture": run.loaded.architecture,
        "params_dense": size.parameters(run.loaded.model),
        "params_slim": first["params"],
        "macs_dense": size.macs(run.loaded.model),
        "macs_slim": first["macs"],
        "widths_dense": dense_widths,
        "widths_slim": pruned["widths"],
    }
    if pruned.get("attention"):
        found["model"]["attention"] = _attention(run, pruned["attention"])
    exported = stage_json(run, "export", f"{group or 'all'}.json") if exported_now else None
    found["model"]["macs_exported"] = shortcut.macs_of(exported)
    found["model"]["bytes_dense"] = dense_bytes(run) if exported_now else None
    found["latency"] = exported["latency"] if exported else []
    return found


def _attention(run: Run, slim: Json) -> Json:
    found = {site.name: site for site in attention_sites(run.loaded.model)}
    return {
        name: {"dense": found[name].state(found[name].heads, found[name].dim), "slim": found[name].state(*size)}
        for name, size in slim.items()
    }


def _result(run: Run, row: dict[str, Any], exported_now: bool) -> dict[str, Any]:
    exported = stage_json(run, "export", f"{row['group'] or 'all'}.json") if exported_now else None
    batch = told_batch(run.recipe.export)
    timed = [x for x in exported["latency"] if x["batch"] == batch] if exported else []
    ratio = timed[0]["ratio"] if timed and math.isfinite(timed[0]["ratio"]) else None
    found = row | {"latency_ratio": ratio, "latency_batch": batch}
    found |= {"latency_notes": timed[0]["notes"]} if ratio is not None else {}
    return found | ({"open_set": exported["open_set"]} if exported and exported["open_set"] else {})


def _changes(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    known = [r for r in rows if r["dense_top1"] is not None and r["slim_top1"] is not None]
    return [r | {"change_points": (r["slim_top1"] - r["dense_top1"]) * 100} for r in known]


def stage_json(run: Run, stage: str, name: str) -> dict[str, Any] | None:
    """A JSON file of a stage, or None when that stage has not run."""
    path = run.folder.stage_folder(stage) / name
    return dict(read_json(path)) if path.is_file() else None
