"""The matrices behind the report's figures, in `report-data/` beside report.json, which names them.

Legend: C classes, K of them shown, n hidden units of a block.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from vitprune.core.files import replacing
from vitprune.criteria.catalog import CRITERIA
from vitprune.criteria.scores import Scores
from vitprune.runs.stages import score
from vitprune.runs.state import lengths
from vitprune.runs.state.run import Run
from vitprune.see import usage

SHOWN = 12  # classes whose frequencies are drawn
INLINE = 100  # with more classes the similarity matrix is a file


def scores(run: Run) -> Scores | None:
    """How often each unit is on the paths of each class, or None where the criterion finds no paths."""
    c = run.recipe.criterion
    ranked = CRITERIA[c.name].ranks_by if c.name in CRITERIA else None
    if ranked != "frequency":
        return None
    t = lengths.of(run, c.name, run.recipe.keep)
    found = score.result_file(run, c.name, t, c.how(c.name), c.images_per_class(c.name)).is_file()
    return score.scores_of(run, c.name) if found else None


def write(run: Run, record: dict[str, Any]) -> dict[str, Any]:
    """Write the matrices of a record's run; the parts of the record that name them."""
    found = scores(run)
    if found is None:
        return {}
    targets = run.classes.every()
    names = [run.classes.name(i) for i in targets]
    shown = _shown(names, record)
    frequency = {
        f"frequency.{i}": block[[targets[names.index(name)] for name in shown]].numpy().astype(np.float32)
        for i, block in enumerate(found.sites.values())
    }
    parts = {"paths": record["paths"] | {"shown": shown, "file": _save(run, "paths", frequency)}}
    if len(targets) > INLINE:
        similarity = usage.alike(block[targets].numpy() for block in found.sites.values()).astype(np.float32)
        file = _save(run, "class-similarity", {"similarity": similarity})
        parts["class_similarity"] = {"classes": names, "file": file}
    return parts


def _shown(names: list[str], record: dict[str, Any]) -> list[str]:
    """All classes where they are few, else those that lost the most accuracy, in class order."""
    if len(names) <= SHOWN:
        return names
    changes = {row["class"]: row["change_points"] for row in record.get("per_class", [])}
    worst = sorted(names, key=lambda name: changes.get(name, 0.0))[:SHOWN]
    return [name for name in names if name in worst]


def _save(run: Run, name: str, arrays: dict[str, np.ndarray]) -> str:
    path: Path = run.folder.root / "report-data" / f"{name}.safetensors"
    with replacing(path) as temporary:
        temporary.write_bytes(save({key: np.ascontiguousarray(value) for key, value in arrays.items()}))
    return path.relative_to(run.folder.root).as_posix()
