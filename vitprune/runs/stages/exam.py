"""The exam: every row of the report on the test split, after every choice has been made."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from vitprune.core.files import write_json
from vitprune.core.reading import Json
from vitprune.exam import metrics, oracle
from vitprune.exam.logits import test_indices
from vitprune.model import classifier
from vitprune.pruning import masks
from vitprune.pruning.repair.names import Recovery
from vitprune.runs import contenders
from vitprune.runs.contenders import Contender, Made
from vitprune.runs.engine.base import Columns, Job
from vitprune.runs.engine.parts import packed, unpacked
from vitprune.runs.results import side_by_side
from vitprune.runs.results.row import Head, Row
from vitprune.runs.results.side_by_side import Asked, Table
from vitprune.runs.stages import specialists
from vitprune.runs.stages.exams import backbones, examples
from vitprune.runs.stages.prune import exported_mask
from vitprune.runs.stages.score import load
from vitprune.runs.stages.versions import version
from vitprune.runs.state.run import Run
from vitprune.runs.state.workspace import PARTS

BYTES = 1 << 32  # of the logits of models without a repair, on disk


def evaluate(run: Run) -> list[Path]:
    """Every row of the report on the test split; all choices have been made by the stages before."""
    if run.backbone is not None:
        return backbones.evaluate(run, _contenders(run, None), _made, _about(run))
    rows: list[Row] = []
    files: list[Path] = []
    of_groups: dict[str, dict[str, Any]] = {key: {} for key in examples.OF_GROUP}
    every = {group: _contenders(run, group) for group in run.classes.sets()}
    logits = _logits(run, every)
    examined = _examine(run, [contender for jobs in every.values() for contender in jobs], logits)
    for group, targets in run.classes.sets().items():
        made, found, per_class = _of_set(run, group, targets, {one: examined[one] for one in every[group]}, logits)
        rows += made
        written = examples.write(run, group, found)
        of_group = {
            "per_class": per_class,
            "confusions": examples.confusions(run, found),
            "worst": examples.worst(run, written, found),
            "predictions": written[0].relative_to(run.folder.root).as_posix(),
            "outputs": examples.outputs(run, found),
        }
        for key, value in of_group.items():
            of_groups[key][group or ""] = value
        files += written
    if run.recipe.paper_protocol:
        rows += _oracle_rows(run)
    path = run.folder.stage_folder("evaluate") / "rows.json"
    content = {"rows": [row.as_json() for row in rows], **of_groups, "specialists": specialists.table(run)}
    write_json(path, content)
    run.folder.clear(run.folder.stage_folder("evaluate") / PARTS, set())
    return [path, *files]


def _contenders(run: Run, group: str | None) -> list[Contender]:
    """The dense model, the run's own criterion and every baseline, without a repair and with the run's."""
    recipe, own = run.recipe, contenders.own(run, run.recovery, group)
    names = [(own.criterion, own.seed)]
    names += [(name, recipe.split.seed) for name in recipe.baselines if name not in (own.criterion, "random")]
    if "random" in recipe.baselines:
        names += [("random", s) for s in range(recipe.random_draws) if ("random", s) != names[0]]
    repairs: tuple[Recovery, ...] = ("none", run.recovery)
    keep, budget, every = own.keep, own.budget, dict.fromkeys(repairs)
    pruned = [Contender(n, keep, how, seed, group, budget) for n, seed in names for how in every]
    return [Contender.dense(recipe.split.seed, group), *pruned]


def _of_set(
    run: Run, group: str | None, targets: list[int], examined: dict[Contender, Sequence[Row]], logits: Table
) -> tuple[list[Row], dict[str, np.ndarray], list[Any]]:
    """The rows of one class set, the predictions of the dense and the exported model, and their accuracy per class."""
    own = contenders.own(run, run.recovery, group)
    shown = (
        "all" if run.classes.keeps_head(targets) else "masked"
    )  # the exported head, and that of what it stands beside
    rows: list[Row] = []
    seen: dict[str, Row] = {}
    whole: dict[str, np.ndarray] = {}
    compared: dict[str, Row] = {}
    for contender, found in examined.items():
        for row in found:
            rows.append(replace(row, exported=contender == own and row.head == shown))
            if contender == own:
                compared[row.head] = rows[-1]
            if row.head == shown and (contender == own or contender.is_dense):
                name = "dense" if contender.is_dense else "slim"
                seen[name], whole[name] = row, _shown(run, _known(logits, contender), targets, row.head)
    dense = {row.head: row for row in rows if row.criterion == "dense"}
    rows = [row.against(compared.get(row.head, compared[shown])).beside(dense[row.head]) for row in rows]
    index = test_indices(run.images, run.split, np.array(targets))
    labels = run.images.labels[index]
    return rows, examples.predictions(index, labels, **whole), _per_class(run, targets, seen, labels)


def _about(run: Run) -> Json:
    """What the parts of the exam depend on beside their items."""
    pruned = run.folder.record("prune")
    return {"pruned": pruned and pruned["inputs"], "code": version("evaluate"), "device": run.device.type}


def _logits(run: Run, every: dict[str | None, list[Contender]]) -> Table:
    """Those of the contenders that take no repair to make."""
    asked = []
    for group, jobs in every.items():
        targets = contenders.targets_of(run, group)
        count = len(test_indices(run.images, run.split, np.array(targets)))
        most = max(2, BYTES // max(1, 4 * count * run.loaded.outputs * len(every)))
        quick = [
            asdict(one) for one in (jobs[0], contenders.own(run, run.recovery, group), *jobs[1:]) if _quick(run, one)
        ]
        models = [one for i, one in enumerate(quick) if one not in quick[:i]][:most]
        asked.append(Asked(group or "", tuple(targets), models))
    folder = run.folder.stage_folder("evaluate") / PARTS / "logits"
    return side_by_side.table(run, asked, _model, _about(run), folder, "evaluate, logits")


def _quick(run: Run, contender: Contender) -> bool:
    """Whether a contender's model takes no repair to make: dense, exported, or left without one."""
    return contender.repair == "none" or contender == contenders.own(run, run.recovery, contender.group)


