"""How much accuracy a budget of hidden units costs: the tool's default against the baselines, and class specialists.

    python benchmarks/budget.py [--quick] [--model DIR] [--no-specialists] [--work DIR]

The default is criterion fisher-obs, one threshold across blocks, layerwise repair: no labels, no training. Baselines at
the same budget: variance + mean (VBP) and + affine (CORP, DVBP), and Taylor, Hessian, magnitude, activation and variance
with the default's own repair. ViT-Slim trains: its best figures are read from benchmarks/results/compare-*.json and marked
`source`. Every seed is a split of its own; the test split is read once per model. The bundled model by default:
3 seeds and 8,000 images for the repair; --quick: one seed and 5,000. --model: a timm folder. Interrupted, the same command
goes on where it was (--work). The last line is one JSON object; accuracies are fractions.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np

from vitprune.core.files import write_json
from vitprune.core.progress import Reporter
from vitprune.core.reading import digest, read_json
from vitprune.exam.logits import predictor, test_logits
from vitprune.exam.metrics import mcnemar
from vitprune.pruning.repair.names import Recovery
from vitprune.recipe.parse import parse
from vitprune.recipe.recipe import Recipe
from vitprune.runs import pipeline
from vitprune.runs.contenders import Cell, Contender, hits_of
from vitprune.runs.stages import score
from vitprune.runs.stages.prune import mask_of, slimmed
from vitprune.runs.stages.versions import CODE
from vitprune.runs.state.run import Run

OURS: tuple[str, Recovery] = ("fisher-obs", "layerwise")
BASELINES: list[tuple[str, Recovery]] = [
    ("variance", "mean"), ("variance", "affine"), ("variance", "layerwise"), ("taylor", "layerwise"),
    ("hessian", "layerwise"), ("magnitude-l2", "layerwise"), ("activation", "layerwise"),
]  # fmt: skip
GROUPS = {"footwear": ["sandal", "sneaker", "boot"], "tops": ["tshirt", "pullover", "coat", "shirt"],
          "rest": ["trouser", "dress", "bag"]}  # fmt: skip
SPECIALIST_BUDGETS = (0.05, 0.02)
RESULTS = Path(__file__).parent / "results"


def recipe_for(args: argparse.Namespace, seed: int, groups: bool) -> Recipe:
    """The recipe of one seed: all classes, or one class set per group."""
    model = f"local-dir:{args.model}" if args.model else "bundled"
    names = [OURS[0]] if groups else sorted({OURS[0], *(criterion for criterion, _ in BASELINES)})
    made = parse("name: budget\nkeep: 25%\ncriterion: {name: fisher-obs}")
    update: dict[str, Any] = {
        "name": f"{'groups' if groups else 'all'}-seed-{seed}",
        "out": args.work,
        "model": made.model.model_copy(update={"name": model}),
        "split": made.split.model_copy(update={"seed": seed}),
        "criterion": made.criterion.model_copy(update={"probe_per_class": args.probe, "t": 50}),
        "baselines": [name for name in names if name != OURS[0]],
        "groups": GROUPS if groups else None,
        "recovery": "none" if groups else "affine",  # brings the moments that mean and affine need
        "allocation": "auto",
        "refit_images": args.refit,
    }
    return made.model_copy(update=update)


def budgets_of(args: argparse.Namespace, seed: int, reporter: Reporter) -> dict[str, Any]:
    """Every row of one seed, each kept in a file: budget → method → row; `dense` beside them."""
    with Run.open(recipe_for(args, seed, False), "auto", reporter) as run:
        inputs, _ = pipeline.advance(run, "moments")
        key = digest(CODE, inputs, run.recipe.pruning())
        cells = [
            Contender.dense(seed),
            *(Contender(c, k, r, seed) for k in args.budgets for c, r in [OURS, *BASELINES]),
        ]
        found: dict[str, Any] = {}
        for cell in reporter.track(cells, f"budgets, seed {seed}", len(cells)):
            path = run.folder.root / "cells" / cell.file_name
            row = _known(path, key) or {"key": key, **Cell.of(run, cell).as_json()}
            write_json(path, row)
            if cell.is_dense:
                found["dense"] = row
            else:
                found.setdefault(f"{cell.keep:g}", {})[f"{cell.criterion}+{cell.repair}"] = row
        return found


def _known(path: Path, key: str) -> dict[str, Any] | None:
    known = read_json(path) if path.is_file() else None
    return known if isinstance(known, dict) and known.get("key") == key else None


def specialists_of(args: argparse.Namespace, seed: int, reporter: Reporter) -> dict[str, Any]:
    """Group → budget → the images of its classes that each model gets right, its head's other outputs closed."""
    found: dict[str, Any] = {}
    with (
        Run.open(recipe_for(args, seed, False), "auto", reporter) as general,
        Run.open(recipe_for(args, seed, True), "auto", reporter) as special,
    ):
        inputs, _ = pipeline.advance(general, "moments")
        more, _ = pipeline.advance(special, "moments")
        everything = general.classes.every()
        jobs = [(k, g) for k in SPECIALIST_BUDGETS for g in GROUPS]
        generic: dict[float, Any] = {}
        for keep, group in reporter.track(jobs, f"specialists, seed {seed}", len(jobs)):
            targets = special.classes.sets()[group]
            path = special.folder.root / "cells" / f"{group}-{keep:g}.json"
            row = _known(path, digest(CODE, inputs, more, keep, args.refit))
            if row is None:
                mask = mask_of(general, score.scores_of(general, OURS[0], seed), everything, keep)
                if keep not in generic:
                    generic[keep] = slimmed(general, mask, OURS[1], None, everything)  # type: ignore[arg-type]
                own = mask_of(special, score.scores_of(special, OURS[0], seed, group), targets, keep)
                models = {
                    "dense_head_mask": general.loaded.model,
                    "generic": generic[keep],
                    "generic_mask_group_refit": slimmed(special, mask, OURS[1], group, targets),  # type: ignore[arg-type]
                    "specialist": slimmed(special, own, OURS[1], group, targets),  # type: ignore[arg-type]
                }
                row = {"key": digest(CODE, inputs, more, keep, args.refit)}
                for name, model in models.items():
                    row[name] = _hits(general, model, targets)
                write_json(path, row)
            found.setdefault(group, {})[f"{keep:g}"] = row
    return found


