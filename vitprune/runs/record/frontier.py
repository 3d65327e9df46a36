"""A frontier: one discovery, several budgets, a model in a folder of its own for each; and the record of them together.

A budget's folder is that of a run like any other (checkpoint, recipe, report, ONNX), but that its split, discovery and
statistics are in the run's. The budget that `export.budget` names has its files in the run's own folder too; the figures
at the top of the run's record are its, else those of the smallest model.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from vitprune.core.files import replacing
from vitprune.core.reading import Json, digest
from vitprune.recipe.parts import NAME, Whole
from vitprune.recipe.recipe import Recipe
from vitprune.runs.stages.order import Stage
from vitprune.runs.state.run import Run

HEADLINE = (
    "result", "model", "backbone", "per_class", "confusions", "outputs", "labels", "latency", "usage", "see",
)  # fmt: skip


def runs(run: Run) -> Iterator[Run]:
    """A run for every budget, the largest first; of a recipe that is no frontier, the run itself."""
    if not run.recipe.frontier:
        yield run
    for one in run.recipe.frontier:
        yield run.beside(run.folder.root / one.folder, recipe_of(run.recipe, one))


def recipe_of(recipe: Recipe, one: Whole) -> Recipe:
    """The recipe of one budget's model, which makes the same one when it is run alone, and exports it."""
    name = f"{recipe.name}-{one.folder}"
    export = recipe.export.model_copy(update={"budget": None})
    return recipe.model_copy(
        update={"name": name if NAME.fullmatch(name) else one.folder, "whole": one, "export": export}
    )


def stages_of(run: Run, inner: Run, stages: Sequence[Stage]) -> list[Stage]:
    """Those of the stages that a budget's model goes through: one that `export.budget` does not name is not exported, and
    files of an earlier export are removed."""
    assert inner.recipe.whole is not None
    if run.recipe.export.budget in (None, inner.recipe.whole.amount):
        return list(stages)
    if any(stage.name == "export" for stage in stages):
        inner.folder.remove(inner.folder.files_of("export"))
        inner.folder.clear(inner.folder.stage_folder("export"), set())
    return [stage for stage in stages if stage.name != "export"]


def complete(run: Run, made: Json) -> Json:
    """The record of one budget's model, where an export that is not asked for is not missing."""
    missing = [name for name in made["missing"] if name != "export" or run.recipe.export.budget is None]
    return made | {"missing": missing, "complete": not missing}


def to_root(run: Run, stages: Sequence[str]) -> None:
    """Nothing; the files that the stages made of the budget to be exported are in the run's own folder too, and no others
    of an earlier recipe's models."""
    named = next((one for one in run.recipe.frontier if one.amount == run.recipe.export.budget), None)
    source = run.folder if named is None else type(run.folder)(run.folder.root / named.folder)
    for stage in stages:
        record = None if named is None else source.record(stage)
        key = digest("frontier", named and named.spelled, record and record["inputs"])
        if run.folder.is_current(stage, key):
            continue
        before, started = run.folder.files_of(stage), time.monotonic()
        run.folder.begin(stage)
        found = [path for path in sorted(source.files_of(stage)) if _handed_on(path, source.root)] if record else []
        made = [_copied(path, run.folder.root / path.relative_to(source.root)) for path in found]
        run.folder.remove(before - set(made))
        run.folder.finish(stage, key, made, started)


def _handed_on(path: Path, root: Path) -> bool:
    """Whether a file is for users, or the dense model that the slim one is timed against."""
    return path.parent == root or path.name.startswith("dense.onnx")


def _copied(source: Path, path: Path) -> Path:
    with replacing(path) as temporary:
        shutil.copyfile(source, temporary)
    return path