def _model(run: Run, item: Json) -> nn.Module:
    return _made(run, Contender(**item)).model


def _known(logits: Table, contender: Contender) -> np.ndarray | None:
    """The contender's logits, where they are in the table."""
    return logits.of(contender.group or "", asdict(contender))


def _examine(run: Run, every: list[Contender], logits: Table) -> dict[Contender, Sequence[Row]]:
    """The rows of every contender; those that take a repair are begun first, so that none is waited for alone."""
    order = sorted(every, key=lambda one: _quick(run, one))
    job = Job("evaluate", [asdict(one) for one in order], functools.partial(_examined, run, logits), _about(run))
    parts = run.executor.run(job, run.folder.stage_folder("evaluate") / PARTS / "rows")
    tracked = run.reporter.track(parts, "evaluate", len(order))
    return dict(zip(order, map(_rows, tracked), strict=True))


def _examined(run: Run, logits: Table, item: Json) -> Columns:
    """One contender's rows."""
    contender = Contender(**item)
    targets, known = contenders.targets_of(run, contender.group), _known(logits, contender)
    if run.dense_logits is None or run.dense_logits[0] != tuple(targets):
        dense = _known(logits, Contender.dense(run.recipe.split.seed, contender.group))
        run.dense_logits = None if dense is None else (tuple(targets), dense)
    made = _made(run, contender) if _quick(run, contender) else None
    found = contenders.examine(run, contender, made and replace(made, logits=known))
    return _columns(found.rows)


def _columns(rows: Sequence[Row]) -> Columns:
    columns = packed({"rows": [row.as_json() for row in rows]})
    return columns | {f"hits.{i}": row.hits for i, row in enumerate(rows) if row.hits is not None}


def _rows(columns: Columns) -> Sequence[Row]:
    return [Row.from_json(row, columns[f"hits.{i}"]) for i, row in enumerate(unpacked(columns)["rows"])]


def _made(run: Run, contender: Contender) -> Made:
    """A contender's model. Of the run's own criterion the prune stage left it: the exported one, or its plan for the same one
    without its repair."""
    own = contenders.own(run, run.recovery, contender.group)
    if contender == own:
        return contenders.exported(run, own.group)
    mine = contender == replace(own, repair=contender.repair)
    plan = exported_mask(run, own.group, contenders.targets_of(run, own.group)) if mine else None
    return contenders.make(run, contender, plan)


def _shown(run: Run, logits: np.ndarray | None, targets: list[int], head: Head) -> np.ndarray:
    """The logits as the head gives them: with the outputs outside the class set far below where it is masked."""
    assert logits is not None, "the dense and the exported model are quick to make"
    logits = classifier.widen(logits, targets, run.loaded.outputs)
    return logits if head == "all" else classifier.widen(logits[:, targets], targets, run.loaded.outputs)


def _per_class(run: Run, targets: list[int], seen: dict[str, Row], labels: np.ndarray) -> list[Any]:
    made = []
    for i in targets:
        name, n = run.classes.name(i), int((labels == i).sum())
        dense, slim = (seen[model].per_class_top1[name] for model in ("dense", "slim"))
        interval = None if slim is None else list(metrics.wilson(round(slim * n), n))
        made.append({"class": name, "n": n, "dense_top1": dense, "slim_top1": slim, "slim_ci95": interval})
    return made


def _oracle_rows(run: Run) -> list[Row]:
    """The paper's protocol on all test images of the run's classes, a part for each of its criteria and t."""
    p = run.recipe.paper_protocol
    assert p is not None
    items = [[name, t] for name in ("jas", "activation") for t in p.t]
    job = Job("paper protocol", items, functools.partial(_oracle_row, run), _about(run))
    parts = run.executor.run(job, run.folder.stage_folder("evaluate") / PARTS / "protocol")
    rows = [row for columns in run.reporter.track(parts, job.name, len(items)) for row in _rows(columns)]
    return [replace(row, exported=False) for row in rows]


def _oracle_row(run: Run, item: Sequence[Any]) -> Columns:
    """One of its rows: class token only, mask of the true label."""
    p, model, (name, t) = run.recipe.paper_protocol, run.loaded.model, item
    assert p is not None
    index = test_indices(run.images, run.split, np.array(run.classes.every()))
    keep = masks.per_class(load(run, name, t, p.how(name), p.probe_per_class), t)
    logits, labels = oracle.oracle_logits(model, run.sites, keep, run.images, index, run.batching.batch)
    kept = t * len(run.sites) / sum(site.size for site in run.sites)
    contender = Contender(name, t, "none", run.recipe.split.seed)
    made = contenders.row(run, contender, kept, Made(model, None).costs(run), logits, labels)
    return _columns([replace(made, protocol="oracle", t=t)])
