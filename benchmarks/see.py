"""Whether a model's units write classes at all, and whether those that write one fire for it, beside chance.

    python benchmarks/see.py [--model DIR] [--data DIR] [--per-class 400] [--form folded] [--work DIR] [--json FILE]

Nothing is pruned to a purpose: half of the units, drawn at random, go, so that there is a run to look at. A classifier that
was fitted to finished features is the negative control: no block should pass. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from vitprune.core.progress import Reporter
from vitprune.recipe.recipe import Recipe
from vitprune.runs import pipeline


def recipe_for(args: argparse.Namespace) -> Recipe:
    made: dict[str, Any] = {
        "name": "see",
        "out": str(args.work),
        "criterion": {"name": "random"},
        "keep": 0.5,
        "recovery": "none",
        "baselines": [],
        "export": {"onnx": False},
        "see": {"parts": ["exemplars", "alignment"], "alignment": args.form, "images": {"per_class": args.per_class}},
    }
    if args.model:
        made["model"] = {"name": f"local-dir:{args.model}"}
    if args.data:
        made["data"] = {"path": str(args.data)}
    return Recipe.model_validate(made)


def table(see: dict[str, Any]) -> list[str]:
    lines = ["| block | largest cosine | random heads | z | classes | writes = fires, class token | patches | chance |"]
    lines.append("|---:|---:|---:|---:|---|---:|---:|---:|")
    for block in see["alignment"]["blocks"]:
        agreement = block["agreement"]
        shares = [f"{agreement[read]['share']:.3f}" if read in agreement else "–" for read in ("class", "patches")]
        chance = next(iter(agreement.values()))["chance"]
        null = f"{block['random']:.3f} ± {block['random_sd']:.3f}"
        carries = "yes" if block["carries"] else "no"
        cells = [block["block"], f"{block['found']:.3f}", null, f"{block['z']:.1f}", carries, *shares, f"{chance:.3f}"]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a timm folder; without it the bundled model")
    parser.add_argument("--data", type=Path, help="a folder of images; without it the bundled ones")
    parser.add_argument("--per-class", type=int, default=400)
    parser.add_argument("--form", default="folded", choices=["folded", "raw", "normed", "cos"])
    parser.add_argument("--work", type=Path, default=Path("runs/see"))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    made = pipeline.run(recipe_for(args), "run", reporter=Reporter())
    see = made["see"]
    print("\n".join(table(see)))
    stage = next(stage for stage in made["stages"] if stage["name"] == "see")
    found = {"images": see["images"]["n"], "form": args.form, "blocks": see["alignment"]["blocks"]}
    found |= {
        "distinct": see["alignment"]["distinct"],
        "seconds": stage["seconds"],
        "memory_mb": stage["peak_memory_mb"],
    }
    found["machine"] = made["machine"]
    text = json.dumps(found)
    if args.json:
        args.json.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