def _hits(run: Run, model: Any, targets: list[int]) -> list[int]:
    predict = predictor(model)
    logits, labels = test_logits(predict, run.images, run.split, run.batching.batch, np.array(targets))
    closed = np.full(logits.shape, -np.inf)
    closed[:, targets] = logits[:, targets]
    return (closed.argmax(1) == labels).astype(int).tolist()


def summary(seeds: list[dict[str, Any]], slim: dict[str, tuple[float, str]]) -> dict[str, Any]:
    """Budget → means over the seeds."""
    dense = [seed["dense"]["top1"] for seed in seeds]
    made: dict[str, Any] = {}
    for keep in (k for k in seeds[0] if k != "dense"):
        methods = {name: [seed[keep][name]["top1"] for seed in seeds] for name in seeds[0][keep]}
        ours = "+".join(OURS)
        mean = {name: statistics.fmean(values) for name, values in methods.items()}
        if keep in slim:
            mean["vit-slim"] = slim[keep][0]
        best = max((name for name in mean if name != ours), key=lambda name: mean[name])
        losses = [100 * (d - t) for d, t in zip(dense, methods[ours], strict=True)]
        made[keep] = {
            "top1": mean[ours],
            "top1_of_seeds": methods[ours],
            "loss_points": statistics.fmean(losses),
            "loss_points_sd": statistics.stdev(losses) if len(losses) > 1 else None,
            "kept": statistics.fmean(seed[keep][ours]["kept"] for seed in seeds),
            "best_baseline": best,
            "best_baseline_top1": mean[best],
            "baselines": {name: value for name, value in mean.items() if name != ours},
            "mcnemar_p": None
            if best == "vit-slim"
            else mcnemar(hits_of(seeds[0][keep][ours]), hits_of(seeds[0][keep][best])),
        }
        if keep in slim:
            made[keep]["source"] = {"vit-slim": slim[keep][1]}
    return {"dense_top1": statistics.fmean(dense), "dense_top1_of_seeds": dense, "budgets": made}


