"""What the repair made of the kept units, and which kept unit stands in for a removed one.

Legend: H units of a block, K of them kept, M tokens, D width. Units are numbered as in the dense model.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

NAMES = ("x", "y", "xx", "yy", "xy", "dd")


@dataclass
class Pairs:
    """Sums over tokens of each kept unit's activations in the dense model, x, and in the slim one, y; `dd` of (x − y)²."""

    tokens: int
    sums: dict[str, np.ndarray]

    @classmethod
    def of(cls, dense_MK: Tensor, slim_MK: Tensor) -> Pairs:
        """Of a batch's tokens."""
        x, y = dense_MK.double(), slim_MK.double()
        found = {"x": x, "y": y, "xx": x * x, "yy": y * y, "xy": x * y, "dd": (x - y) ** 2}
        return cls(len(x), {name: value.sum(0).cpu().numpy() for name, value in found.items()})

    def plus(self, other: Pairs) -> Pairs:
        """Over the tokens of both."""
        return Pairs(self.tokens + other.tokens, {name: self.sums[name] + other.sums[name] for name in NAMES})

    @property
    def correlation(self) -> np.ndarray:
        """[K]; NaN where a unit never changes, exactly 1 where it does in both models alike."""
        n, s = self.tokens, self.sums
        one, other = (s[f"{a}{a}"] - s[a] ** 2 / n for a in ("x", "y"))
        moves = (one > 1e-9 * np.maximum(s["xx"], 1e-30)) & (other > 1e-9 * np.maximum(s["yy"], 1e-30))
        shared = s["xy"] - s["x"] * s["y"] / n
        scale = np.sqrt(np.where(moves, one * other, 1.0))
        found = np.where(s["dd"] == 0, 1.0, np.clip(shared / scale, -1, 1))
        made: np.ndarray = np.where(moves, found, np.nan)
        return made


def turned(dense_KD: Tensor, slim_KD: Tensor) -> np.ndarray:
    """Cosine [K] of what each kept unit writes before and after; exactly 1 where it is the same, NaN where one is nothing."""
    x, y = dense_KD.double().cpu().numpy(), slim_KD.double().cpu().numpy()
    lengths = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    cosine = np.divide((x * y).sum(1), lengths, where=lengths > 0, out=np.full(len(x), np.nan))
    made: np.ndarray = np.where((x == y).all(1) & (lengths > 0), 1.0, np.clip(cosine, -1, 1))
    return made


@dataclass(frozen=True, slots=True)
class Twins:
    """Per removed unit of a block (numbers `removed`) the kept unit whose activations go most with or against its own, and
    their correlation; −1 and NaN for a unit that never changes."""

    removed: np.ndarray
    twin: np.ndarray
    correlation: np.ndarray


def twins(covariance_HH: np.ndarray, kept_H: np.ndarray) -> Twins:
    """From the covariance of the dense model's activations; of equal ones the lower unit."""
    removed, kept = np.flatnonzero(~kept_H), np.flatnonzero(kept_H)
    sd = np.sqrt(np.maximum(np.diagonal(covariance_HH), 0)).astype(np.float64)
    moves = sd > 1e-6 * max(float(sd.max(initial=0)), 1e-30)
    scale = np.where(moves, sd, 1.0)
    table = covariance_HH[np.ix_(removed, kept)] / scale[removed, None] / scale[kept]
    table = np.where(moves[kept], table, 0.0)
    if not len(removed) or not len(kept):
        return Twins(removed, np.full(len(removed), -1), np.full(len(removed), np.nan))
    best = np.abs(table).argmax(1)
    found = np.clip(table[np.arange(len(removed)), best], -1, 1)
    there = moves[removed]
    return Twins(removed, np.where(there, kept[best], -1), np.where(there, found, np.nan))


def by_chance(candidates: int, images: int) -> float:
    """What the best of so many unrelated units comes to, about: the largest of as many correlations over `images`."""
    if images < 2 or candidates < 1:
        return 0.0
    return float(min(1.0, np.sqrt(2 * np.log(2 * candidates) / images)))


def rank_correlation(x: np.ndarray, y: np.ndarray, seed: int, draws: int = 9999) -> tuple[float, float] | None:
    """Spearman's rho of two columns and its two-sided p by `draws` seeded permutations; None where one does not vary."""
    a, b = _ranks(x), _ranks(y)
    if len(a) < 3 or a.std() == 0 or b.std() == 0:
        return None
    a, b = (a - a.mean()) / a.std(), (b - b.mean()) / b.std()
    rho = float((a * b).mean())
    generator = np.random.default_rng(seed)
    shuffled = np.array([(a * generator.permutation(b)).mean() for _ in range(draws)])
    return rho, float((1 + (np.abs(shuffled) >= abs(rho) - 1e-12).sum()) / (1 + draws))


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks, equal values their mean one."""
    order = np.sort(values)
    low, high = np.searchsorted(order, values, "left"), np.searchsorted(order, values, "right")
    return (low + high - 1) / 2
