"""Which classes a unit fires for: those on whose images its mean activation is highest; and how much evidence went.

Legend: H units, C classes that have images.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vitprune.see.seen import Seen

TOP = 3


@dataclass(frozen=True, slots=True)
class Fires:
    """Per unit the classes of its highest means: classes and means [H, up to 3], and `between` [H], the share of its variance
    over images that lies between classes (NaN where it never changes). `chance`: what that is for labels at random."""

    classes: np.ndarray
    means: np.ndarray
    between: np.ndarray
    chance: float


def means_of(seen: Seen, read: str) -> dict[int, np.ndarray]:
    """Per class the mean activation [H] of one block at one place of `seen.READS`."""
    return {label: seen.classes[label].of[read] / seen.classes[label].images for label in sorted(seen.classes)}


def fires(seen: Seen, read: str) -> Fires:
    """Of one block, at one place of `seen.READS`; of equal means the lower class comes first."""
    classes = seen.classes
    labels = np.array(sorted(classes))
    counts = np.array([classes[int(label)].images for label in labels], np.float64)
    sums = np.stack([classes[int(label)].of[read] for label in labels]).astype(np.float64)
    squares = seen.squares[read]
    means = sums / counts[:, None]
    order = np.argsort(-means, axis=0, kind="stable")[:TOP]
    total, every = counts.sum(), sums.sum(0)
    within = squares - np.square(every) / total
    apart = (np.square(sums) / counts[:, None]).sum(0) - np.square(every) / total
    moves = within > 1e-9 * np.maximum(squares, 1e-30)
    between = np.divide(apart, within, where=moves, out=np.full(len(within), np.nan))
    chance = (len(labels) - 1) / (total - 1) if total > 1 else 0.0
    return Fires(labels[order].T, np.take_along_axis(means, order, 0).T, between.clip(0, 1), float(chance))


def removed_evidence(mean_H: np.ndarray, aligned_H: np.ndarray, kept_H: np.ndarray) -> tuple[float, float]:
    """A class's direct evidence that went with the removed units of a block, Σ m·a over them, and Σ |m·a| over all."""
    evidence = mean_H * aligned_H
    return float(evidence[~kept_H].sum()), float(np.abs(evidence).sum())