def merged(recipe: Recipe, base: Json, found: Sequence[Json]) -> Json:
    """The record of the whole frontier: `base` is what its budgets have in common, `found` their own records."""
    if not found:
        return base
    budgets = recipe.frontier
    first = [one.amount for one in budgets].index(recipe.export.budget) if recipe.export.budget else len(budgets) - 1
    lead, folder = found[first], budgets[first].folder
    pairs = list(zip(budgets, found, strict=True))
    made = base | {key: lead[key] for key in HEADLINE if key in lead}
    if "rows" in lead:
        made["result"] = lead["result"] | {"budget": budgets[first].spelled}
        made["rows"] = _rows(lead, pairs)
        made["predictions"] = {group: f"{folder}/{path}" for group, path in lead["predictions"].items()}
        if "see" in made:
            made["see"] = _of_folder(folder, made["see"])
        made["worst"] = {g: [_under(folder, row, "thumbnail") for row in rows] for g, rows in lead["worst"].items()}
    known = {check["name"] for check in base["checks"]}
    for one, own in pairs:
        checks = [check for check in own["checks"] if check["name"] not in known]
        made["checks"] = made["checks"] + [check | {"name": f"{check['name']} ({one.folder})"} for check in checks]
        stages = own["stages"][len(base["stages"]) :]
        made["stages"] = made["stages"] + [stage | {"name": f"{stage['name']} {one.folder}"} for stage in stages]
    made["files"] = base["files"] + [_under(one.folder, file) for one, own in pairs for file in own["files"]]
    if recipe.export.budget is not None:
        made["files"] = [file for file in lead["files"] if file["path"] != "recipe.yaml"] + made["files"]
    made["export"] = {
        part: [_under(one.folder, file) for one, own in pairs for file in own["export"][part]]
        for part in ("files", "failed")
    }
    made["notes"] = list(dict.fromkeys(note for own in found for note in own["notes"]))
    made["missing"] = list(dict.fromkeys(name for own in found for name in own["missing"]))
    made["complete"] = not made["missing"]
    made["frontier"] = [_entry(one, own) for one, own in pairs]
    return made


def _under(folder: str, file: Json, key: str = "path") -> Json:
    return file | {key: f"{folder}/{file[key]}"}


def _of_folder(folder: str, see: Json) -> Json:
    """What was seen of the units of one budget's model, its pictures and atlas by their names from the run's own folder."""

    def under(name: str | None) -> str | None:
        return None if name is None else f"{folder}/{name}"

    shown = {
        group: {side: [card | {"strip": under(card["strip"])} for card in cards] for side, cards in sides.items()}
        for group, sides in see["shown"].items()
    }
    return see | {"shown": shown, "atlas": {"file": under(see["atlas"]["file"])}}


def _rows(lead: Json, pairs: Sequence[tuple[Whole, Json]]) -> list[Json]:
    """The dense rows once, then those of every budget, then those that no budget changes."""
    rows = [row for row in lead["rows"] if row["criterion"] == "dense"]
    for one, own in pairs:
        pruned = [row for row in own["rows"] if row["criterion"] != "dense" and row["protocol"] == "honest"]
        rows += [row | {"budget": one.spelled} for row in pruned]
    return rows + [row for row in lead["rows"] if row["protocol"] != "honest"]


FEATURES = ("cosine", "fvu", "tokens_cosine", "tokens_fvu", "neighbours", "knn_top1", "probe_top1")  # of a backbone


def _entry(one: Whole, own: Json) -> Json:
    """One budget's model in a line; the test is against the dense model on the same images."""
    made: Json = {"budget": one.spelled, "folder": one.folder}
    made["onnx"] = any(file["path"] == "model.onnx" for file in own["files"])
    result = own.get("result")
    if result is None:
        return made
    dense = next(r for r in own["rows"] if r["criterion"] == "dense" and r["head"] == result["head"])
    made |= {key: result[key] for key in ("top1", "top1_ci95", "top1_change_points", "kl", *FEATURES) if key in result}
    if "top1" in dense:
        made |= {"dense_top1": dense["top1"], "mcnemar_p": dense["mcnemar_p"], "only_right": dense["only_right"]}
    for name in ("params", "macs"):
        made |= {name: result[name], f"{name}_ratio": result[name] / dense[name]}
    made |= {key: result[key] for key in ("macs_ratio", "macs_ratio_checkpoint")}
    made |= {"kept": result["kept"], "latency_ratio": result["latency_ratio"], "latency_batch": result["latency_batch"]}
    made["latency_notes"] = result.get("latency_notes", [])
    made["bytes"] = next((file["bytes"] for file in own["files"] if file["path"] == "model.safetensors"), None)
    return made
