"""The exam: every row of the report on the test split, after every choice has been made."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from vitprune.core.errors import UserError
from vitprune.core.files import write_json
from vitprune.criteria.catalog import allocation_of
from vitprune.exam import metrics, oracle
from vitprune.exam.logits import predictor, test_indices, test_logits
from vitprune.exam.metrics import Metrics
from vitprune.model import classifier, size
from vitprune.model.load import opening
from vitprune.pruning import masks
from vitprune.runs.stages import examples, specialists
from vitprune.runs.stages.prune import exported_mask, mask_of, slimmed
from vitprune.runs.stages.score import load, model_of, scores_of
from vitprune.runs.state.context import Context


def evaluate(context: Context) -> list[Path]:
    """Every row of the report on the test split; all choices have been made by the stages before."""
    rows: list[dict[str, Any]] = []
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
    write_json(path, {"rows": rows, **of_groups, "specialists": specialists.table(context)})
    return [path, *files]


def _evaluate_set(
    context: Context, group: str | None, targets: list[int]
) -> tuple[list[dict[str, Any]], dict[str, np.ndarray], list[Any]]:
    """The rows of one class set, the predictions of the dense and the exported model, and their accuracy per class."""
    recipe = context.recipe
    main = (recipe.criterion.name, recipe.criterion.seed if recipe.criterion.name == "random" else recipe.split.seed)
    contenders = [main] + [(name, recipe.split.seed) for name in recipe.baselines if name not in (main[0], "random")]
    if "random" in recipe.baselines:
        contenders += [("random", s) for s in range(recipe.random_draws) if ("random", s) != main]
    jobs = [("dense", recipe.split.seed, "none")]
    jobs += [(n, s, how) for n, s in contenders for how in dict.fromkeys(("none", context.recovery))]
    shown = "all" if context.keeps_head(targets) else "masked"  # the exported head, and that of what it stands beside
    rows: list[dict[str, Any]] = []
    hits: list[np.ndarray] = []
    seen: dict[str, Metrics] = {}
    whole: dict[str, np.ndarray] = {}
    compared: dict[str, np.ndarray] = {}
    for name, seed, how in context.reporter.track(jobs, f"evaluate{' ' + group if group else ''}", len(jobs)):
        exported = (name, seed) == main and how == context.recovery
        if name == "dense":
            mask = None
        elif (name, seed) == main:
            mask = exported_mask(context, group, targets)
        else:
            mask = mask_of(context, scores_of(context, name, seed, group), targets)
        if mask is None:
            model = context.loaded.model
        elif exported:
            model = opening.load(context.folder.root / (group or ""), context.device)
        else:
            model = slimmed(context, mask, how, group, targets, model_of(context, name, group))  # type: ignore[arg-type]
        logits, labels = test_logits(predictor(model), context.images, context.split, context.batch, np.array(targets))
        narrowed = logits.shape[1] < context.loaded.outputs
        logits = classifier.widen(logits, targets, context.loaded.outputs)
        if narrowed:
            ways: tuple[str, ...] = ("masked",)  # the other outputs are gone: there is no head that has them all
        else:
            ways = ("all", "masked") if len(targets) < context.loaded.outputs else ("all",)
        for head in ways:
            m = _finite_metrics(logits, labels, targets if head == "masked" else None, name)
            share, asked = (mask.kept, recipe.keep) if mask else (1.0, 1.0)
            made = row(context, name, how, m, model, targets, share, asked)
            rows.append(made | {"seed": seed, "group": group, "head": head, "exported": exported and head == shown})
            hits.append(metrics.hits(logits, labels, targets if head == "masked" else None))
            if exported:
                compared[head] = hits[-1]
            if head == shown and (name == "dense" or exported):
                seen["dense" if name == "dense" else "slim"] = m
                whole["dense" if name == "dense" else "slim"] = (
                    logits if head == "all" else classifier.widen(logits[:, targets], targets, context.loaded.outputs)
                )
    for made, hit in zip(rows, hits, strict=True):
        ours = compared.get(made["head"], compared[shown])
        made["mcnemar_p"] = None if hit is ours else metrics.mcnemar(hit, ours)
        made["only_right"] = None if hit is ours else [int((hit & ~ours).sum()), int((ours & ~hit).sum())]
    index = test_indices(context.images, context.split, np.array(targets))
    return rows, examples.predictions(index, labels, **whole), _per_class(context, targets, seen, labels)


def _finite_metrics(logits: np.ndarray, labels: np.ndarray, head: list[int] | None, name: str) -> Metrics:
    try:
        return metrics.metrics(logits, labels, head)
    except ValueError as error:
        raise UserError(f"evaluate, {name}: {error}; check the model's weights and the images") from error


def row(
    context: Context,
    name: str,
    how: str,
    m: Metrics,
    model: nn.Module,
    targets: list[int],
    kept: float,
    keep: int | float,
) -> dict[str, Any]:
    """One row of report.json: an honest one of the run's seed, until a caller says otherwise."""
    return {
        "criterion": name,
        "keep": keep,
        "kept": kept,
        "allocation": allocation_of(name, context.recipe.allocation),
        "recovery": how,
        "protocol": "honest",
        "t": None,
        "group": None,
        "classes": [context.class_name(i) for i in targets],
        "head": "all",
        "seed": context.recipe.split.seed,
        "top1": m.top1,
        "top1_ci95": list(m.top1_ci95),
        "mean_true_probability": m.mean_true_probability,
        "per_class_top1": {context.class_name(i): _number(m.per_class[i]) for i in targets},
        "params": size.parameters(model),
        "macs": size.macs(model),
        "n": m.n,
    }


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _per_class(context: Context, targets: list[int], seen: dict[str, Metrics], labels: np.ndarray) -> list[Any]:
    return [
        {
            "class": context.class_name(i),
            "n": int((labels == i).sum()),
            "dense_top1": _number(seen["dense"].per_class[i]),
            "slim_top1": _number(seen["slim"].per_class[i]),
            "slim_ci95": _wilson(seen["slim"].per_class[i], int((labels == i).sum())),
        }
        for i in targets
    ]


def _wilson(top1: float, n: int) -> list[float] | None:
    return list(metrics.wilson(round(top1 * n), n)) if n else None


def _oracle_rows(context: Context) -> list[dict[str, Any]]:
    """The paper's protocol on all test images of the run's classes: class token only, mask of the true label."""
    p, targets = context.recipe.paper_protocol, context.every_target()
    assert p is not None
    model, rows = context.loaded.model, []
    only = np.array(targets)
    index = test_indices(context.images, context.split, only)
    for name in ("jas", "activation"):
        for t in p.t:
            keep = masks.per_class(load(context, name, t, p.attribution(), p.probe_per_class), t)
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
            m = _finite_metrics(logits, labels, None, name)
            kept = t * len(context.sites) / sum(site.size for site in context.sites)
            made = row(context, name, "none", m, model, targets, kept, t)
            rows.append(made | {"protocol": "oracle", "t": t, "exported": False})
    return rows
