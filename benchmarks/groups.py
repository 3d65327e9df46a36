"""What the grouping is worth: specialists of semantic, clustered and random groups, and of images with shuffled labels.

    python benchmarks/groups.py [--seed 0] [--budgets 0.05 0.02] [--work DIR]

The bundled model at the tool's default (fisher-obs, one threshold across blocks, layerwise repair). Per grouping and group:
top-1 on the group's test images with the head's other outputs closed, of the dense model, of one model pruned for all
classes (`generic`) and of the group's specialist. `clustered` groups are found by the cosine similarity of the classes'
JAS units. `shuffled` is the null: the semantic groups, but scored and repaired with probe images whose labels were
permuted, so a specialist sees as many images of any class; what it loses against `specialist` is what class-conditional
scores and repair are worth. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
from budget import GROUPS, OURS, _hits, recipe_for

from vitprune.core.progress import Reporter
from vitprune.exam.metrics import mcnemar
from vitprune.recipe.recipe import Recipe
from vitprune.runs import pipeline
from vitprune.runs.stages import score
from vitprune.runs.stages.prune import mask_of, slimmed
from vitprune.runs.state.run import Run


def shuffle_probe_labels(run: Run, seed: int) -> None:
    """Permute which probe image has which label; the test split keeps its own."""
    source, probe = copy.copy(run.source), run.split.probe
    source.class_of = source.class_of.copy()
    source.class_of[probe] = np.random.default_rng(seed).permutation(source.class_of[probe])
    run.__dict__["source"] = source
    run.__dict__.pop("images", None)  # they carry labels of their own


def at_random(names: list[str], seed: int) -> dict[str, list[str]]:
    """As many groups of the same sizes as the semantic ones."""
    mixed = np.random.default_rng(seed).permutation(names).tolist()
    sizes = np.cumsum([len(members) for members in GROUPS.values()])[:-1]
    return {f"random-{n + 1}": part.tolist() for n, part in enumerate(np.split(np.array(mixed), sizes))}


def clustered(recipe: Recipe, reporter: Reporter) -> dict[str, list[str]]:
    update = {"groups": None, "clusters": len(GROUPS), "name": "clustered"}
    criterion = recipe.criterion.model_copy(update={"probe_per_class": 20})
    with Run.open(recipe.model_copy(update=update | {"criterion": criterion}), "auto", reporter) as run:
        pipeline.advance(run, "split")
        return dict(run.recipe.groups or {})


def of_grouping(
    name: str, groups: dict[str, list[str]], recipe: Recipe, budgets: list[float], generic: dict[float, Any],
    general: Run, reporter: Reporter, shuffled: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Group → budget → top-1 of each model; every image that one got right, for the test."""
    found: dict[str, Any] = {}
    with Run.open(recipe.model_copy(update={"groups": groups, "name": name}), "auto", reporter) as special:
        pipeline.advance(special, "split")
        if shuffled:
            shuffle_probe_labels(special, recipe.split.seed)
        score.discover(special)
        for group, targets in special.classes.sets().items():
            for keep in budgets:
                scores = score.scores_of(special, OURS[0], recipe.split.seed, group)
                own = slimmed(special, mask_of(special, scores, targets, keep), OURS[1], group, targets)  # type: ignore[arg-type]
                models = {"dense": general.loaded.model, "generic": generic[keep], "specialist": own}
                hits = {model: np.array(_hits(general, m, targets), bool) for model, m in models.items()}
                row = {model: float(hit.mean()) for model, hit in hits.items()}
                row["mcnemar_p"] = mcnemar(hits["specialist"], hits["generic"])
                found.setdefault(str(group), {"classes": groups[str(group)]})[f"{keep:g}"] = row
                reporter.say(f"{name}, {group}, keep {keep:g}: {row}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.05, 0.02])
    parser.add_argument("--work", type=Path, default=Path("runs/groups"))
    args = parser.parse_args()
    args.model, args.probe, args.refit, reporter = None, 200, 8000, Reporter()
    recipe = recipe_for(args, args.seed, True).model_copy(update={"allocation": "global"})
    made: dict[str, Any] = {}
    plain = recipe.model_copy(update={"groups": None, "name": "all"})
    with Run.open(plain, "auto", reporter) as general:
        pipeline.advance(general, "discover")
        every, names = general.classes.every(), list(general.source.classes)
        scores = score.scores_of(general, OURS[0], args.seed)
        generic = {
            keep: slimmed(general, mask_of(general, scores, every, keep), OURS[1], None, every)  # type: ignore[arg-type]
            for keep in args.budgets
        }
        groupings = {"semantic": GROUPS, "shuffled": GROUPS, "clustered": clustered(recipe, reporter),
                     "random": at_random(names, args.seed)}  # fmt: skip
        for name, groups in groupings.items():
            made[name] = of_grouping(
                name, groups, recipe, args.budgets, generic, general, reporter, shuffled=name == "shuffled"
            )
    print(json.dumps({"seed": args.seed, "groupings": made}))


if __name__ == "__main__":
    main()
