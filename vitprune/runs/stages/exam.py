"""The exam: every row of the report on the test split, after every choice has been made."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from vitprune.core.files import write_json
from vitprune.exam import metrics, oracle
from vitprune.exam.logits import test_indices
from vitprune.model import classifier
from vitprune.pruning import masks
from vitprune.pruning.repair.names import Recovery
from vitprune.runs import contenders
from vitprune.runs.contenders import Contender, Made
from vitprune.runs.results.row import Head, Row
from vitprune.runs.stages import examples, specialists
from vitprune.runs.stages.prune import exported_mask
from vitprune.runs.stages.score import load
from vitprune.runs.state.context import Context


def evaluate(context: Context) -> list[Path]:
    """Every row of the report on the test split; all choices have been made by the stages before."""
    rows: list[Row] = []
    files: list[Path] = []
    of_groups: dict[str, dict[str, Any]] = {"per_class": {}, "confusions": {}, "worst": {}, "predictions": {}}
    for group, targets in context.class_sets().items():
        made, found, per_class = _evaluate_set(context, group, targets)
        rows += made
        written = examples.write(context, group, found)
        of_group = {
            "per_class": per_class,
            "confusions": examples.confusions(context, found),
            "worst": examples.worst(context, written, found),
            "predictions": written[0].relative_to(context.folder.root).as_posix(),
        }
        for key, value in of_group.items():
            of_groups[key][group or ""] = value
        files += written
    if context.recipe.paper_protocol:
        rows += _oracle_rows(context)
    path = context.folder.stage_folder("evaluate") / "rows.json"
    content = {"rows": [row.as_json() for row in rows], **of_groups, "specialists": specialists.table(context)}
    write_json(path, content)
    return [path, *files]


def _contenders(context: Context, group: str | None) -> list[Contender]:
    """The dense model, the run's own criterion and every baseline, without a repair and with the run's."""
    recipe, own = context.recipe, contenders.own(context, context.recovery, group)
    names = [(own.criterion, own.seed)]
    names += [(name, recipe.split.seed) for name in recipe.baselines if name not in (own.criterion, "random")]
    if "random" in recipe.baselines:
        names += [("random", s) for s in range(recipe.random_draws) if ("random", s) != names[0]]
    repairs: tuple[Recovery, ...] = ("none", context.recovery)
    pruned = [Contender(n, recipe.keep, how, seed, group) for n, seed in names for how in dict.fromkeys(repairs)]
    return [Contender.dense(recipe.split.seed, group), *pruned]


def _evaluate_set(
    context: Context, group: str | None, targets: list[int]
) -> tuple[list[Row], dict[str, np.ndarray], list[Any]]:
    """The rows of one class set, the predictions of the dense and the exported model, and their accuracy per class."""
    own = contenders.own(context, context.recovery, group)
    shown = "all" if context.keeps_head(targets) else "masked"  # the exported head, and that of what it stands beside
    rows: list[Row] = []
    seen: dict[str, Row] = {}
    whole: dict[str, np.ndarray] = {}
    compared: dict[str, Row] = {}
    jobs = _contenders(context, group)
    for contender in context.reporter.track(jobs, f"evaluate{' ' + group if group else ''}", len(jobs)):
        found = contenders.examine(context, contender, _ready(context, contender, own))
        for row in found.rows:
            rows.append(replace(row, exported=contender == own and row.head == shown))
            if contender == own:
                compared[row.head] = rows[-1]
            if row.head == shown and (contender == own or contender.is_dense):
                name = "dense" if contender.is_dense else "slim"
                seen[name], whole[name] = row, _shown(context, found.logits, targets, row.head)
    rows = [row.against(compared.get(row.head, compared[shown])) for row in rows]
    index = test_indices(context.images, context.split, np.array(targets))
    return rows, examples.predictions(index, found.labels, **whole), _per_class(context, targets, seen, found.labels)


def _ready(context: Context, contender: Contender, own: Contender) -> Made | None:
    """What the prune stage left of a contender: the exported model, or its plan for the same one without its repair."""
    if contender == own:
        return contenders.exported(context, own.group)
    if contender == replace(own, repair=contender.repair):
        plan = exported_mask(context, own.group, contenders.targets_of(context, own.group))
        return contenders.make(context, contender, plan)
    return None


def _shown(context: Context, logits: np.ndarray, targets: list[int], head: Head) -> np.ndarray:
    """The logits as the head gives them: with the outputs outside the class set far below where it is masked."""
    return logits if head == "all" else classifier.widen(logits[:, targets], targets, context.loaded.outputs)


def _per_class(context: Context, targets: list[int], seen: dict[str, Row], labels: np.ndarray) -> list[Any]:
    made = []
    for i in targets:
        name, n = context.class_name(i), int((labels == i).sum())
        dense, slim = (seen[model].per_class_top1[name] for model in ("dense", "slim"))
        interval = None if slim is None else list(metrics.wilson(round(slim * n), n))
        made.append({"class": name, "n": n, "dense_top1": dense, "slim_top1": slim, "slim_ci95": interval})
    return made


def _oracle_rows(context: Context) -> list[Row]:
    """The paper's protocol on all test images of the run's classes: class token only, mask of the true label."""
    p, model, rows = context.recipe.paper_protocol, context.loaded.model, []
    assert p is not None
    index = test_indices(context.images, context.split, np.array(context.every_target()))
    costs = Made(model, None).costs
    for name in ("jas", "activation"):
        for t in p.t:
            keep = masks.per_class(load(context, name, t, p.how(name), p.probe_per_class), t)
            label = f"paper protocol {name} t={t}"
            logits, labels = oracle.oracle_logits(
                model,
                context.sites,
                keep,
                context.images,
                index,
                context.batch,
                lambda items, label=label: context.reporter.track(items, label, len(index), context.batch),  # type: ignore[misc]
            )
            kept = t * len(context.sites) / sum(site.size for site in context.sites)
            contender = Contender(name, t, "none", context.recipe.split.seed)
            made = contenders.row(context, contender, kept, costs, logits, labels)
            rows.append(replace(made, protocol="oracle", t=t, exported=False))
    return rows
