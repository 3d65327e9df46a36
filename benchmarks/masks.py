"""Whether dissection masks mean anything on the bundled model, without a label on any pixel; each against its control.

    python benchmarks/masks.py [--per-class 100]

The top unit of every class by what it writes, on images of that class. `on_object`: the masks' share on the garment (pixels
above 0) over that of the same masks shifted at random, with its interval over images; bar: above 1 for at least 6 of 10
classes. `deletion`: how much further the unit falls when the mask's pixels are blackened than when the shifted mask's are;
bar: at least 9 of 10 units. `image_area`: pixels by which `image` masks miss a fifth, ties aside; bar: 1. The last
line is one JSON object; exit 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

import numpy as np
import torch

from vitprune.criteria.settings import Nothing
from vitprune.criteria.weights.class_alignment import class_alignment
from vitprune.images.batches import Images
from vitprune.images.sources.bundled import Bundled
from vitprune.model import families
from vitprune.model.load import opening
from vitprune.recipe import inputs
from vitprune.see.pictures import checks, maps, masks, reading

PERCENTILE, CLASSES, UNITS = 80, 6, 9


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--per-class", type=int, default=100)
    parser.add_argument("--block", type=int, default=-1)
    args = parser.parse_args()
    loaded = opening.open_model(inputs.Model(name="bundled"))
    model, sites, source = loaded.model, families.ffn_sites(loaded.model), Bundled()
    site = sites[args.block]
    scores = class_alignment(model, sites, [], how=Nothing(), form="raw")[args.block]
    top = scores.argmax(1).tolist()
    index = np.concatenate([np.flatnonzero(source.class_of == c)[: args.per_class] for c in range(10)])
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
        for kind in ("unit", "image"):
            made = (
                masks.unit_masks(on, size, threshold[[c]])
                if kind == "unit"
                else masks.image_masks(on, size, PERCENTILE)
            )[:, 0]
            if kind == "image":
                area = max(area, beyond(maps.upsample(on.double(), size)[:, 0], made))
            ratio = checks.on_object(made.numpy(), garment)
            row[f"on_object_{kind}"] = None if ratio is None else [ratio.value, ratio.low, ratio.high]
            fall = checks.deletion(lambda x, j=unit: peak(model, site, j, x), own, made, black)  # type: ignore[misc]
            row[f"deletion_{kind}"] = [float(fall.mean()), float(fall.std(ddof=1) / len(fall) ** 0.5)]
        rows.append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)
    done = {
        f"{what}_{kind}": sum(
            (r[f"{what}_{kind}"] or [0, 0])[1] > 1 if what == "on_object" else r[f"{what}_{kind}"][0] > 0 for r in rows
        )
        for what in ("on_object", "deletion")
        for kind in ("unit", "image")
    }
    missed = [f"on_object_unit: {done['on_object_unit']} of 10"] * (done["on_object_unit"] < CLASSES)
    missed += [f"deletion_unit: {done['deletion_unit']} of 10"] * (done["deletion_unit"] < UNITS)
    missed += [f"image_area: {area} pixels off"] * (area > 1)
    print(json.dumps({"per_class": args.per_class, "block": site.block, **done, "image_area": area, "rows": rows,
                      "missed": missed}))  # fmt: skip
    sys.exit(1 if missed else 0)


def beyond(large: torch.Tensor, made: torch.Tensor) -> float:
    """How far the masks are from a fifth of the pixels, at most; pixels that tie at the threshold may be on either side."""
    fifth, count = (1 - PERCENTILE / 100) * made[0].numel(), made.sum((1, 2))
    below = large.masked_fill(made, float("-inf")).amax((1, 2), keepdim=True)
    tied = (large == below).sum((1, 2)) - 1
    return float(torch.maximum(count - fifth, fifth - count - tied).max())


def peak(model: torch.nn.Module, site: Any, unit: int, images: torch.Tensor) -> torch.Tensor:
    """The unit's mean over the patches, before its activation."""
    return maps.maps(model, site, [unit], images, "pre").mean((2, 3))[:, 0]


if __name__ == "__main__":
    main()
