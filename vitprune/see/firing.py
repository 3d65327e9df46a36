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
    """Of one block, at one place of `seen.READS`; of equal means the lower class comes first. Of units whose sign is nobody's
    choice the means are taken by their size."""
    classes = seen.classes
    labels = np.array(sorted(classes))
    counts = np.array([classes[int(label)].images for label in labels], np.float64)
    sums = np.stack([classes[int(label)].of[read] for label in labels]).astype(np.float64)
    squares = seen.squares[read]
    means = np.abs(sums / counts[:, None]) if seen.asked.sized else sums / counts[:, None]
    order = np.argsort(-means, axis=0, kind="stable")[:TOP]
    total, every = counts.sum(), sums.sum(0)
    within = squares - np.square(every) / total
    apart = (np.square(sums) / counts[:, None]).sum(0) - np.square(every) / total
    moves = within > 1e-9 * np.maximum(squares, 1e-30)
    between = np.divide(apart, within, where=moves, out=np.full(len(within), np.nan))
    chance = (len(labels) - 1) / (total - 1) if total > 1 else 0.0
    return Fires(labels[order].T, np.take_along_axis(means, order, 0).T, between.clip(0, 1), float(chance))


def selectivity(values_NU: np.ndarray, labels_N: np.ndarray) -> np.ndarray:
    """How often a unit is higher on an image of the class that it fires for than on one of another, [U]: 0.5 is chance.

    The class is chosen on every second image of each class, the AUROC is that of the others, so that choosing adds nothing to
    it; equal values count half. NaN for a unit that never changes on those, or where a half has fewer than two classes.
    """
    from scipy.stats import rankdata  # large, and not before it is wanted

    second = np.zeros(len(labels_N), bool)
    for label in np.unique(labels_N):
        second[np.flatnonzero(labels_N == label)[1::2]] = True
    classes = np.unique(labels_N[second])
    if len(classes) < 2:
        return np.full(values_NU.shape[1], np.nan)
    means = np.stack([values_NU[~second & (labels_N == c)].mean(0) for c in classes])
    chosen = classes[means.argmax(0)]
    judged, labels = values_NU[second], labels_N[second]
    own = labels[:, None] == chosen
    inside = own.sum(0)
    above = (rankdata(judged, axis=0) * own).sum(0) - inside * (inside + 1) / 2
    found: np.ndarray = above / (inside * (len(labels) - inside))
    return np.where(judged.max(0) > judged.min(0), found, np.nan)


def removed_evidence(mean_H: np.ndarray, aligned_H: np.ndarray, kept_H: np.ndarray) -> tuple[float, float]:
    """A class's direct evidence that went with the removed units of a block, Σ m·a over them, and Σ |m·a| over all."""
    evidence = mean_H * aligned_H
    return float(evidence[~kept_H].sum()), float(np.abs(evidence).sum())
