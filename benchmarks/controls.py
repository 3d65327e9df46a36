"""The control of the README's table: heads, dimensions and units at random, as many of each, with the same repair.

    python benchmarks/controls.py [--model DIR] [--data DIR] [--seeds 0] [--macs 0.25] [--json FILE]

Per seed of the split the tool's default under a budget of the whole model and three draws at random of the same sizes, on the
test split, which is read once after every choice. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from whole import recipe_for

from vitprune.core.progress import Reporter
from vitprune.runs import pipeline

Row = dict[str, Any]


def of_seed(rows: list[Row]) -> Row:
    """Top-1 and KL of one split: dense, the default and the mean of what was drawn, all repaired but the first."""
    dense = next(row for row in rows if row["criterion"] == "dense")
    repaired = [row for row in rows if row["recovery"] != "none"]
    ours = next(row for row in repaired if row["criterion"] == "fisher-obs")
    drawn = [row for row in repaired if row["criterion"] == "random"]
    mean = {key: statistics.fmean(row[key] for row in drawn) for key in ("top1", "kl")}
    return {
        "dense_top1": dense["top1"],
        "top1": ours["top1"],
        "kl": ours["kl"],
        "random_top1": mean["top1"],
        "random_kl": mean["kl"],
        "random_p": [row["mcnemar_p"] for row in drawn],
        "macs_ratio": ours["macs_ratio"],
        "recovery": ours["recovery"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--model", type=Path, help="a timm folder; without it the bundled model")
    parser.add_argument("--data", type=Path, help="a folder of images per class; without it the bundled images")
    parser.add_argument("--macs", type=float, default=0.25, help="the share of the multiply-adds that is left")
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--probe", type=int, default=400, help="probe images per class of the costs")
    parser.add_argument("--refit", type=int, default=4000, help="probe images of the repair")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--work", type=Path, default=Path("runs/controls"))
    parser.add_argument("--json", type=Path, help="write the last line there too")
    args = parser.parse_args()
    drawn = {"budget": {"macs": args.macs}, "baselines": ["random"], "random_draws": args.draws}
    found = []
    for seed in args.seeds:
        record = pipeline.run(recipe_for(args, seed, **drawn), "evaluate", reporter=Reporter())
        found.append({"seed": seed, **of_seed(record["rows"])})
    made = {"model": args.model.name if args.model else "bundled", "macs": args.macs, "seeds": found}
    if args.json:
        args.json.write_text(json.dumps(made, indent=1) + "\n")
    print(json.dumps(made))


if __name__ == "__main__":
    main()
