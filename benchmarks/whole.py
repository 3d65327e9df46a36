"""The whole model in one budget: KL from dense, top-1 and speed at shares of the multiply-adds, beside FFN units alone.

    python benchmarks/whole.py [--model DIR] [--data DIR] [--quick] [--work DIR] [--latency 0.4]

Every seed is a split of its own; costs and repairs are worked out on the probe split without labels, the test split is read
once per model. FFN units alone have null where they cannot get there. Multiply-adds are those of the exported file over the
dense model's without the shortcut of the last block, the checkpoint's beside them. The speed is that of the first seed's files
in ONNX Runtime, batch 32, dense and slim in turn. --quick: one seed, x0.5, x0.25 and x0.1. --latency: nothing of this, but a
run with that share of the dense model's time as its budget, and what its files take afterwards. The last line is one JSON
object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import log_softmax

from vitprune.core.errors import UserError
from vitprune.core.progress import Reporter
from vitprune.core.reading import read_json
from vitprune.deploy import runtime
from vitprune.deploy.onnx import exporting
from vitprune.exam.logits import predictor, test_logits
from vitprune.exam.metrics import mcnemar
from vitprune.model import size
from vitprune.model.inside import first_token
from vitprune.pruning.whole import allocation
from vitprune.pruning.whole.pricing import Macs
from vitprune.recipe.recipe import Recipe
from vitprune.runs import pipeline
from vitprune.runs.results import attention
from vitprune.runs.stages import score
from vitprune.runs.stages.prune import slimmed
from vitprune.runs.state.run import Run

BUDGETS, QUICK = (0.5, 0.4, 0.25, 0.2, 0.1), (0.5, 0.25, 0.1)
BATCH = 32
Found = dict[str, Any]


def recipe_for(args: argparse.Namespace, seed: int, **changed: Any) -> Recipe:
    made: dict[str, Any] = {
        "name": f"seed-{seed}",
        "out": str(args.work),
        "split": {"seed": seed},
        "criterion": {"name": "fisher-obs", "probe_per_class": args.probe},
        "budget": {"macs": 0.5},
        "baselines": [],
        "refit_images": args.refit,
    }
    if args.model:
        made["model"] = {"name": f"local-dir:{args.model}"}
    if args.data:
        made["data"] = {"path": str(args.data)}
    return Recipe.model_validate(made | changed)


def timed(args: argparse.Namespace, reporter: Reporter) -> Found:
    """What the files of a run whose budget is a share of the dense model's time take afterwards, timed anew."""
    recipe = recipe_for(args, args.seeds[0], name="latency", budget={"latency": args.latency})
    started = time.monotonic()
    pipeline.run(recipe, "prune", reporter=reporter)
    seconds = time.monotonic() - started
    pipeline.run(recipe, "export", reporter=reporter)
    folder = args.work / recipe.name
    row = next(r for r in read_json(folder / "stages" / "export" / "all.json")["latency"] if r["batch"] == BATCH)
    table = read_json(folder / "stages" / "latency" / "table.json")
    kept = {key: row[key] for key in ("dense_ms", "slim_ms", "ratio_quartiles", "rounds", "notes", "other_cores")}
    tried = list(table["ratios"].values())
    return {"asked": args.latency, "measured": row["ratio"], **kept, "tried": tried, "seconds": seconds}


def kl(dense: np.ndarray, slim: np.ndarray) -> float:
    """Mean over the images of KL(dense ‖ slim), nats."""
    p, q = log_softmax(dense, 1), log_softmax(slim, 1)
    return float((np.exp(p) * (p - q)).sum(1).mean())


def examined(run: Run, model: Any, targets: list[int]) -> tuple[np.ndarray, np.ndarray]:
    return test_logits(predictor(model), run.images, run.split, run.batching.batch, np.array(targets))


def one_seed(args: argparse.Namespace, seed: int, reporter: Reporter) -> Found:
    """Budget → figures of one split, `dense_top1` beside them."""
    with Run.open(recipe_for(args, seed), "auto", reporter) as run:
        pipeline.advance(run, "moments")
        dense, targets = run.loaded.model, run.classes.every()
        scores, curves = score.scores_of(run, "fisher-obs", run.recipe.criterion.seed), attention.of_file(run, None)
        before, labels = examined(run, dense, targets)
        hit = before.argmax(1) == labels
        found: Found = {"dense_top1": float(hit.mean())}
        files: dict[str, Path] = {}
        total = size.macs(dense), size.parameters(dense)
        for budget in reporter.track(args.budgets, f"budgets, seed {seed}", len(args.budgets)):
            row: Found = {}
            for name, used in (("", curves), ("ffn_only_", [])):
                try:
                    plan = allocation.plan(dense, scores, used, budget, Macs(dense, shortcut=True), targets)
                except UserError:  # FFN units alone do not get there
                    row |= {f"{name}top1": None, f"{name}kl": None}
                    continue
                slim = slimmed(run, plan, run.recovery, None, targets)
                after, _ = examined(run, slim, targets)
                right = after.argmax(1) == labels
                row |= {f"{name}top1": float(right.mean()), f"{name}kl": kl(before, after)}
                if name:
                    continue
                row["loss_points"] = 100 * float(hit.mean() - right.mean())
                row["loss_points_ci95"] = _interval(hit, right)
                row["mcnemar_p"] = mcnemar(hit, right)
                row["macs_ratio"] = size.macs(slim, shortened(slim)) / total[0]
                row["macs_ratio_checkpoint"] = size.macs(slim) / total[0]
                row["params_ratio"] = size.parameters(slim) / total[1]
                if seed == args.seeds[0]:
                    files[f"{budget:g}"] = run.folder.root / f"macs-{budget:g}.onnx"
                    exporting.export(first_token.of(slim) if shortened(slim) else slim, files[f"{budget:g}"], {})
            found[f"{budget:g}"] = row
        if files:
            found["speedup_batch32"] = _speed(run, files)
        return found


