"""What report.json says of a road, and the sentence on top of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import torch

from vitprune.api.vlm.recipe import VlmRecipe
from vitprune.core import places
from vitprune.core.device import machine, versions
from vitprune.core.reading import Json, read_text
from vitprune.core.version import __version__

MADE_BY = "vitprune"
SCHEMA = 1
UNSAID = "its widths"
NO_CLAIM = "nothing was removed, or no control was asked for: no claim"


def build(recipe: VlmRecipe, folder: Path, architecture: str, device: torch.device, found: Json) -> Json:
    """The record; `found` has what the steps left, and what they took."""
    rows = found["exam"]
    made: Json = {
        "made_by": MADE_BY, "version": __version__, "schema": SCHEMA, "kind": "vision-language", "name": recipe.name,
        "model": architecture, "criterion": recipe.criterion.name, "recovery": recipe.recovery, "keep": recipe.keep,
        "keep_types": recipe.keep_types, "prune": list(recipe.prune),
        "said": verdict(rows, found.get("images")), "complete": True, "missing": [],
        "usage": usage(architecture, folder, rows), "recipe_yaml": read_text(folder / "recipe.yaml", 1 << 20),
        "versions": versions() | {"transformers": metadata.version("transformers")}, "machine": machine(device),
    }  # fmt: skip
    return made | found


def usage(architecture: str, folder: Path, rows: Sequence[Json]) -> str:
    """The lines that load the smaller model; empty where there is none."""
    if len(rows) < 2:
        return ""
    place = places.place(folder / "model")
    if rows[1].get("plain_from_pretrained"):
        return (
            f"from transformers import AutoProcessor, {architecture}\n\n"
            f"model = {architecture}.from_pretrained({place!r}).eval()\n"
            f"processor = AutoProcessor.from_pretrained({place!r})"
        )
    return (
        "from pathlib import Path\n\nfrom vitprune.model.vlm.opening import open_vlm\n\n"
        f"vlm = open_vlm(Path({place!r}))  # transformers has no words for {rows[1].get('unsaid') or UNSAID}\n"
        "model, processor = vlm.model, vlm.processor"
    )


def verdict(rows: Sequence[Json], images: Sequence[int] | None = None) -> str:
    """One sentence: whether the pruned model is ahead of every control, by NLL with the right image. Where the pairs' own
    figures are there, it is ahead of or behind the best control only as far as these pairs can tell;
    `images`: as in `difference`."""
    if len(rows) < 3:
        return NO_CLAIM
    control = min(rows[2:], key=lambda row: float(row["nll"]["right"]))
    best, own, name = control["nll"]["right"], rows[1]["nll"]["right"], rows[1]["model"]
    way, told = "is ahead of" if own < best else "does not beat", ""
    if (paired := difference(rows[1], control, images)) is not None:
        mean, reach = paired
        told = f"; paired difference {mean:+.4f} ± {reach:.4f} nats".replace("-", "−")
        if abs(mean) <= reach:
            way = "cannot be told by these pairs from"
    d = next((d for d in range(3, 7) if f"{own:.{d}f}" != f"{best:.{d}f}"), 3)  # digits: as many as tell the two apart
    return f"{name} ({own:.{d}f} nats) {way} random units at the same widths under the same repair (best {best:.{d}f}{told})"


def difference(one: Json, other: Json, images: Sequence[int] | None = None) -> tuple[float, float] | None:
    """The mean of one model's nats less the other's over the same pairs, and the reach of its 95 % interval (normal); None
    where these are not there. `images`: of every pair the number of its image; pairs of one image count together, as a
    cluster (each its own image by default)."""
    pairs = list(zip(one.get("each", []), other.get("each", []), strict=False))
    images = list(range(len(pairs))) if images is None else images
    if not len(pairs) == len(one.get("each", [])) == len(other.get("each", [])) == len(images) or len(set(images)) < 2:
        return None
    differences = [a - b for a, b in pairs]
    mean = sum(differences) / len(pairs)
    sums = dict.fromkeys(images, 0.0)
    for image, d in zip(images, differences, strict=True):
        sums[image] += d - mean
    count = len(sums)
    variance = sum((total * (count / len(pairs))) ** 2 for total in sums.values()) / (count - 1)
    return mean, 1.96 * math.sqrt(variance / count)
