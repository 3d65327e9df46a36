"""Criteria × budgets × repairs × seeds of the split, on one model: one table, one plot, and a test of what is better.

Every seed is a split of its own with its own discovery; every cell is examined on that seed's test split and kept as a
file, so that an interrupted comparison goes on where it was. Nothing is chosen by the figures: a table, not a search.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest

from vitprune import evaluation, masks, pipeline, surgery
from vitprune.context import Context
from vitprune.criteria import CRITERIA
from vitprune.errors import UserError
from vitprune.files import digest, read_json, write_json, write_text
from vitprune.progress import Reporter
from vitprune.recipe import Compare, Recipe, dump
from vitprune.recovery import repair
from vitprune.stages import CODE, discover, moments

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Cell:
    """One pruned model: what it is, apart from the seed."""

    criterion: str
    keep: int | float
    recovery: str

    def name(self, seed: int) -> str:
        kind = "n" if isinstance(self.keep, int) else "r"
        return f"{self.criterion}-{kind}{self.keep:g}-{self.recovery}-s{seed}.json"


def cells(spec: Compare) -> list[Cell]:
    """Every cell of the table, in the order of the recipe."""
    return [Cell(c, k, r) for k in spec.keep for r in spec.recovery for c in spec.criteria]


def compare(
    recipe: Recipe, *, device: str = "auto", force: bool = False, reporter: Reporter | None = None, workers: int = 1
) -> dict[str, Any]:
    """Run or continue the comparison of a recipe's `compare` section; writes compare.{json,md,svg} and returns the first.

    Raises UserError for everything the user can mend.
    """
    spec, reporter = recipe.compare or Compare(), reporter or Reporter(quiet=True)
    if recipe.groups is not None:
        raise UserError("compare: one class set at a time; use `classes`, or one recipe per group")
    root = recipe.out / recipe.name / "compare"
    found: dict[int, dict[Cell | None, dict[str, Any]]] = {}
    costs: list[dict[str, Any]] = []
    for seed in spec.seeds:
        part = recipe.model_copy(
            update={
                "name": f"seed-{seed}",
                "out": root,
                "split": recipe.split.model_copy(update={"seed": seed}),
                "baselines": list(spec.criteria),
                "recovery": next((r for r in spec.recovery if r != "none"), "none"),
                "paper_protocol": None,
                "compare": None,
            }
        )
        with Context.open(part, device, reporter, workers) as context:
            for budget in spec.keep:
                for site in context.sites:
                    masks.width(budget, site.width, recipe.round_to)
            inputs, _ = pipeline.advance(context, "moments", force)
            key = digest(CODE, SCHEMA, inputs, recipe.allocation, recipe.round_to)
            found[seed] = _of_seed(context, spec, seed, key, force)
            costs += [{"seed": seed, **cost} for cost in discover.notes_of(context)]
    record = {
        "schema": SCHEMA,
        "name": recipe.name,
        "model": recipe.model.name,
        "classes": recipe.classes,
        "allocation": recipe.allocation,
        "seeds": list(spec.seeds),
        "dense": _summary([found[s][None] for s in spec.seeds]),
        "rows": [_row(cell, spec, found) for cell in cells(spec)],
        "costs": _costs(costs),
        "recipe_yaml": dump(recipe),
    }
    return _write(record, recipe.out / recipe.name)


def _of_seed(context: Context, spec: Compare, seed: int, key: str, force: bool) -> dict[Cell | None, dict[str, Any]]:
    """Every cell of one seed: read where it is there of the same inputs, else pruned and examined. None: dense."""
    folder = context.folder.root / "cells"
    jobs: list[Cell | None] = [None, *cells(spec)]
    found: dict[Cell | None, dict[str, Any]] = {}
    for job in context.reporter.track(jobs, f"compare, seed {seed}", len(jobs)):
        path = folder / (job.name(seed) if job else f"dense-s{seed}.json")
        known = None if force else _read(path, key)
        if known is None:
            known = {"key": key, **_examine(context, job, seed)}
            write_json(path, known)
        found[job] = known
    return found


def _read(path: Path, key: str) -> dict[str, Any] | None:
    try:
        content = read_json(path)
    except (UserError, OSError):
        return None
    return content if isinstance(content, dict) and content.get("key") == key and "hits" in content else None


def _examine(context: Context, job: Cell | None, seed: int) -> dict[str, Any]:
    targets = context.every_target()
    model, kept = context.loaded.model, 1.0
    if job:
        scores = discover.scores_of(context, job.criterion, seed)
        r = context.recipe
        mask = masks.build(scores, job.keep, classes=targets, round_to=r.round_to, allocation=r.allocation)
        model, kept = surgery.slim(context.loaded.model, mask), mask.kept
        if job.recovery != "none":
            repair(model, context.loaded.model, mask, moments.from_file(context, None), job.recovery)  # type: ignore[arg-type]
    predict = evaluation.predictor(model)
    logits, labels = evaluation.test_logits(predict, context.images, context.split, context.batch, np.array(targets))
    result = evaluation.metrics(logits, labels)
    hits = logits.argmax(1) == labels
    return {
        "top1": result.top1,
        "mean_true_probability": result.mean_true_probability,
        "kept": kept,
        "params": evaluation.parameters(model),
        "macs": evaluation.macs(model),
        "n": result.n,
        "hits": np.packbits(hits).tobytes().hex(),
    }


def hits_of(cell: dict[str, Any]) -> np.ndarray:
    """Which test images the cell's model got right, bool [n]."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(cell["hits"]), np.uint8))[: cell["n"]].astype(bool)


