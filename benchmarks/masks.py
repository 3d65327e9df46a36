"""Whether dissection masks mean anything on the bundled model, without a label on any pixel; each against its control.

    python benchmarks/masks.py [--per-class 100] [--json FILE]

The top unit of every class by what it writes, on images of that class, of the last block whose patches a logit can see
(`seen`: under a head that reads the class token, the one before the last) and, beside it, of the last block, where they reach
none (`last`). `on_object`: the masks' share on the garment (pixels above 0) over that of the same masks shifted at random,
with its interval over images; bar, of `seen`: above 1 for at least 6 of 10 classes. `deletion`: how much further the unit
falls when the mask's pixels are blackened than when the shifted mask's are, at its highest patch (`peak`, which is where the
mask is) and in the mean over all patches (`mean`); bar, of `seen` and `peak`: at least 9 of 10 units. `image_area`: pixels by
which `image` masks miss a fifth, ties aside; bar: 1. The last line is one JSON object; exit 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitprune.core import device
from vitprune.criteria.settings import Nothing
from vitprune.criteria.weights.class_alignment import class_alignment
from vitprune.images.batches import Images
from vitprune.images.sources.bundled import Bundled
from vitprune.model import families
from vitprune.model.load import opening
from vitprune.recipe import inputs
from vitprune.see.pictures import checks, maps, masks, reading

PERCENTILE, CLASSES, UNITS = 80, 6, 9
BLOCKS = {"seen": -2, "last": -1}
POOLED = {"peak": lambda found: found.amax((2, 3)), "mean": lambda found: found.mean((2, 3))}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--per-class", type=int, default=100)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    source = Bundled()
    index = np.concatenate([np.flatnonzero(source.class_of == c)[: args.per_class] for c in range(10)])
    found = {name: of_block(block, source, index) for name, block in BLOCKS.items()}
    seen = found["seen"]
    missed = [f"on_object: {seen['on_object_unit']} of 10"] * (seen["on_object_unit"] < CLASSES)
    missed += [f"deletion: {seen['deletion_peak']} of 10"] * (seen["deletion_peak"] < UNITS)
    area = max(one["image_area"] for one in found.values())
    missed += [f"image_area: {area} pixels off"] * (area > 1)
    about = {"model": "bundled", "per_class": args.per_class, "machine": device.machine(torch.device("cpu"))}
    text = json.dumps({**about, **found, "missed": missed})
    if args.json:
        args.json.write_text(text + "\n")
    print(text)
    sys.exit(1 if missed else 0)


def of_block(block: int, source: Bundled, index: np.ndarray) -> dict[str, Any]:
    """Every class's top unit of one block."""
    loaded = opening.open_model(inputs.Model(name="bundled"))
    model, site = loaded.model, families.ffn_sites(loaded.model)[block]
    top = class_alignment(model, families.ffn_sites(model), [], how=Nothing(), form="raw")[block].argmax(1).tolist()
    images, labels = next(Images(source, loaded.transform(), 1, np.arange(10)).batches(index, len(index)))
    found = maps.maps(model, site, top, images, "pre")
    upper = reading.Upper(len(images) * found[0, 0].numel(), PERCENTILE / 100, len(top))
    upper.add(found.transpose(0, 1).flatten(1))
    threshold, size = upper.value(), (images.shape[2], images.shape[3])
    black = torch.tensor([-m / s for m, s in zip(loaded.data_config["mean"], loaded.data_config["std"], strict=True)])
    rows: list[dict[str, Any]] = []
    area = 0.0
    for c, unit in enumerate(top):
        own, on = images[labels == c], found[labels == c][:, [c]]
        garment = source.pixels[index[labels.numpy() == c]] > 0
        row: dict[str, Any] = {"class": source.classes[c], "unit": f"{site.block}:{unit}"}
        made = {
            "unit": masks.unit_masks(on, size, threshold[[c]])[:, 0],
            "image": masks.image_masks(on, size, PERCENTILE)[:, 0],
        }
        area = max(area, beyond(maps.upsample(on.double(), size)[:, 0], made["image"]))
        for kind, mask in made.items():
            ratio = checks.on_object(mask.numpy(), garment)
            row[f"on_object_{kind}"] = None if ratio is None else [ratio.value, ratio.low, ratio.high]
        for name, pooled in POOLED.items():

            def value(x: Tensor, unit: int = unit, pooled: Any = pooled) -> Tensor:
                return pooled(maps.maps(model, site, [unit], x, "pre"))[:, 0]

            fall = checks.deletion(value, own, made["unit"], black)
            row[f"deletion_{name}"] = [float(fall.mean()), float(fall.std(ddof=1) / len(fall) ** 0.5)]
        rows.append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)
    done = {
        f"on_object_{kind}": sum((r[f"on_object_{kind}"] or [0, 0])[1] > 1 for r in rows) for kind in ("unit", "image")
    }
    off = sum((r["on_object_unit"] or [0, 0, 1])[2] < 1 for r in rows)
    done |= {"off_object_unit": off}  # wholly below 1: the mask keeps to the background
    done |= {f"deletion_{name}": sum(r[f"deletion_{name}"][0] > 0 for r in rows) for name in POOLED}
    return {"block": site.block, **done, "image_area": area, "rows": rows}


def beyond(large: Tensor, made: Tensor) -> float:
    """How far the masks are from a fifth of the pixels, at most; pixels that tie at the threshold may be on either side."""
    fifth, count = (1 - PERCENTILE / 100) * made[0].numel(), made.sum((1, 2))
    below = large.masked_fill(made, float("-inf")).amax((1, 2), keepdim=True)
    tied = (large == below).sum((1, 2)) - 1
    return float(torch.maximum(count - fifth, fifth - count - tied).max())


if __name__ == "__main__":
    main()
