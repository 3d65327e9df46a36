"""`budget: {loss_points: …}`: the share of the multiply-adds that it comes to, and the loss then seen on the test split.

    python benchmarks/losses.py [--model DIR] [--data DIR] [--points 1.0] [--seeds 0 1 2] [--work DIR] [--json FILE]

Every seed is a split of its own. The share is chosen on the probe split by five-fold cross-fitting; the test split is read
once, when the model is there. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from whole import recipe_for

from vitprune.core.progress import Reporter
from vitprune.runs import pipeline

Found = dict[str, Any]
CHOSEN = ("macs", "within", "loss_points", "bound_points", "n", "tried")


def one_seed(args: argparse.Namespace, seed: int, reporter: Reporter) -> Found:
    """What was chosen on the probe split, and what it came to on the test split."""
    asked = {"budget": {"loss_points": args.points}, "export": {"onnx": False}}
    made = pipeline.run(recipe_for(args, seed, **asked), "evaluate", reporter=reporter)
    return {"seed": seed, **figures(made)}


def figures(made: Found) -> Found:
    """One seed's, from the record of its run."""
    chosen, slim = made["losses"][0], made["result"]
    dense = next(row for row in made["rows"] if row["criterion"] == "dense")
    test = {
        "dense_top1": dense["top1"],
        "top1": slim["top1"],
        "loss_points": -slim["top1_change_points"],
        "n": slim["n"],
    }
    test["mcnemar_p"] = dense["mcnemar_p"]
    return {"probe": {name: chosen[name] for name in CHOSEN}, "test": test, "macs_ratio": slim["macs"] / dense["macs"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--model", type=Path, help="a timm folder; without it the bundled model")
    parser.add_argument("--data", type=Path, help="a folder of images per class; without it the bundled images")
    parser.add_argument("--points", type=float, default=1.0, help="of top-1 that may be lost")
    parser.add_argument("--probe", type=int, default=400, help="probe images per class of the costs")
    parser.add_argument("--refit", type=int, default=4000, help="probe images of the repair")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--work", type=Path, default=Path("runs/losses"))
    parser.add_argument("--json", type=Path, help="write the last line there too")
    args = parser.parse_args()
    reporter = Reporter()
    made = {
        "model": args.model.name if args.model else "bundled",
        "points": args.points,
        "seeds": [one_seed(args, seed, reporter) for seed in args.seeds],
    }
    if args.json:
        args.json.write_text(json.dumps(made, indent=1) + "\n")
    print(json.dumps(made))


if __name__ == "__main__":
    main()
