"""What a class specialist is worth, told honestly: beside the dense model with the same classes closed on its head.

Per group, on the test split: the dense model, the model pruned once for the classes of all groups (`generic`), and the
group's own (`specialist`), with the whole head and with the other outputs closed (`masked`, which costs nothing and is
most of what a specialist gains); top-1 on the group's classes and on every class; and whether images of other classes are
told apart by the largest softmax or by the energy (log-sum-exp) of the group's own logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from vitprune.core.reading import Json, digest, read_json
from vitprune.exam.open_set import open_set
from vitprune.model import classifier
from vitprune.model.load import opening, saving
from vitprune.runs import contenders
from vitprune.runs.results import side_by_side
from vitprune.runs.results.side_by_side import Asked, Table
from vitprune.runs.stages.prune import main_mask
from vitprune.runs.stages.versions import version
from vitprune.runs.state.run import Run
from vitprune.runs.state.workspace import PARTS

GENERIC = "generic"  # the folder of the model for the classes of all groups, until the exam has ended


def table(run: Run) -> list[dict[str, Any]]:
    """Five rows per group, six where the specialist kept its whole head; none where a group has every class."""
    rows: list[dict[str, Any]] = []
    sets = {g: t for g, t in run.classes.sets().items() if g is not None and len(t) < run.loaded.outputs}
    if not sets:
        return rows
    known = _logits(run, list(sets))
    logits = {name: _every_logit(known, name) for name in ("dense", "generic")}
    labels = run.images.labels[run.split.test]
    for group, targets in sets.items():
        for name, found in {**logits, "specialist": _every_logit(known, "specialist", group)}.items():
            found = classifier.widen(found, targets, run.loaded.outputs)
            narrowed = name == "specialist" and not run.classes.keeps_head(targets)
            for head in ("masked",) if narrowed else ("all", "masked"):
                about = {
                    "group": group,
                    "classes": [run.classes.name(i) for i in targets],
                    "model": name,
                    "head": head,
                }
                rows.append(about | figures(found, labels, targets, masked=head == "masked"))
    return rows


def _logits(run: Run, groups: Sequence[str]) -> Table:
    """The dense model's, the generic one's and every specialist's on all test images."""
    folder = run.folder.stage_folder("evaluate") / PARTS
    pruned = run.folder.record("prune")
    about = [pruned and pruned["inputs"], version("evaluate"), run.device.type]
    _generic(run, folder / GENERIC, digest(about))
    models = [_item("dense"), _item("generic"), *(_item("specialist", group) for group in groups)]
    return side_by_side.table(
        run, [Asked("all", None, models)], _model, digest(about), folder / "specialists", "specialists"
    )


def _item(name: str, group: str | None = None) -> Json:
    return {"model": name, "group": group}


def _generic(run: Run, folder: Path, key: str) -> None:
    """Nothing; the model for the classes of all groups is in a folder, from where whoever examines it reads it."""
    config = folder / "config.json"
    if config.is_file() and read_json(config)["vitprune"].get("of") == key:
        return
    own = contenders.own(run, run.recovery)
    made = contenders.make(run, own, main_mask(run, None, run.classes.every()))
    saving.save(folder, run.loaded, made.model, {"of": key})


def _model(run: Run, item: Json) -> nn.Module:
    if item["model"] == "dense":
        return run.loaded.model
    if item["model"] == "specialist":
        return contenders.exported(run, item["group"]).model
    return opening.load(run.folder.stage_folder("evaluate") / PARTS / GENERIC, run.device)


def _every_logit(known: Table, name: str, group: str | None = None) -> np.ndarray:
    found = known.of("all", _item(name, group))
    assert found is not None
    return found


def figures(logits_NC: np.ndarray, labels_N: np.ndarray, targets: list[int], *, masked: bool) -> dict[str, Any]:
    """Top-1 on the target classes and on all of them, and the open-set figures; fractions."""
    inside = np.isin(labels_N, targets)
    own = logits_NC[:, targets].astype(np.float64)
    if masked:
        predicted = np.array(targets)[own.argmax(1)]
        highest = own.max(1)
        certain = np.exp(highest - _logsumexp(own))
    else:
        predicted = logits_NC.argmax(1)
        certain = np.exp(own.max(1) - _logsumexp(logits_NC.astype(np.float64)))
    hit = predicted == labels_N
    made: dict[str, Any] = {"top1": float(hit[inside].mean()), "top1_all_classes": float(hit.mean())}
    made |= {"n": int(inside.sum()), "n_other": int((~inside).sum())}
    for name, score in (("max_softmax", certain), ("energy", _logsumexp(own))):
        auroc, fpr = open_set(score[inside], score[~inside])
        made |= {f"auroc_{name}": auroc, f"fpr95_{name}": fpr}
    return made


def _logsumexp(logits: np.ndarray) -> np.ndarray:
    highest = logits.max(1, keepdims=True)
    return highest[:, 0] + np.log(np.exp(logits - highest).sum(1))
