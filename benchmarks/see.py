"""Whether a model's units write classes at all, and whether those that write one fire for it, beside chance.

    python benchmarks/see.py [--model DIR] [--data DIR] [--per-class 400] [--parts NAME …] [--work DIR] [--json FILE]
    python benchmarks/see.py --weights [--model DIR] [--json FILE]
    python benchmarks/see.py --cost [--images 200] [--json FILE]

The units are those of a run that keeps a quarter of them by `obs`, repaired by `affine`: its removed evidence, its losses, its
stand-ins and its drift are in the JSON too. A classifier that was fitted to finished features is the negative control: no
block should pass. `--weights` makes that test alone, which needs no image. `--cost` measures what is held while units are
looked at: of all 36,864 units of a ViT-B/16 (random weights) beyond a forward pass, bar 300 MB; and of the bundled model on
5,000 images against 500, bar 1.05 times. Each peak is of a process of its own. The last line is one JSON object; exit 1 where
a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch

from vitprune.core import device
from vitprune.core.progress import Reporter
from vitprune.model import families
from vitprune.model.inside import hooks
from vitprune.model.load import opening
from vitprune.recipe import inputs
from vitprune.recipe.recipe import Recipe
from vitprune.runs import pipeline
from vitprune.runs.seeing import passes
from vitprune.see import alignment, exemplars
from vitprune.see.seen import Asked, Seen

MEGABYTES, RATIO = 300, 1.05
PARTS = ["exemplars", "alignment", "drift", "readout"]


def recipe_for(args: argparse.Namespace) -> Recipe:
    made: dict[str, Any] = {
        "name": "see",
        "out": str(args.work),
        "criterion": {"name": "obs"},
        "keep": 0.25,
        "recovery": "affine",
        "baselines": [],
        "export": {"onnx": False},
        "see": {
            "parts": args.parts,
            "alignment": args.form,
            "images": {"per_class": args.per_class},
        },
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


def weights(args: argparse.Namespace) -> None:
    """The test against random heads alone, and the block of every class's top unit."""
    loaded = opening.open_model(inputs.Model(name=f"local-dir:{args.model}" if args.model else "bundled"))
    written = alignment.written(loaded.model)
    null = [alignment.chance(values, written.head, i) for i, values in enumerate(written.values)]
    blocks = [
        {"block": i, "found": one.found, "random": one.mean, "random_sd": one.sd, "z": one.z, "carries": one.carries}
        for i, one in enumerate(null)
    ]
    tops = {
        form: torch.stack([written.aligned(i, form).amax(0) for i in range(len(null))]).argmax(0).tolist()
        for form in ("folded", "raw", "normed", "cos")
    }
    made = {"model": args.model.name if args.model else "bundled", "blocks": blocks, "top_blocks": tops}
    if args.json:
        args.json.write_text(json.dumps(made) + "\n")
    print(json.dumps(made))


