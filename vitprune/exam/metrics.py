"""Accuracy, intervals and paired tests from logits; no model in sight."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # recipes are read, and checked, without either
    import numpy as np


BOOTSTRAPS = 2000
PART = 1 << 22  # logits looked at in float64 at a time


def metrics(logits: np.ndarray, labels: np.ndarray, head: Sequence[int] | None = None, seed: int = 0) -> Metrics:
    """Scores of logits [N, C] against labels [N]; `head` masks the other outputs before softmax and argmax.

    The interval is `interval`'s. Raises ValueError for no images or logits that are not finite.
    """
    if not len(labels):
        raise ValueError("no test images of these classes")
    if not np.isfinite(logits).all():
        raise ValueError("the model gave logits that are not finite")
    hit = hits(logits, labels, head)
    true_probability = np.concatenate([_of_true(logits[rows], labels[rows], head) for rows in _parts(logits)])
    there, right = (np.bincount(of, minlength=logits.shape[1]) for of in (labels, labels[hit]))
    of_class = [r / n if n else float("nan") for r, n in zip(right.tolist(), there.tolist(), strict=True)]
    return Metrics(float(hit.mean()), interval(hit, seed), float(true_probability.mean()), of_class, len(hit))


def _parts(logits: np.ndarray) -> list[slice]:
    """Rows [N, C] in parts of about `PART` numbers, none of a single row: what is made in float64 stays small."""
    count = max(1, min(len(logits) // 2, -(-logits.size // PART)))
    ends = np.linspace(0, len(logits), count + 1).astype(int).tolist()
    return [slice(start, stop) for start, stop in itertools.pairwise(ends)]


def _of_true(logits: np.ndarray, labels: np.ndarray, head: Sequence[int] | None) -> np.ndarray:
    """The probability [B] of the true class."""
    logits = _closed(logits.astype(np.float64), head)
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(shifted[np.arange(len(labels)), labels] / shifted.sum(1))


def interval(hit: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """95 % interval of the share that is right: percentile bootstrap over images, Wilson's where that is a single point.

    All right or all wrong, every draw is the same; nine of nine right is no proof of 100 %, though.
    """
    if hit.all() or not hit.any():
        return wilson(int(hit.sum()), len(hit))
    generator, step = np.random.default_rng(seed), max(1, PART // len(hit))
    sizes = [min(step, BOOTSTRAPS - start) for start in range(0, BOOTSTRAPS, step)]
    shares = [hit[generator.integers(0, len(hit), (size, len(hit)), dtype=np.int32)].mean(1) for size in sizes]
    low, high = map(float, np.percentile(np.concatenate(shares), [2.5, 97.5]))
    return (low, high) if low < high else wilson(int(hit.sum()), len(hit))


def wilson(right: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of `right` out of `n`: never a single point, never outside 0 to 1."""
    from scipy.stats import binomtest  # large, and not before it is wanted

    found = binomtest(right, n).proportion_ci(method="wilson")
    return float(found.low) if right else 0.0, float(found.high) if right < n else 1.0


def hits(logits: np.ndarray, labels: np.ndarray, head: Sequence[int] | None = None) -> np.ndarray:
    """Which images the logits [N, C] get right, bool [N]; `head` as in `metrics`."""
    return np.concatenate([_closed(logits[rows], head).argmax(1) for rows in _parts(logits)]) == labels


def kl(dense: np.ndarray, logits: np.ndarray, head: Sequence[int] | None = None) -> float:
    """Mean over the images of KL(dense ‖ other) in nats, from logits [N, C] of both; `head` as in `metrics`."""
    columns = slice(None) if head is None else list(head)
    every = []
    for rows in _parts(logits):
        p, q = (_log_softmax(found[rows, columns].astype(np.float64)) for found in (dense, logits))
        every.append((np.exp(p) * (p - q)).sum(1))
    return max(float(np.concatenate(every).mean()), 0.0)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(1, keepdims=True)))


def _closed(logits: np.ndarray, head: Sequence[int] | None) -> np.ndarray:
    """The logits with the outputs outside `head` at minus infinity."""
    if head is None:
        return logits
    closed = np.ones(logits.shape[1], bool)
    closed[list(head)] = False
    return np.where(closed, -np.inf, logits)


def mcnemar(one: np.ndarray, other: np.ndarray) -> float:
    """Exact two-sided McNemar test: the p-value of as lopsided a split of the images that only one of the two got right."""
    only, not_only = int((one & ~other).sum()), int((other & ~one).sum())
    if only + not_only == 0:
        return 1.0
    from scipy.stats import binomtest

    return float(binomtest(only, only + not_only).pvalue)


@dataclass(frozen=True, slots=True)
class Metrics:
    """One evaluation on n images; accuracies are fractions, per_class is [C] with NaN for classes without images."""

    top1: float
    top1_ci95: tuple[float, float]
    mean_true_probability: float
    per_class: list[float]
    n: int