def _interval(dense: np.ndarray, slim: np.ndarray) -> list[float]:
    """95 % interval of the paired loss in points, by the normal approximation."""
    difference = dense.astype(float) - slim
    half = 1.96 * difference.std() / len(difference) ** 0.5
    return [100 * (difference.mean() - half), 100 * (difference.mean() + half)]


def shortened(model: Any) -> bool:
    """Whether the exported file's last block is there for the class token alone."""
    return first_token.why_not(model) is None


def _speed(run: Run, files: dict[str, Path]) -> dict[str, float]:
    """Times faster than the dense file without the shortcut, on real images; `dense_shortcut` is the dense file with it."""
    dense, model = run.folder.root / "dense.onnx", run.loaded.model
    exporting.export(model, dense, {})
    if shortened(model):
        files = {**files, "dense_shortcut": run.folder.root / "dense-shortcut.onnx"}
        exporting.export(first_token.of(model), files["dense_shortcut"], {})
    x, _ = next(run.images.batches(run.split.probe[:BATCH], BATCH))
    runners = {name: runtime.session(path) for name, path in {"dense": dense, **files}.items()}
    timed = runtime.interleaved(runners, x.numpy())
    return {name: 1 / timed[name]["relative"] for name in files}


def mean(rows: list[Found], key: str) -> Any:
    values = [row[key] for row in rows]
    return None if None in values else statistics.mean(values)


def combined(made: list[Found]) -> Found:
    """What one run over the seeds of several would have said; the speed is that of the first."""
    seeds = [len(one["seeds"]) for one in made]

    def over_all(values: list[Any]) -> Any:
        weighted = [value * n for value, n in zip(values, seeds, strict=True)] if None not in values else None
        return None if weighted is None else sum(weighted) / sum(seeds)

    budgets: Found = {}
    for budget, first in made[0]["budgets"].items():
        rows = [one["budgets"][budget] for one in made]
        of = {key: over_all([row[key] for row in rows]) for key in first if key not in ("loss_points_ci95", "kl_sd")}
        of["loss_points_ci95"] = [interval for row in rows for interval in row["loss_points_ci95"]]
        alone = all(n == 1 for n in seeds) and len(rows) > 1
        budgets[budget] = of | {"kl_sd": statistics.stdev([row["kl"] for row in rows]) if alone else None}
    return made[0] | {
        "seeds": [seed for one in made for seed in one["seeds"]],
        "dense_top1": over_all([one["dense_top1"] for one in made]),
        "budgets": budgets,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--model", type=Path, help="a timm folder; without it the bundled model")
    parser.add_argument("--data", type=Path, help="a folder of images per class; without it the bundled images")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--work", type=Path, default=Path("runs/whole"))
    parser.add_argument(
        "--probe", type=int, default=400, help="probe images per class that the costs are worked out on"
    )
    parser.add_argument("--refit", type=int, default=4000, help="probe images of the repair")
    parser.add_argument("--seeds", type=int, nargs="*")
    parser.add_argument(
        "--latency", type=float, help="a share of the dense model's time: run with it, and time the files"
    )
    parser.add_argument("--json", type=Path, help="write the last line there too")
    parser.add_argument(
        "--combine", type=Path, nargs="+", help="files of --json, of other seeds each: their mean, no run"
    )
    args = parser.parse_args()
    if args.combine:
        show(args, combined([json.loads(path.read_text()) for path in args.combine]))
        return
    args.budgets = QUICK if args.quick else BUDGETS
    args.seeds = args.seeds or ([0] if args.quick else [0, 1, 2])
    reporter = Reporter()
    if args.latency:
        show(args, {"model": str(args.model.name) if args.model else "bundled", "latency": timed(args, reporter)})
        return
    found = [one_seed(args, seed, reporter) for seed in args.seeds]
    budgets: Found = {}
    for budget in (f"{b:g}" for b in args.budgets):
        rows = [one[budget] for one in found]
        of = {key: mean(rows, key) for key in rows[0] if key not in ("loss_points_ci95", "mcnemar_p")}
        of["loss_points_ci95"] = [row["loss_points_ci95"] for row in rows]
        of["kl_sd"] = statistics.stdev([row["kl"] for row in rows]) if len(rows) > 1 else None
        budgets[budget] = of
        alone = "-" if of["ffn_only_kl"] is None else f"{of['ffn_only_kl']:.4f}"
        print(
            f"x{budget}: KL {of['kl']:.4f}, loss {of['loss_points']:.2f} points; FFN alone KL {alone}", file=sys.stderr
        )
    made = {
        "model": str(args.model.name) if args.model else "bundled",
        "seeds": args.seeds,
        "dense_top1": statistics.mean(one["dense_top1"] for one in found),
        "budgets": budgets,
        "speedup_batch32": found[0]["speedup_batch32"],
    }
    show(args, made)


def show(args: argparse.Namespace, made: Found) -> None:
    if args.json:
        args.json.write_text(json.dumps(made, indent=1) + "\n")
    print(json.dumps(made))


if __name__ == "__main__":
    main()