def specialists(seeds: list[dict[str, Any]]) -> dict[str, Any]:
    """Group → budget → means over the seeds; the tests are the first seed's.

    `dense_against_generic_p` is how far a specialist that had lost nothing at all would stand out.
    """
    made: dict[str, Any] = {}
    for group, budgets in seeds[0].items():
        for keep, row in budgets.items():
            of = {
                name: statistics.fmean(np.mean(seed[group][keep][name]) for seed in seeds)
                for name in row
                if name != "key"
            }
            hits = {name: np.array(row[name], bool) for name in ("specialist", "generic", "dense_head_mask")}
            made.setdefault(group, {})[keep] = {
                "specialist_top1": of["specialist"],
                "dense_head_mask_top1": of["dense_head_mask"],
                "generic_top1": of["generic"],
                "generic_mask_group_refit_top1": of["generic_mask_group_refit"],
                "mcnemar_p": mcnemar(hits["specialist"], hits["generic"]),
                "dense_against_generic_p": mcnemar(hits["dense_head_mask"], hits["generic"]),
                "n": len(row["specialist"]),
            }
    return made


def vit_slim(model: str, seeds: list[int]) -> dict[str, tuple[float, str]]:
    """Budget → ViT-Slim's best mean top-1 on these seeds in the committed comparisons on this model, and where it stands."""
    found: dict[str, tuple[float, str]] = {}
    for path in sorted(RESULTS.glob(f"compare-*-{model}.json")):
        made = json.loads(path.read_text())
        for row in made["table"]:
            if row["criterion"] == "vit-slim" and set(seeds) <= set(made["seeds"]):
                top1 = statistics.fmean(row["top1_of_seeds"][made["seeds"].index(seed)] for seed in seeds)
                source = f"{path.name}: {row['recovery']}, {made['allocation']}, {len(seeds)} seeds"
                key = f"{row['keep']:g}"
                found[key] = max(found.get(key, (0.0, "")), (top1, source))
    return found


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="one seed, 5,000 images for the repair")
    parser.add_argument("--model", type=Path, help="a timm folder with config.json and model.safetensors")
    parser.add_argument("--name", help="what the result calls the model; its folder's name without it")
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--budgets", type=float, nargs="+")
    parser.add_argument("--no-specialists", action="store_true")
    parser.add_argument("--work", type=Path, default=Path("runs/budget"))
    parser.add_argument("--probe", type=int, default=200, help="probe images per class that the criteria look at")
    parser.add_argument("--refit", type=int, help="probe images for the repair")
    args = parser.parse_args()
    args.seeds = args.seeds or ([0] if args.quick else [0, 1, 2])
    args.budgets = args.budgets or ([0.5, 0.25, 0.125, 0.05] if args.model else [0.5, 0.125, 0.05, 0.02])
    args.refit = args.refit or (5000 if args.quick else 8000)
    args.name = args.name or (args.model.name if args.model else "bundled")
    args.work = args.work / (args.name + ("-quick" if args.quick else ""))
    return args


def main() -> None:
    args = parse_args()
    reporter = Reporter()
    seeds = [budgets_of(args, seed, reporter) for seed in args.seeds]
    result = summary(seeds, vit_slim("bundled" if not args.model else args.name, args.seeds))
    for keep, row in result["budgets"].items():
        print(f"keep {keep}: loss {row['loss_points']:.2f} points; best baseline {row['best_baseline']} "
              f"{100 * (result['dense_top1'] - row['best_baseline_top1']):.2f}", file=sys.stderr)  # fmt: skip
    if not args.no_specialists and not args.model:
        result["specialists"] = specialists([specialists_of(args, seed, reporter) for seed in args.seeds])
    settings = {"criterion": OURS[0], "recovery": OURS[1], "allocation": "global", "refit_images": args.refit,
                "probe_per_class": args.probe}  # fmt: skip
    result = {"model": args.name, "seeds": args.seeds, "settings": settings, **result}
    print(json.dumps({"model": args.name, "pretrained": result} if args.model else result))


if __name__ == "__main__":
    main()
