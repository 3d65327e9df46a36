"""The paper's Table 1 and Figure 3: what the path of each image is worth, by three measures and for every method.

For every test image its own path, one unit per block (Wang et al., ICLR 2025, 4.1 and 4.2, App. C.4 and C.5):

    JAS                    the joint attribution score of the path, whoever chose it (Eq. 3)
    removal, enhancement   the path's units × 0 and × 2 at the class token, after the activation
    accuracy deviation     accuracy after minus accuracy before, over all images, in points
    probability deviation  (p̃ − p) / p of the true class, per image; mean, median and quartiles over images

The methods that use a gradient are told the true label, as in the paper: this says what a path carries, it is no
accuracy that could be deployed. What the authors' code calls accuracy is the mean probability of the true class; its
change stands beside the real one. Legend: B images, L blocks, N hidden units.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vitprune import data, evaluation, grid, hooks, models, parallel, pipeline
from vitprune.context import Context
from vitprune.criteria import CRITERIA
from vitprune.criteria.path_scores import path_scores
from vitprune.errors import UserError
from vitprune.files import write_json, write_text
from vitprune.progress import Reporter
from vitprune.recipe import Paper, Recipe, dump
from vitprune.types import Attribution, FfnSite

FACTORS = {"removal": 0.0, "enhancement": 2.0}


def paths_of(
    name: str, model: nn.Module, sites: Sequence[FfnSite], images: Tensor, labels: Tensor, how: Attribution
) -> Tensor:
    """Each image's path by one criterion, one unit per block: [B, L, 1]."""
    score = CRITERIA[name].score if name in CRITERIA else None
    if score is None:
        raise UserError(f"paper: criterion `{name}` scores no single image, it has no path")
    blocks = score(model, sites, images, labels, ts=[1], how=how)[1]
    return torch.stack([block.argmax(1, keepdim=True) for block in blocks], 1)


@torch.no_grad()
def intervened(model: nn.Module, sites: Sequence[FfnSite], images: Tensor, units_BLt: Tensor, factor: float) -> Tensor:
    """Logits [B, C] when the path's units of the class token are multiplied by `factor` after the activation."""

    def edit(position: int, hidden_BTN: Tensor) -> Tensor:
        scale = torch.ones_like(hidden_BTN[:, 0]).scatter(1, units_BLt[:, position], factor)
        return torch.cat([(hidden_BTN[:, 0] * scale)[:, None], hidden_BTN[:, 1:]], 1)

    with hooks.hidden_units(model, sites, edit):
        return model(images)


def table(context: Context, spec: Paper) -> dict[str, Any]:
    """Every method on the same test images."""
    model, sites, how = context.loaded.model, context.sites, context.recipe.criterion.attribution()
    models.require_class_token(model, "paper")
    index = evaluation.test_indices(context.images, context.split, np.array(context.every_target()))
    if spec.images_per_class:
        index = data.first_per_class(index, context.source.class_of, spec.images_per_class)
    size = context.images_per_batch(how.nodes + 2)
    found: dict[str, dict[str, list[np.ndarray]]] = {name: {} for name in spec.criteria}
    clean: dict[str, list[np.ndarray]] = {}
    batches = context.images.batches(index, size)
    for x, y in context.reporter.track(batches, "paths and interventions", len(index), size):
        x, y = x.to(context.device), y.to(context.device)
        with torch.no_grad():
            _add(clean, "before", model(x), y)
        for name in spec.criteria:
            units = paths_of(name, model, sites, x, y, how)
            jas = path_scores(model, sites, x, y, units, how).jas
            found[name].setdefault("jas", []).append(jas.cpu().numpy())
            for kind, factor in FACTORS.items():
                _add(found[name], kind, intervened(model, sites, x, units, factor), y)
    hit, p = (np.concatenate(clean[key]) for key in ("before hit", "before p"))
    rows = [_row(name, {k: np.concatenate(v) for k, v in of.items()}, hit, p) for name, of in found.items()]
    return {"top1": float(hit.mean()), "mean_true_probability": float(p.mean()), "n": len(hit), "rows": rows}


