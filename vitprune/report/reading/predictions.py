"""What both models answered for every test image, from the file that a record names.

Legend: N test images, C classes, B bins.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vitprune.core.reading import Json
from vitprune.report.reading.beside import Beside
from vitprune.report.reading.values import clean, mapping

MAX_OUTPUTS = 2000
BINS = 15  # of confidence, equally wide


@dataclass(frozen=True, slots=True)
class Predictions:
    """Outputs [N]: the true one and both models' answers; `confidence`: the answers' probabilities [N], {} in old files."""

    label: np.ndarray
    answers: dict[str, np.ndarray]
    confidence: dict[str, np.ndarray]
    names: dict[int, str]

    def right(self, model: str) -> np.ndarray:
        """Which images a model gets right, bool [N]."""
        return np.asarray(self.answers[model] == self.label)

    def flips(self) -> tuple[int, int, int, int]:
        """Images that only the dense model gets right, only the slim one, both, and neither."""
        dense, slim = self.right("dense"), self.right("slim")
        only, gained, both = int((dense & ~slim).sum()), int((slim & ~dense).sum()), int((slim & dense).sum())
        return only, gained, both, len(dense) - only - gained - both

    def confusion(self) -> tuple[list[int], np.ndarray, np.ndarray] | None:
        """Outputs [C] that are a true one or an answer; how often each true one was taken for each, dense and slim [C, C].
        None of more than `MAX_OUTPUTS`."""
        outputs, places = np.unique(np.concatenate([self.label, *self.answers.values()]), return_inverse=True)
        if len(outputs) > MAX_OUTPUTS:
            return None
        true, *others = np.split(places.reshape(-1), 3)
        counts = []
        for answer in others:
            made = np.zeros((len(outputs), len(outputs)), np.int64)
            np.add.at(made, (true, answer), 1)
            counts.append(made)
        return outputs.tolist(), counts[0], counts[1]

    def name(self, output: int) -> str:
        """The output's class, or its number where the record has no name."""
        return self.names.get(output, f"output {output}")


@dataclass(frozen=True, slots=True)
class Reliability:
    """Per bin of confidence that has images: mean confidence, share right and images [B]; `ece`: the mean distance of the
    two, weighted by images; `chance`: what it would be on average of a model without any, by so few images."""

    confidence: np.ndarray
    right: np.ndarray
    images: np.ndarray
    ece: float
    chance: float


def read(record: Json, group: str, beside: Beside) -> Predictions | None:
    """The predictions of a class set, None where they are not there or do not fit together."""
    arrays = beside.arrays(mapping(record.get("predictions")).get(group))
    columns = [arrays.get(name) for name in ("label", "dense", "slim")]
    found = [c for c in columns if c is not None and c.ndim == 1 and c.dtype.kind in "iu" and len(c)]
    if len(found) < 3 or len({len(column) for column in found}) > 1:
        return None
    confidence = {name: arrays.get(f"{name}_confidence") for name in ("dense", "slim")}
    sure = {
        name: np.nan_to_num(c).clip(0, 1)
        for name, c in confidence.items()
        if c is not None and c.shape == found[0].shape and c.dtype.kind == "f"
    }
    names = mapping(mapping(record.get("outputs")).get(group))
    known = {int(key): clean(name) for key, name in names.items() if key.isdecimal() and len(key) < 10}
    return Predictions(found[0], {"dense": found[1], "slim": found[2]}, sure if len(sure) == 2 else {}, known)


def reliability(confidence: np.ndarray, right: np.ndarray) -> Reliability:
    """Calibration of answers with probabilities [N] of which `right` [N] are right, in `BINS` bins of equal width.

    The expected calibration error of C. Guo et al. (ICML 2017). `chance` takes each bin's share right as normally
    distributed about its confidence, so that their distance is √(2/π) standard errors on average.
    """
    bins = np.minimum((confidence.astype(np.float64) * BINS).astype(int), BINS - 1)
    images = np.bincount(bins, minlength=BINS)
    there = images > 0
    n = images[there]
    mean, share = (np.bincount(bins, x.astype(np.float64), BINS)[there] / n for x in (confidence, right))
    weight = n / n.sum()
    error = np.sqrt(2 / np.pi * mean * (1 - mean) / n)
    return Reliability(mean, share, n, float(weight @ np.abs(mean - share)), float(weight @ error))
