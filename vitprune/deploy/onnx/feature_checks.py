"""How near the features of a backbone's ONNX file are to the fp32 slim model's, and the limit of each precision.

Legend: N images, D width, T tokens of one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vitprune.core.reading import Json
from vitprune.deploy import runtime


@dataclass(frozen=True, slots=True)
class Limit:
    """By how much the cosine may fall below 1: in the mean over the images, and of the worst one (None: any)."""

    mean: float
    worst: float | None


# fp16 carries eleven bits, so its worst image counts. int8 turns single images more; its mean has to stay small.
LIMITS = {"fp16": Limit(1e-4, 1e-2), "int8": Limit(0.02, None)}
BATCHES = 0.02  # by how much 1 - cosine may be with the size of the batch that an image is in


def cosines(expected: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Cosines [..., ] of vectors [..., D], float64; 0 where one of them is nothing."""
    x, y = expected.astype(np.float64), found.astype(np.float64)
    length = np.linalg.norm(x, axis=-1) * np.linalg.norm(y, axis=-1)
    made: np.ndarray = (x * y).sum(-1) / np.maximum(length, np.finfo(np.float64).tiny)
    return made


def compare(expected: np.ndarray, found: np.ndarray) -> dict[str, np.ndarray]:
    """Image by image [N] of [N, D] or [N, T, D]: the cosine, in the mean over its tokens, and the largest difference."""
    alike, gap = cosines(expected, found), np.abs(expected - found)
    return {
        "cosine": alike.reshape(len(alike), -1).mean(1),
        "gap": gap.reshape(len(gap), -1).max(1),
    }


def summary(every: Mapping[str, np.ndarray]) -> Json:
    """What report.json says of a file: mean and worst cosine of its features, of its tokens where it gives them, and the
    largest difference of a number."""
    gaps = [float(value.max()) for name, value in every.items() if name.endswith(".gap")]
    alike = every["features.cosine"]
    tokens = every.get("tokens.cosine")
    return {
        "n": len(alike),
        "cosine": float(alike.mean()),
        "least_cosine": float(alike.min()),
        "tokens_cosine": None if tokens is None else float(tokens.mean()),
        "max_abs_diff": float(np.max(gaps)),
    }


def batches_differ(made: Any, images: np.ndarray, batches: Sequence[int]) -> float:
    """Largest 1 - cosine of an image's features with the size of the batch that it is in."""
    whole = runtime.predict(made, images)
    return float(np.max([(1 - cosines(whole[:n], runtime.predict(made, images[:n]))).max() for n in batches]))


def checks(precision: str, path: str, seen: Json, batches: float, floor_points: float) -> list[Json]:
    """The checks of an fp16 or int8 file: name, value, limit and what was looked at. What the recipe allows int8 to lose
    (`int8_floor_points`, here points of cosine) is added to its limit."""
    limit = LIMITS[precision]
    allowed = floor_points / 100 if precision == "int8" else 0.0
    against = f"{path} against the fp32 slim model, {seen['n']} test images"
    made = [
        {
            "name": f"{precision} features on the test split",
            "value": 1 - seen["cosine"],
            "limit": limit.mean + allowed,
            "detail": f"mean of 1 - cosine; {against}",
        },
        {
            "name": f"{precision} features in batches of 1, 2 and 7",
            "value": batches,
            "limit": BATCHES,
            "detail": f"{path}: largest 1 - cosine of an image's features with the batch it is in",
        },
    ]
    if limit.worst is None:
        return made
    worst = {"value": 1 - seen["least_cosine"], "limit": limit.worst, "detail": f"largest 1 - cosine; {against}"}
    return [made[0], {"name": f"{precision} features of the worst image"} | worst, made[1]]
