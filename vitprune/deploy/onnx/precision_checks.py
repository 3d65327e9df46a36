"""Is an fp16 or int8 file still the slim model? What is measured on the test split, and the limit of each precision.

A top-1 that differs counts unless the fp32 model itself was undecided there: a near tie is a lead of the logits that
the precision cannot resolve, stated as a share of the logits' spread (root mean square, each image's mean removed), so
that a head with small logits is held as tightly as one with large ones.

Legend: N images, C outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vitprune.core.reading import Json
from vitprune.deploy import runtime


@dataclass(frozen=True, slots=True)
class Limit:
    """`differing`: share of the images whose top-1 may differ, near ties aside; `tie`: lead of a near tie, in spreads;
    `probability`: by how much a probability may change, the `worst` one or on the mean of the images' worst."""

    differing: float
    tie: float
    probability: float
    worst: bool


# fp16 carries eleven bits, so its worst image counts. int8 moves single images much more; its mean has to stay small.
LIMITS = {"fp16": Limit(0.01, 0.02, 0.05, True), "int8": Limit(0.05, 0.1, 0.05, False)}
BATCHES = 0.02  # by how much a probability may change with the size of the batch that the image is in


def probabilities(logits_NC: np.ndarray) -> np.ndarray:
    """Softmax, float64."""
    shifted = np.exp(logits_NC.astype(np.float64) - logits_NC.max(1, keepdims=True))
    return shifted / shifted.sum(1, keepdims=True)


def batches_differ(path: Path, real: np.ndarray, provider: str, batches: Sequence[int]) -> float:
    """Largest change of an image's probability with the size of the batch that it is in."""
    made = runtime.session(path, provider)
    whole = probabilities(runtime.predict(made, real))
    parts = [probabilities(runtime.predict(made, real[:n])) for n in batches]
    return max(float(np.abs(part - whole[: len(part)]).max()) for part in parts)


def compare(expected_NC: np.ndarray, found_NC: np.ndarray, tie: float = 0.0) -> Json:
    """How far a file's logits are from the fp32 slim model's on the same images; `differing` leaves near ties out."""
    top, other, rows = expected_NC.argmax(1), found_NC.argmax(1), np.arange(len(expected_NC))
    centred = expected_NC.astype(np.float64) - expected_NC.mean(1, keepdims=True)
    lead = centred[rows, top] - centred[rows, other]
    change_N = np.abs(probabilities(expected_NC) - probabilities(found_NC)).max(1)
    return {
        "n": len(rows),
        "max_abs_diff": float(np.abs(expected_NC - found_NC).max()),
        "same_top1": int((top == other).sum()),
        "differing": int(((top != other) & (lead > tie * np.sqrt(np.square(centred).mean()))).sum()),
        "max_probability_diff": float(change_N.max()),
        "mean_probability_diff": float(change_N.mean()),
    }


def checks(precision: str, path: str, seen: Json, batches: float, floor_points: float) -> list[Json]:
    """The checks of an fp16 or int8 file: name, value, limit and what was looked at.

    What the recipe allows int8 to lose (`int8_floor_points`) is added to its limits, and one image may always differ
    in int8: on a few test images its share says nothing.
    """
    limit, n = LIMITS[precision], seen["n"]
    allowed = floor_points / 100 if precision == "int8" else 0.0
    share = max(limit.differing + allowed, 1 / n) if precision == "int8" else limit.differing
    away = n - seen["same_top1"]
    against = f"{path} against the fp32 slim model, {n} test images"
    which = "largest" if limit.worst else "mean over the images of the largest"
    change = seen["max_probability_diff" if limit.worst else "mean_probability_diff"]
    return [
        {
            "name": f"{precision} top-1 on the test split",
            "value": seen["differing"] / n,
            "limit": share,
            "detail": f"share of images whose top-1 differs: {away}, of them {away - seen['differing']} near ties "
            f"that do not count; {against}",
        },
        {
            "name": f"{precision} probabilities on the test split",
            "value": change,
            "limit": limit.probability + allowed,
            "detail": f"{which} change of a probability; {against}",
        },
        {
            "name": f"{precision} in batches of 1, 2 and 7",
            "value": batches,
            "limit": BATCHES,
            "detail": f"{path}: largest change of an image's probability with the batch it is in",
        },
    ]
