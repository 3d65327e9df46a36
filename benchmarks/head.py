"""What fitting the classifier to the dense model's predictions adds to the repair, at the same sizes.

    python benchmarks/head.py [--model DIR] [--data DIR] [--seeds 0 1 2] [--work DIR] [--json FILE]

Every budget has one plan, priced with the shortcut of the last block, and two models: repaired by `layerwise` and by
`layerwise+head`. KL from dense and top-1 on the test split, which is read after both are made; McNemar's exact p is between
the two. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from whole import examined, kl, recipe_for

from vitprune.core.progress import Reporter
from vitprune.exam.metrics import mcnemar
from vitprune.pruning.repair.names import Recovery
from vitprune.pruning.whole import allocation
from vitprune.pruning.whole.pricing import Macs
from vitprune.runs import pipeline
from vitprune.runs.results import attention
from vitprune.runs.stages import score
from vitprune.runs.stages.prune import slimmed
from vitprune.runs.state.run import Run

REPAIRS: tuple[Recovery, Recovery] = ("layerwise", "layerwise+head")
Found = dict[str, Any]


def one_seed(args: argparse.Namespace, seed: int, reporter: Reporter) -> Found:
    """Budget → KL and top-1 after either repair, of one split."""
    with Run.open(recipe_for(args, seed), "auto", reporter) as run:
        pipeline.advance(run, "moments")
        dense, targets = run.loaded.model, run.classes.every()
        scores, curves = score.scores_of(run, "fisher-obs", run.recipe.criterion.seed), attention.of_file(run, None)
        made = {}
        for budget in args.budgets:
            plan = allocation.plan(dense, scores, curves, budget, Macs(dense, shortcut=True), targets)
            made[budget] = [slimmed(run, plan, repair, None, targets) for repair in REPAIRS]
        before, labels = examined(run, dense, targets)
        found: Found = {"dense_top1": float((before.argmax(1) == labels).mean())}
        for budget, models in made.items():
            logits = [examined(run, model, targets)[0] for model in models]
            right = [one.argmax(1) == labels for one in logits]
            of = {
                name: {"kl": kl(before, one), "top1": float(hit.mean())}
                for name, one, hit in zip(REPAIRS, logits, right, strict=True)
            }
            found[f"{budget:g}"] = of | {"p": mcnemar(*right)}
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--model", type=Path, help="a timm folder; without it the bundled model")
    parser.add_argument("--data", type=Path, help="a folder of images per class; without it the bundled images")
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.5, 0.25, 0.1])
    parser.add_argument("--probe", type=int, default=400, help="probe images per class of the costs")
    parser.add_argument("--refit", type=int, default=4000, help="probe images of the repair")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--work", type=Path, default=Path("runs/head"))
    parser.add_argument("--json", type=Path, help="write the last line there too")
    args = parser.parse_args()
    reporter = Reporter()
    seeds = [one_seed(args, seed, reporter) for seed in args.seeds]
    mean: Found = {"dense_top1": statistics.fmean(one["dense_top1"] for one in seeds)}
    for budget in (f"{share:g}" for share in args.budgets):
        mean[budget] = {
            repair: {key: statistics.fmean(one[budget][repair][key] for one in seeds) for key in ("kl", "top1")}
            for repair in REPAIRS
        }
        mean[budget]["p"] = [one[budget]["p"] for one in seeds]
    made = {"model": args.model.name if args.model else "bundled", "seeds": args.seeds, "mean": mean}
    if args.json:
        args.json.write_text(json.dumps(made, indent=1) + "\n")
    print(json.dumps(made))


if __name__ == "__main__":
    main()