def _add(store: dict[str, list[np.ndarray]], kind: str, logits: Tensor, labels: Tensor) -> None:
    p = logits.double().softmax(-1).gather(1, labels[:, None])[:, 0]
    store.setdefault(f"{kind} hit", []).append((logits.argmax(1) == labels).cpu().numpy())
    store.setdefault(f"{kind} p", []).append(p.cpu().numpy())


def _row(name: str, found: dict[str, np.ndarray], hit: np.ndarray, p: np.ndarray) -> dict[str, Any]:
    row: dict[str, Any] = {"criterion": name, "jas": float(found["jas"].mean())}
    for kind in FACTORS:
        changed = found[f"{kind} p"]
        deviation = (changed - p) / np.maximum(p, np.finfo(np.float64).tiny)
        quartiles = np.percentile(deviation, [25, 50, 75])
        row[kind] = {
            "accuracy_deviation_points": 100 * float(found[f"{kind} hit"].mean() - hit.mean()),
            "mean_probability_deviation_points": 100 * float(changed.mean() - p.mean()),
            "probability_deviation_mean": float(deviation.mean()),
            "probability_deviation_median": float(quartiles[1]),
            "probability_deviation_quartiles": [float(quartiles[0]), float(quartiles[2])],
        }
    return row


def run(recipe: Recipe, *, device: str = "auto", reporter: Reporter | None = None) -> dict[str, Any]:
    """Run a recipe's `paper` section; writes paper-<table>.{json,md} and returns the first."""
    parallel.one_process("paper")
    if recipe.paper is None:
        raise UserError("paper: the recipe has no `paper` section; see recipes/paper/table1.yaml")
    which = recipe.paper.table
    part = recipe.model_copy(update={"baselines": [], "compare": None})
    with Context.open(part, device, reporter or Reporter(quiet=True)) as context:
        pipeline.advance(context, "discover" if which == "figure-6" else "split")
        started = time.monotonic()
        record = {"table": which, "name": recipe.name, "model": _model_name(recipe), "seed": recipe.split.seed}
        record |= grid.grid(context, recipe.paper) if which == "figure-6" else table(context, recipe.paper)
        record |= {"seconds": round(time.monotonic() - started, 1)}
        record |= {"settings": recipe.criterion.model_dump(mode="json"), "recipe_yaml": dump(recipe)}
        root = context.folder.root
        write_json(root / f"paper-{which}.json", record)
        write_text(root / f"paper-{which}.md", show(record))
    return record


def show(record: dict[str, Any]) -> str:
    """The table in plain text."""
    return grid.markdown(record) if record["table"] == "figure-6" else markdown(record)


def _model_name(recipe: Recipe) -> str:
    name = recipe.model.name
    return Path(name.removeprefix("local-dir:")).name if name.startswith("local-dir:") else name


def markdown(record: dict[str, Any]) -> str:
    """The table in plain text, with a sentence on whether the paper's order repeats."""
    lines = [
        f"# Table 1 on `{record['model']}`: each test image's own path, one unit per block",
        "",
        f"{record['n']} test images, top-1 {100 * record['top1']:.2f} % before; the gradient methods know the true label. "
        "Accuracy deviation: top-1 after minus before, in points; in brackets the same of the mean probability of the true "
        "class, which the authors' code calls accuracy. Probability deviation: (p̃ − p) / p per image.",
        "",
        "| method | JAS | removal: accuracy | enhancement: accuracy | removal: p, median | enhancement: p, median |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for row in record["rows"]:
        cells = [row["criterion"], f"{row['jas']:.4f}"]
        for kind in FACTORS:
            d = row[kind]
            cells.append(f"{d['accuracy_deviation_points']:+.2f} ({d['mean_probability_deviation_points']:+.2f})")
        cells += [f"{100 * row[kind]['probability_deviation_median']:+.2f} %" for kind in FACTORS]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])
