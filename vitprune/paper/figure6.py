"""The paper's Table 1 and Figure 3: what the path of each image is worth, by three measures and for every method.

For every test image its own path, one unit per block (Wang et al., ICLR 2025, 4.1 and 4.2, App. C.4 and C.5):

    JAS                    the joint attribution score of the path, whoever chose it (Eq. 3)
    removal, enhancement   the path's units × 0 and × 2 at the class token, after the activation
    accuracy deviation     accuracy after minus accuracy before, over all images, in points
    probability deviation  (p̃ − p) / p of the true class, per image; mean, median, quartiles and histogram over images

The methods that use a gradient are told the true label, as in the paper: this says what a path carries, it is no
accuracy that could be deployed. What the authors' code calls accuracy is the mean probability of the true class; its
change stands beside the real one. With `units: frequency` or `mode-per-rank` the path is not the image's own but that of
its true class, from the probe split. Legend: B images, L blocks, N hidden units, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from vitprune.core.errors import UserError
from vitprune.criteria.attribution.path_scores import path_scores
from vitprune.criteria.catalog import CRITERIA
from vitprune.model import tokens
from vitprune.model.inside import hooks
from vitprune.model.sites.ffn import FfnSite
from vitprune.paper.protocol import Rule, Source, class_paths, tested
from vitprune.recipe.criterion import CriterionName
from vitprune.recipe.experiments import Paper
from vitprune.recipe.recipe import Recipe
from vitprune.runs.state import lengths
from vitprune.runs.state.run import Run

FACTORS = {"removal": 0.0, "enhancement": 2.0}
PATH_OF = {"image": "the image", "frequency": "the class, most frequent", "mode-per-rank": "the class, mode per rank"}
LINEAR = 1e-3  # the histogram's bins are even in asinh(deviation / LINEAR): linear around 0, logarithmic beyond
EDGES = np.linspace(np.arcsinh(-1 / LINEAR), np.arcsinh(10 / LINEAR), 71)


def paths_of(name: str, model: nn.Module, sites: Sequence[FfnSite], images: Tensor, labels: Tensor, how: Any) -> Tensor:
    """Each image's path by one criterion, one unit per block: [B, L, 1]."""
    score = CRITERIA[name].score
    assert score is not None
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


def check(run: Run, spec: Paper) -> None:
    """Raises UserError for a model without a class token to edit, or a criterion without paths."""
    tokens.require_class_token(run.loaded.model, "paper")
    for name in spec.criteria:
        if name not in CRITERIA or CRITERIA[name].score is None:
            raise UserError(f"paper: criterion `{name}` scores no single image, it has no path")
        if set(spec.rules) != {"image"} and CRITERIA[name].ranks_by != "frequency":
            raise UserError(f"paper: criterion `{name}` ranks by its mean score, its classes have no path")


def table(run: Run, spec: Paper) -> dict[str, Any]:
    """Every method on the same test images."""
    model, sites, how = run.loaded.model, run.sites, run.recipe.criterion.how
    index, size = tested(run, spec), run.batching.images_per_batch(how("jas").nodes + 2)
    jobs = [(name, rule) for name in spec.criteria for rule in spec.rules]
    of_class = {job: _of_class(run, *job) for job in jobs if job[1] != "image"}
    found: dict[tuple[str, Rule], dict[str, list[np.ndarray]]] = {job: {} for job in jobs}
    clean: dict[str, list[np.ndarray]] = {}
    batches = run.images.batches(index, size)
    for x, y in run.reporter.track(batches, "paths and interventions", len(index), size):
        x, y = x.to(run.device), y.to(run.device)
        with torch.no_grad():
            _add(clean, "before", model(x), y)
        for job, of in found.items():
            units = of_class[job][y] if job in of_class else paths_of(job[0], model, sites, x, y, how(job[0]))
            of.setdefault("jas", []).append(path_scores(model, sites, x, y, units, how("jas")).jas.cpu().numpy())
            for kind, factor in FACTORS.items():
                _add(of, kind, intervened(model, sites, x, units, factor), y)
    hit, p = (np.concatenate(clean[key]) for key in ("before hit", "before p"))
    rows = [_row(*job, {k: np.concatenate(v) for k, v in of.items()}, hit, p) for job, of in found.items()]
    edges = [round(float(LINEAR * np.sinh(edge)), 9) for edge in EDGES]
    about = {"top1": float(hit.mean()), "mean_true_probability": float(p.mean()), "n": len(hit)}
    return {**about, "deviation_edges": edges, "rows": rows}


