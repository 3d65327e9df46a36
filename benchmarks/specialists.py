"""What specialists are worth under a budget of the whole model.

    python benchmarks/specialists.py [--model DIR --data DIR] [--quick] [--json FILE]

For groups of classes, and for the multiply-adds left, top-1 on the group's test images with the head's other outputs closed:
of the dense model, of one model pruned for all classes (`generic`) and of the group's own (`specialist`), whose costs and
repair are of its own probe images. Mean and standard deviation over the seeds of the split; McNemar's exact p per seed. The
last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from whole import recipe_for

from vitprune.core.progress import Reporter
from vitprune.exam.logits import predictor, test_logits
from vitprune.exam.metrics import hits, mcnemar
from vitprune.pruning.whole import allocation
from vitprune.pruning.whole.pricing import Macs
from vitprune.recipe.recipe import Recipe
from vitprune.runs import pipeline
from vitprune.runs.results import attention
from vitprune.runs.stages import score
from vitprune.runs.stages.prune import slimmed
from vitprune.runs.state.run import Run

GROUPS = (
    {
        "footwear": ["sandal", "sneaker", "boot"],
        "tops": ["tshirt", "pullover", "shirt"],
        "others": ["trouser", "dress", "coat", "bag"],
    },
    {
        "tops": ["longsleeve", "shirt", "t-shirt"],
        "legs": ["pants", "shorts", "skirt"],
        "others": ["dress", "hat", "outwear", "shoes"],
    },
)
BUDGETS = (0.4, 0.25)
Found = dict[str, Any]


def recipe_of(args: argparse.Namespace, seed: int, groups: dict[str, list[str]] | None) -> Recipe:
    """Of one split: all classes, or a class set per group."""
    asked: Found = {"budget": {"macs": 0.4}, "export": {"onnx": False}}
    if groups:
        asked |= {"groups": groups, "head": "all"}
    return recipe_for(args, seed, name=f"{'groups' if groups else 'all'}-{seed}", **asked)


def made_by(run: Run, group: str | None, targets: list[int], share: float) -> Any:
    """The slim, repaired model of a class set at a share of the multiply-adds."""
    scores, dense = score.scores_of(run, "fisher-obs", run.recipe.criterion.seed, group), run.loaded.model
    plan = allocation.plan(dense, scores, attention.of_file(run, group), share, Macs(dense, shortcut=True), targets)
    return slimmed(run, plan, run.recovery, group, targets)


def right(run: Run, model: Any, targets: list[int]) -> np.ndarray:
    """Which of the group's test images a model gets right when the other outputs are closed."""
    logits, labels = test_logits(predictor(model), run.images, run.split, run.batching.batch, np.array(targets))
    return hits(logits, labels, targets)


def one_seed(args: argparse.Namespace, seed: int, reporter: Reporter) -> Found:
    """Group → budget → top-1 of each model."""
    found: Found = {}
    with Run.open(recipe_of(args, seed, None), "auto", reporter) as general:
        pipeline.advance(general, "moments")
        every, names = general.classes.every(), set(general.source.classes)
        groups = next((g for g in GROUPS if {n for members in g.values() for n in members} == names), None)
        assert groups is not None, f"no groups are known for {sorted(names)}"
        generic = {share: made_by(general, None, every, share) for share in BUDGETS}
        with Run.open(recipe_of(args, seed, groups), "auto", reporter) as special:
            pipeline.advance(special, "moments")
            for group, targets in special.classes.sets().items():
                dense = right(general, general.loaded.model, targets)
                for share in BUDGETS:
                    own = right(special, made_by(special, group, targets, share), targets)
                    other = right(general, generic[share], targets)
                    row = {"dense": dense.mean(), "generic": other.mean(), "specialist": own.mean()}
                    tests = {"p_against_dense": mcnemar(own, dense), "p_against_generic": mcnemar(own, other)}
                    found.setdefault(str(group), {})[f"{share:g}"] = {k: float(v) for k, v in (row | tests).items()}
                    reporter.say(f"seed {seed}, {group}, x{share:g}: {found[str(group)][f'{share:g}']}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--model", type=Path, help="a timm folder; without it the bundled model")
    parser.add_argument("--data", type=Path, help="a folder of images per class; without it the bundled images")
    parser.add_argument("--quick", action="store_true", help="one seed")
    parser.add_argument("--work", type=Path, default=Path("runs/specialists"))
    parser.add_argument("--probe", type=int, default=400, help="probe images per class of the costs")
    parser.add_argument("--refit", type=int, default=4000, help="probe images of the repair")
    parser.add_argument("--json", type=Path, help="write the last line there too")
    args = parser.parse_args()
    reporter, seeds = Reporter(), [0] if args.quick else [0, 1, 2]
    every = [one_seed(args, seed, reporter) for seed in seeds]
    groups: Found = {}
    for group in every[0]:
        for share in every[0][group]:
            rows = [one[group][share] for one in every]
            of = {name: statistics.mean(row[name] for row in rows) for name in ("dense", "generic", "specialist")}
            of |= {f"{name}_sd": statistics.stdev([r[name] for r in rows]) if len(rows) > 1 else None for name in of}
            of |= {name: [row[name] for row in rows] for name in ("p_against_dense", "p_against_generic")}
            groups.setdefault(group, {})[share] = of
    made = {"model": args.model.name if args.model else "bundled", "seeds": seeds, "groups": groups}
    if args.json:
        args.json.write_text(json.dumps(made, indent=1) + "\n")
    print(json.dumps(made))


if __name__ == "__main__":
    main()
