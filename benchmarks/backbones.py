"""A backbone without its head on images without labels: what is lost of its features, beside other ways to choose.

    python benchmarks/backbones.py [--model DIR] [--data DIR] [--quick] [--json FILE] [--seeds 0 1 2] [--macs 0.5 0.25]

A classifier loses its head first, and the images lie in one flat folder, so that no class plays a part anywhere. Every seed is
a split of its own; costs and repairs are worked out on the probe split, the test split is read once per model. All ways have
the same repair and, but for `pooled`, read the same rows of the last block:

    fisher-obs    independent random directions on every token, the tool's default
    class-only    the same with directions on the pooled feature alone
    pooled        class-only, and the last block read and repaired on its rows alone (`model.features: pooled`)
    obs           no gradient: what is left of the layers' own outputs
    variance, magnitude-l2, random    as many heads, dimensions and units of each block as fisher-obs chose, others of them

The first three share the budget out by their own costs. `gap` is fisher-obs less the other, paired over the test images, with
its 95 % interval. `cosine_loss` is 1 - cosine of the output, half of its energy in the class token. --quick: one seed, x0.5.
The last line is one JSON object. --table: nothing of this, but the table of a file of --json, for docs/backbones.md.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from vitprune.core.progress import Reporter
from vitprune.exam import features
from vitprune.exam.features import NEIGHBOURS, Features
from vitprune.model import size
from vitprune.model.inside import backbone
from vitprune.model.load.folders import BUNDLED
from vitprune.pruning.whole import allocation
from vitprune.pruning.whole.pricing import Macs
from vitprune.recipe.recipe import Recipe
from vitprune.runs import pipeline
from vitprune.runs.results import attention
from vitprune.runs.stages import score
from vitprune.runs.stages.exams import features as described
from vitprune.runs.stages.exams import predicted
from vitprune.runs.stages.prune import same_sizes, slimmed
from vitprune.runs.state.run import Run

OURS, CLASS_ONLY, POOLED = "fisher-obs", "class-only", "pooled"
OWN_BUDGET, ITS_BUDGET = ("obs",), ("variance", "magnitude-l2", "random")
IMAGES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
FIGURES = ("cosine", "centred_cosine", "fvu", "tokens_cosine", "tokens_fvu", "neighbours", "cosine_loss", "macs_ratio")
AHEAD = ("cosine", "tokens_cosine")
Found = dict[str, Any]


def flat(data: Path, work: Path) -> Path:
    """A folder of the images alone, whatever folders they lay in."""
    folder = work / "images"
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(p for p in data.rglob("*") if p.suffix.lower() in IMAGES):
        target = folder / "-".join(path.relative_to(data).parts)
        if not target.exists():
            shutil.copyfile(path, target)
    return folder


def recipe_for(args: argparse.Namespace, seed: int, name: str, baselines: list[str]) -> Recipe:
    model = f"local-dir:{args.model or BUNDLED}"
    made: Found = {
        "name": f"{name}-{seed}",
        "out": str(args.work),
        "model": {"name": model, "head": "none"},
        "data": {"path": str(args.images)},
        "split": {"seed": seed},
        "criterion": {"name": OURS, "probe_per_class": args.probe},
        "budget": {"macs": args.macs[0]},
        "baselines": baselines,
        "refit_images": args.refit,
    }
    return Recipe.model_validate(made)


class Exam:
    """The test images of a run, and what the dense model says of them."""

    def __init__(self, run: Run) -> None:
        self.run, self.found = run, run.backbone
        self.spread = described.spread(run)
        self.dense = list(self.told(run.loaded.model))

    def told(self, model: Any) -> Any:
        """The features of every batch of test images."""
        tell = features.teller(model)
        for x, _ in self.run.images.batches(self.run.split.test, self.run.batching.batch):
            yield tell(x)

    def of(self, model: Any) -> tuple[Found, dict[str, np.ndarray]]:
        """The figures of a slim model, and those of every image."""
        import torch

        made, pooled = [], []
        for dense, slim in zip(self.dense, self.told(model), strict=True):
            made.append(features.compared(self.found, dense, slim, self.spread))
            pooled.append(slim.pooled)
        each = {key: torch.cat([part[key] for part in made]) for key in made[0]}
        before = torch.cat([one.pooled for one in self.dense])
        row: Found = {"neighbours": features.overlap(before, torch.cat(pooled), NEIGHBOURS)}
        row["cosine_loss"] = float(each["output.lost"].mean())
        for name, key in (("pooled", ""), ("tokens", "tokens_")):
            parts = [each[f"{name}.{what}"] for what in ("error", "square", "sum")]
            row[f"{key}cosine"] = float(each[f"{name}.cosine"].mean())
            row[f"{key}centred_cosine"] = float(each[f"{name}.centred"].mean())
            row[f"{key}fvu"] = features.fvu(*parts, count=1 if not key else self.patches)
        return row, {"cosine": each["pooled.cosine"].numpy(), "tokens_cosine": each["tokens.cosine"].numpy()}

    @property
    def patches(self) -> int:
        one: Features = self.dense[0]
        return int(one.tokens.shape[1]) - self.found.prefix


def gap(ours: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> Found:
    """fisher-obs less the other, image by image: the mean and its 95 % interval."""
    made: Found = {}
    for key in ours:
        mean, interval = features.difference(ours[key], other[key])
        made |= {key: mean, f"{key}_ci95": list(interval)}
    return made


def one_seed(args: argparse.Namespace, seed: int, reporter: Reporter) -> Found:
    """Budget → way → figures of one split."""
    started, found, plans = time.monotonic(), dict[str, Found](), {}
    with Run.open(recipe_for(args, seed, CLASS_ONLY, []), "auto", reporter) as run:
        backbone.draw_along(run.loaded.model, "pooled")
        pipeline.advance(run, "discover")
        chosen = score.scores_of(run, OURS, run.recipe.criterion.seed), attention.of_file(run, None)
        for budget in args.macs:
            plans[budget] = allocation.plan(run.loaded.model, *chosen, budget, Macs(run.loaded.model), [0])
    with Run.open(recipe_for(args, seed, OURS, [*OWN_BUDGET, *ITS_BUDGET]), "auto", reporter) as run:
        pipeline.advance(run, "moments")
        exam, dense, targets = Exam(run), run.loaded.model, run.classes.every()
        every = {name: _chosen(run, name, seed) for name in (OURS, *OWN_BUDGET, *ITS_BUDGET)}
        for budget in reporter.track(args.macs, f"budgets, seed {seed}", len(args.macs)):
            ours = allocation.plan(dense, *every[OURS], budget, Macs(dense), targets)
            of = {OURS: ours, CLASS_ONLY: plans[budget], POOLED: plans[budget]}
            of |= {name: allocation.plan(dense, *every[name], budget, Macs(dense), targets) for name in OWN_BUDGET}
            of |= {name: same_sizes(ours, *every[name], targets) for name in ITS_BUDGET}
            rows: Found = {}
            first: dict[str, np.ndarray] = {}
            for name, plan in of.items():
                with backbone.reading(dense, "pooled" if name == POOLED else None):
                    slim = slimmed(run, plan, run.recovery, None, targets)
                backbone.read(slim, None)
                rows[name], each = exam.of(slim)
                rows[name]["macs_ratio"] = size.macs(slim) / size.macs(dense)
                if name == OURS:
                    first, told = each, predicted.told(run, plan, None)
                    rows[name]["predicted_cosine_loss"] = told["cosine_loss"]
                    rows[name]["measured_over_predicted"] = rows[name]["cosine_loss"] / told["cosine_loss"]
                else:
                    rows[name]["gap"] = gap(first, each)
                print(f"seed {seed} x{budget:g} {name}: {_line(rows[name])}", file=sys.stderr, flush=True)
            found[f"{budget:g}"] = rows
        about = {"probe": len(run.split.probe), "test": len(run.split.test), "recovery": run.recovery}
    return {"seed": seed, **about, "seconds": round(time.monotonic() - started), "budgets": found}


def _chosen(run: Run, name: str, seed: int) -> tuple[Any, Any]:
    """What a criterion says of the FFNs and of the attentions."""
    seed = seed if name == "random" else run.recipe.criterion.seed
    return score.scores_of(run, name, seed), attention.curves_of(run, name, seed, None)


def _line(row: Found) -> str:
    return ", ".join(f"{key} {row[key]:.4f}" for key in FIGURES)


def mean(found: list[Found]) -> Found:
    """Budget → way → the mean of every figure over the seeds, and of the gaps."""
    made: Found = {}
    for budget, ways in found[0]["budgets"].items():
        made[budget] = {}
        for name, row in ways.items():
            rows = [one["budgets"][budget][name] for one in found]
            keys = [key for key, value in row.items() if isinstance(value, float)]
            made[budget][name] = {key: statistics.fmean(r[key] for r in rows) for key in keys}
            if "gap" in row:
                gaps = [key for key, value in row["gap"].items() if isinstance(value, float)]
                made[budget][name]["gap"] = {key: statistics.fmean(r["gap"][key] for r in rows) for key in gaps}
    return made


def markdown(made: Found) -> str:
    """The means over the seeds as a table, and in how many of them every gap's interval lies above nothing."""
    head = "| MACs | way | cosine | FVU | patches' cosine | patches' FVU | same neighbours | ahead in cosine | … of patches |"
    lines = [head, "|---:|---|---:|---:|---:|---:|---:|---:|---:|"]
    for budget, ways in made["mean"].items():
        for name, row in ways.items():
            of = [f"{row[key]:.3f}" for key in ("cosine", "fvu", "tokens_cosine", "tokens_fvu")]
            of += [
                f"{100 * row['neighbours']:.0f} %",
                *(_ahead(made["seeds"], budget, name, row, key) for key in AHEAD),
            ]
            lines.append(f"| x{budget} | {name} | {' | '.join(of)} |")
        ours = ways[OURS]
        told = f"{ours['predicted_cosine_loss']:.3f} and came out {ours['measured_over_predicted']:.2f} times that"
        lines.append(f"| x{budget} | {OURS}: the plan said 1 - cosine {told} |" + " |" * 7)
    return "\n".join(lines)