def held(what: str, images: int) -> float:
    """The highest memory of this process, MB, after a pass over so many random images: `forward` and `look` of a ViT-B/16,
    `bundled` of the bundled model, looked at as the stage does it, in parts that are merged. Of a ViT-B/16 the last pass is
    made; drawn activations take the place of those before it, which is the same to what is held and saves an hour."""
    torch.manual_seed(0)
    if what == "bundled":
        model = opening.open_model(inputs.Model(name="bundled")).model
    else:
        model = timm.create_model("vit_base_patch16_224").eval().requires_grad_(False)
    sites, shape = families.ffn_sites(model), families.input_shape(model)
    layout, generator = families.token_layout(model), torch.Generator().manual_seed(0)
    draws = [exemplars.draws(images, site.size, 20, [0, i]) for i, site in enumerate(sites)]
    count = min(max(passes.VALUES // images, passes.FEWEST), passes.SAMPLED) // len(sites)
    asked = [Asked(layout.prefix, layout.class_token, 15, drawn, np.arange(count)) for drawn in draws]
    whole = [Seen.nothing(one) for one in asked]
    for start in range(0, images, passes.SHARD):
        part = [Seen.nothing(one) for one in asked]
        for at in range(start, min(start + passes.SHARD, images), passes.BATCH):
            ids = np.arange(at, min(at + passes.BATCH, start + passes.SHARD, images))
            x = torch.randn(len(ids), *shape, generator=generator)

            def look(i: int, hidden: torch.Tensor, ids: np.ndarray = ids, part: list[Seen] = part) -> None:
                part[i].look(hidden, int(ids[0]), ids, ids * 10 // images)

            if what == "look" and ids[-1] + 1 < images:  # the last pass alone is made, beside all that is held by then
                tokens = (shape[1] // 16) * (shape[2] // 16) + layout.prefix
                for i, site in enumerate(sites):
                    look(i, torch.randn(len(ids), tokens, site.size, generator=generator).relu())
                continue
            with torch.no_grad(), hooks.hidden_units(model, sites, (lambda *_: None) if what == "forward" else look):
                model(x)
        if what != "forward":
            for block, more in zip(whole, part, strict=True):
                block.merge(more.columns())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def cost(args: argparse.Namespace) -> None:
    """The two bars, each peak by a process of its own."""

    def peak(what: str, images: int) -> float:
        command = [sys.executable, __file__, "--held", what, str(images)]
        return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])

    forward, looked = peak("forward", passes.BATCH), peak("look", args.images)
    few, many = peak("bundled", 500), peak("bundled", 5000)
    found = {"vit_b_16": {"images": args.images, "units": 36_864, "forward_mb": forward, "looked_mb": looked}}
    above, ratio = looked - forward, many / few
    missed = [f"{above:.0f} MB above the forward pass"] * (above > MEGABYTES) + [f"ratio {ratio:.3f}"] * (ratio > RATIO)
    bundled = {"mb_500": few, "mb_5000": many, "ratio": ratio}
    machine = device.machine(torch.device("cpu"))
    text = json.dumps({**found, "above_mb": above, "bundled": bundled, "machine": machine, "missed": missed})
    if args.json:
        args.json.write_text(text + "\n")
    print(text)
    sys.exit(1 if missed else 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a timm folder; without it the bundled model")
    parser.add_argument("--data", type=Path, help="a folder of images; without it the bundled ones")
    parser.add_argument("--per-class", type=int, default=400)
    parser.add_argument("--form", default="folded", choices=["folded", "raw", "normed", "cos"])
    parser.add_argument("--parts", nargs="+", default=PARTS)
    parser.add_argument("--work", type=Path, default=Path("runs/see"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--weights", action="store_true")
    parser.add_argument("--cost", action="store_true")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--held", nargs=2, help=argparse.SUPPRESS)  # one peak, in a process of its own
    args = parser.parse_args()
    if args.held:
        print(held(args.held[0], int(args.held[1])))
        return
    if args.weights:
        with torch.no_grad():
            weights(args)
        return
    if args.cost:
        cost(args)
        return
    made = pipeline.run(recipe_for(args), "run", reporter=Reporter())
    see = made["see"]
    if "alignment" in see:
        print("\n".join(table(see)))
    stage = next(stage for stage in made["stages"] if stage["name"] == "see")
    found = {"model": args.model.name if args.model else "bundled", "images": see["images"]["n"], "form": args.form}
    found |= {"seconds": stage["seconds"], "memory_mb": stage["peak_memory_mb"]}
    found |= {key: see["alignment"][key] for key in ("blocks", "distinct", "evidence") if "alignment" in see}
    found |= {key: see[key] for key in ("readout", "drift") if key in see}
    found |= {"selectivity": see["exemplars"]["selectivity"]} if "exemplars" in see else {}
    found["machine"] = made["machine"]
    text = json.dumps(found)
    if args.json:
        args.json.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