def mcnemar(one: np.ndarray, other: np.ndarray) -> float:
    """Exact two-sided McNemar test: the p-value of as lopsided a split of the images that only one of the two got right."""
    only, not_only = int((one & ~other).sum()), int((other & ~one).sum())
    return 1.0 if only + not_only == 0 else float(binomtest(only, only + not_only).pvalue)


def _summary(of_seeds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    top1 = [cell["top1"] for cell in of_seeds]
    return {
        "top1": statistics.fmean(top1),
        "top1_sd": statistics.stdev(top1) if len(top1) > 1 else None,
        "top1_of_seeds": top1,
        "mean_true_probability": statistics.fmean(cell["mean_true_probability"] for cell in of_seeds),
        "kept": statistics.fmean(cell["kept"] for cell in of_seeds),
        "params": round(statistics.fmean(cell["params"] for cell in of_seeds)),
        "macs": round(statistics.fmean(cell["macs"] for cell in of_seeds)),
        "n": [cell["n"] for cell in of_seeds],
    }


def _row(cell: Cell, spec: Compare, found: dict[int, dict[Cell | None, dict[str, Any]]]) -> dict[str, Any]:
    mine = [found[s][cell] for s in spec.seeds]
    dense = [found[s][None] for s in spec.seeds]
    losses = [100 * (d["top1"] - m["top1"]) for m, d in zip(mine, dense, strict=True)]
    others = [Cell(c, cell.keep, cell.recovery) for c in spec.criteria if c != cell.criterion]
    best = max(others, key=lambda o: statistics.fmean(found[s][o]["top1"] for s in spec.seeds))
    p = [mcnemar(hits_of(found[s][cell]), hits_of(found[s][best])) for s in spec.seeds]
    return {
        "criterion": cell.criterion,
        "keep": cell.keep,
        "recovery": cell.recovery,
        **_summary(mine),
        "loss_points": statistics.fmean(losses),
        "loss_points_sd": statistics.stdev(losses) if len(losses) > 1 else None,
        "best_other": best.criterion,
        "ahead_points": 100 * statistics.fmean(found[s][cell]["top1"] - found[s][best]["top1"] for s in spec.seeds),
        "mcnemar_p": max(p),
        "mcnemar_p_of_seeds": p,
    }


def _costs(costs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean seconds and largest memory of every criterion's discovery, and what it needs."""
    rows = []
    for name in dict.fromkeys(cost["settings"]["criterion"] for cost in costs):
        own = [cost for cost in costs if cost["settings"]["criterion"] == name]
        peaks = [cost["peak_memory_mb"] for cost in own if cost.get("peak_memory_mb") is not None]
        rows.append(
            {
                "criterion": name,
                "needs": list(CRITERIA[name].needs),
                "source": CRITERIA[name].source,
                "images": own[0]["images"],
                "seconds": statistics.fmean(cost["seconds"] for cost in own),
                "peak_memory_mb": max(peaks) if peaks else None,
            }
        )
    return rows


def _write(record: dict[str, Any], root: Path) -> dict[str, Any]:
    record = {"created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **record}
    write_json(root / "compare.json", record)
    write_text(root / "compare.md", markdown(record))
    write_text(root / "compare.svg", plot(record))
    return record


def markdown(record: dict[str, Any]) -> str:
    """The table in plain text."""
    dense, seeds = record["dense"], record["seeds"]
    lines = [
        f"# {record['name']}: criteria compared",
        "",
        f"Dense: {_percent(dense)} top-1. Test split of {len(seeds)} seed(s) of the split ({', '.join(map(str, seeds))}), "
        f"mean ± standard deviation; {record['allocation']} allocation. *p*: exact McNemar test on the same images against "
        "the best other criterion of the same budget and repair, the largest over the seeds; not corrected for the number "
        "of comparisons.",
        "",
        "| keep | recovery | criterion | top-1 % | loss, points | against the best other, points | p |",
        "|---:|---|---|---:|---:|---:|---:|",
    ]
    for row in sorted(record["rows"], key=lambda r: (-r["kept"], r["recovery"], -r["top1"])):
        sd = "" if row["loss_points_sd"] is None else f" ± {row['loss_points_sd']:.2f}"
        lines.append(
            f"| {row['keep']:g} | {row['recovery']} | {row['criterion']} | {_percent(row)} | {row['loss_points']:.2f}{sd} "
            f"| {row['ahead_points']:+.2f} ({row['best_other']}) | {row['mcnemar_p']:.2g} |"
        )
    lines += [
        "",
        "| criterion | needs | probe images | seconds | peak memory | source |",
        "|---|---|---:|---:|---:|---|",
    ]
    for cost in record["costs"]:
        peak = "" if cost["peak_memory_mb"] is None else f"{cost['peak_memory_mb']:.0f} MB"
        lines.append(
            f"| {cost['criterion']} | {', '.join(cost['needs']) or 'weights'} | {cost['images']} | {cost['seconds']:.2f} "
            f"| {peak} | {cost['source']} |"
        )
    return "\n".join([*lines, ""])


def _percent(row: dict[str, Any]) -> str:
    sd = "" if row["top1_sd"] is None else f" ± {100 * row['top1_sd']:.2f}"
    return f"{100 * row['top1']:.2f}{sd}"


def plot(record: dict[str, Any]) -> str:
    """Top-1 against the share kept, one curve per criterion, one panel per repair, the dense line; SVG."""
    from io import StringIO

    import matplotlib
    from matplotlib.figure import Figure

    recoveries = list(dict.fromkeys(row["recovery"] for row in record["rows"]))
    criteria = list(dict.fromkeys(row["criterion"] for row in record["rows"]))
    with matplotlib.rc_context({"svg.hashsalt": "vitprune", "font.size": 9}):
        figure = Figure(figsize=(5.2 * len(recoveries), 4.2), layout="constrained")
        axes = figure.subplots(1, len(recoveries), sharey=True, squeeze=False)[0]
        colours = matplotlib.colormaps["tab20"].colors  # type: ignore[attr-defined]
        for axis, recovery in zip(axes, recoveries, strict=True):
            axis.axhline(100 * record["dense"]["top1"], color="0.4", ls="--", lw=1, label="dense")
            for k, name in enumerate(criteria):
                own = sorted(
                    (r for r in record["rows"] if (r["recovery"], r["criterion"]) == (recovery, name)),
                    key=lambda r: r["kept"],
                )
                error = [100 * (r["top1_sd"] or 0.0) for r in own]
                x, y = [100 * r["kept"] for r in own], [100 * r["top1"] for r in own]
                axis.errorbar(x, y, error, label=name, color=colours[k % 20], marker="o", ms=3, lw=1, capsize=2)
            axis.set(title=f"recovery: {recovery}", xlabel="hidden units kept, % (log scale)", xscale="log")
            ticks = sorted({100 * r["kept"] for r in record["rows"]})
            axis.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks])
            axis.minorticks_off()
        axes[0].set_ylabel("top-1 on the test split, %")
        axes[-1].legend(fontsize=7, loc="lower right")
        out = StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
    assert math.isfinite(record["dense"]["top1"])
    return out.getvalue()