def _ahead(seeds: list[Found], budget: str, name: str, row: Found, key: str) -> str:
    if "gap" not in row:
        return "-"
    lows = [one["budgets"][budget][name]["gap"][f"{key}_ci95"][0] for one in seeds]
    return f"{row['gap'][key]:+.3f} ({sum(low > 0 for low in lows)} of {len(lows)})"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--model", type=Path, help="a timm folder; without it the bundled model")
    parser.add_argument("--data", type=Path, help="a folder of images, in whatever folders below it")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seeds", type=int, nargs="*")
    parser.add_argument("--macs", type=float, nargs="*", help="shares of the multiply-adds that are left")
    parser.add_argument("--probe", type=int, default=800, help="probe images that the costs are worked out on")
    parser.add_argument("--refit", type=int, default=4000, help="probe images of the repair")
    parser.add_argument("--work", type=Path, default=Path("runs/backbones"))
    parser.add_argument("--json", type=Path, help="write the last line there too, after every seed")
    parser.add_argument("--table", type=Path, help="a file of --json: its table, no run")
    args = parser.parse_args()
    if args.table:
        print(markdown(json.loads(args.table.read_text())))
        return
    if args.data is None:
        parser.error("--data: a folder of images is needed")
    args.macs = args.macs or ([0.5] if args.quick else [0.5, 0.25])
    args.seeds = args.seeds or ([0] if args.quick else [0, 1, 2])
    args.images = flat(args.data, args.work)
    found, reporter = [], Reporter()
    for seed in args.seeds:
        found.append(one_seed(args, seed, reporter))
        made = {"model": args.model.name if args.model else "bundled", "images": args.data.name}
        made |= {"seeds": found, "mean": mean(found)}
        if args.json:
            args.json.write_text(json.dumps(made, indent=1) + "\n")
    print(json.dumps(made))


if __name__ == "__main__":
    main()