def _of_class(run: Run, name: str, rule: Rule) -> Tensor:
    """Every class's path, one unit per block, from the discovery on the probe split: [C, L, 1]."""
    c = run.recipe.criterion
    source = Source(name, lengths.of(run, name, run.recipe.keep), c.how(name), c.images_per_class(name), rule)
    return class_paths(run, source)[:, :, None].to(run.device)


def probe_criteria(recipe: Recipe) -> list[CriterionName]:
    """What has to be discovered on the probe split first: every criterion, where class paths are asked for."""
    spec = recipe.paper
    return list(spec.criteria) if spec and spec.table == "table-1" and set(spec.rules) != {"image"} else []


def _add(store: dict[str, list[np.ndarray]], kind: str, logits: Tensor, labels: Tensor) -> None:
    p = logits.double().softmax(-1).gather(1, labels[:, None])[:, 0]
    store.setdefault(f"{kind} hit", []).append((logits.argmax(1) == labels).cpu().numpy())
    store.setdefault(f"{kind} p", []).append(p.cpu().numpy())


def _row(name: str, rule: Rule, found: dict[str, np.ndarray], hit: np.ndarray, p: np.ndarray) -> dict[str, Any]:
    row: dict[str, Any] = {"criterion": name, "units": rule, "jas": float(found["jas"].mean())}
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
            "probability_deviation_counts": histogram(deviation).tolist(),
        }
    return row


def histogram(deviation: np.ndarray) -> np.ndarray:
    """How many images lie between the edges, those beyond the last one in the last bin: int [70]."""
    return np.histogram(np.arcsinh(deviation / LINEAR).clip(EDGES[0], EDGES[-1]), EDGES)[0]


def markdown(record: dict[str, Any]) -> str:
    """The table in plain text."""
    lines = [
        f"# Table 1 and Figure 3 on `{record['model']}`: paths of one unit per block, removed and enhanced",
        "",
        f"{record['n']} test images, top-1 {100 * record['top1']:.2f} % before; the gradient methods know the true label. "
        "Accuracy deviation: top-1 after minus before, in points; in brackets the same of the mean probability of the true "
        "class, which the authors' code calls accuracy. Probability deviation: (p̃ − p) / p per image.",
        "",
        "| method | path of | JAS | removal: accuracy | enhancement: accuracy | removal: p, median | enhancement: p, median |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for row in record["rows"]:
        cells = [row["criterion"], PATH_OF[row["units"]], f"{row['jas']:.4f}"]
        for kind in FACTORS:
            d = row[kind]
            cells.append(f"{d['accuracy_deviation_points']:+.2f} ({d['mean_probability_deviation_points']:+.2f})")
        cells += [f"{100 * row[kind]['probability_deviation_median']:+.2f} %" for kind in FACTORS]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def figure(record: dict[str, Any]) -> Figure:
    """Figure 3: how the deviations of each method are distributed, with quartiles, median and mean; symmetric about a line."""
    drawn, rows = Figure(figsize=(9, 1.2 + 0.7 * len(record["rows"])), layout="constrained"), record["rows"]
    ticks = [-1, -0.1, -0.01, 0, 0.01, 0.1, 1, 10]
    for axes, kind in zip(drawn.subplots(1, 2, sharey=True), FACTORS, strict=True):
        for y, row in enumerate(rows):
            d = row[kind]
            counts = np.array([*d["probability_deviation_counts"], 0])
            height = 0.45 * counts / counts.max()
            axes.fill_between(EDGES, y - height, y + height, step="post", color=f"C{y % 10}", alpha=0.5, lw=0)
            low, high = np.arcsinh(np.array(d["probability_deviation_quartiles"]) / LINEAR)
            axes.plot([low, high], [y, y], color="0.2", lw=3)
            for value, marker in ((d["probability_deviation_median"], "|"), (d["probability_deviation_mean"], "x")):
                axes.plot([np.arcsinh(value / LINEAR)], [y], marker, color="black", ms=9)
        axes.axvline(0, color="0.6", lw=0.8)
        axes.set_xticks(np.arcsinh(np.array(ticks) / LINEAR), [f"{100 * tick:g}" for tick in ticks], fontsize=8)
        axes.set_yticks(range(len(rows)), [_label(row, rows) for row in rows])
        axes.set(title=kind, xlabel="deviation of the true class's probability, %", ylim=(len(rows) - 0.4, -0.6))
    drawn.suptitle("| median   x mean   bar: quartiles", fontsize=8)
    return drawn


def _label(row: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    several = len({r["units"] for r in rows}) > 1
    return row["criterion"] + (f"\n{PATH_OF[row['units']]}" if several else "")
