"""How far the class of an image, and names made of classes, tell what units do on images they were not made from.

    python benchmarks/names.py [--model DIR] [--data DIR] [--per-class 400] [--limit N] [--work DIR] [--json FILE]

Half of the images are for names and class means, half for scores, at the class token and over the patches. Beside every
figure is its control: the mean correlation with explanations of 20 other units of the block. Nothing is pruned to a purpose:
half of the units, drawn at random, go, so that there is a run to look at. `--limit`: images of a class that take part at all.
The figures hang on no clock. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from vitprune.core.progress import Reporter
from vitprune.recipe.recipe import Recipe
from vitprune.runs import pipeline

READS = {"cls": "class token", "patches": "mean over patches"}


def recipe_for(args: argparse.Namespace, tokens: str) -> Recipe:
    made: dict[str, Any] = {
        "name": "names",
        "out": str(args.work),
        "criterion": {"name": "random"},
        "keep": 0.5,
        "recovery": "none",
        "baselines": [],
        "export": {"onnx": False},
        "see": {"parts": ["names", "simulator"], "images": {"per_class": args.per_class}, "names": {"tokens": tokens}},
        "data": {"path": str(args.data)} if args.data else {"source": "bundled"},
    }
    if args.limit:
        made["data"]["limit_per_class"] = args.limit
    if args.model:
        made["model"] = {"name": f"local-dir:{args.model}"}
    return Recipe.model_validate(made)


def rows_of(see: dict[str, Any]) -> dict[str, Any]:
    """Of one place where units are read: per block the class means and the names, and the maps of the shown units."""
    maps = {key: value for key, value in see["simulator"]["maps"]["labels"].items() if key != "units"}
    return {
        "images": see["names"]["images"],
        "class_means": see["simulator"]["predictors"]["labels"]["blocks"],
        "names": see["names"]["blocks"],
        "maps_of_shown_units": maps,
    }


def table(found: dict[str, Any]) -> list[str]:
    lines = ["| read at | block | class means | q10 to q90 | control | null | names | control | named |"]
    lines.append("|---|---:|---:|---|---:|---:|---:|---:|---:|")
    for read, rows in found.items():
        for means, names in zip(rows["class_means"], rows["names"], strict=True):
            cells = [
                READS[read],
                means["block"],
                figure(means["score"]),
                f"{figure(means['q10'])} to {figure(means['q90'])}",
            ]
            cells += [figure(means["control"]), means["null"], figure(names["score"]), figure(names["control"])]
            lines.append("| " + " | ".join(map(str, [*cells, names["named"]])) + " |")
    return lines


def figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a timm folder; without it the bundled model")
    parser.add_argument("--data", type=Path, help="a folder of images; without it the bundled ones")
    parser.add_argument("--per-class", type=int, default=400)
    parser.add_argument("--limit", type=int, help="data.limit_per_class: a fifth of them is for the exam")
    parser.add_argument("--work", type=Path, default=Path("runs/names"))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    found = {
        tokens: rows_of(pipeline.run(recipe_for(args, tokens), "run", reporter=Reporter())["see"]) for tokens in READS
    }
    print("\n".join(table(found)))
    name = args.model.name if args.model else "bundled"
    text = json.dumps({"model": name, "per_class": args.per_class, "read": found})
    if args.json:
        args.json.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
