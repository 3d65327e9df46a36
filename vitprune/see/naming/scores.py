"""How well an explanation tells what a unit does: predicted against true activation on images it was not made from.

The figure is Pearson's correlation over all places of all images pooled (OpenAI's neuron explainer, 2023); beside it that of
explanations of other units of the block, which is what any sentence reaches. Where the truth or the prediction never
changes there is none, never 0. Legend: N images, H units, B draws.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

OTHERS = 20  # explanations of other units, per unit
DRAWS = 200  # of the bootstrap over images
FLAT = 1e-9  # of the mean square, below which a variance is none


@dataclass(frozen=True, slots=True)
class Sums:
    """Per image and unit the sums over an image's places of the prediction p and the truth y: [N, H] each; `places` of an
    image, or of each [N]."""

    places: int | np.ndarray
    p: np.ndarray
    y: np.ndarray
    pp: np.ndarray
    yy: np.ndarray
    py: np.ndarray

    @classmethod
    def of(cls, predicted: np.ndarray, true: np.ndarray) -> Sums:
        """Of predictions and truth [N, H], or [N, places, H]."""
        p, y = (v[:, None] if v.ndim == 2 else v for v in (predicted, true))
        p, y = p.astype(np.float64), y.astype(np.float64)
        return cls(p.shape[1], p.sum(1), y.sum(1), (p * p).sum(1), (y * y).sum(1), (p * y).sum(1))

    def correlation(self, weights: np.ndarray | None = None) -> np.ndarray:
        """Pooled over images, [H]; for every row of `weights` [B, N], how often an image counts, [B, H]. NaN where one
        never changes."""
        every = weights if weights is not None else np.ones((1, len(self.p)))
        n = (every * self.places).sum(1, keepdims=True)
        p, y, pp, yy, py = (every @ v for v in (self.p, self.y, self.pp, self.yy, self.py))
        with np.errstate(divide="ignore", invalid="ignore"):
            own, other = pp - p * p / n, yy - y * y / n
            moves = (own > FLAT * np.maximum(pp, 1e-30)) & (other > FLAT * np.maximum(yy, 1e-30))
            found = np.clip((py - p * y / n) / np.sqrt(np.where(moves, own * other, 1)), -1, 1)
        made: np.ndarray = np.where(moves, found, np.nan)
        return made if weights is not None else made[0]

    def explained(self) -> np.ndarray:
        """1 − mean squared error over the mean square of the truth, [H]; NaN where that is 0."""
        error, whole = (self.pp - 2 * self.py + self.yy).sum(0), self.yy.sum(0)
        made: np.ndarray = np.where(whole > 0, 1 - error / np.where(whole > 0, whole, 1), np.nan)
        return made

    def interval(self, seed: int, middle: bool = False) -> np.ndarray:
        """95 % of the correlation by a seeded bootstrap over images, [2, H]; with `middle` of the units' median, [2]."""
        count = len(self.p)
        if count < 2:
            return np.full((2,) if middle else (2, self.p.shape[1]), np.nan)
        generator = np.random.default_rng(seed)
        weights = generator.multinomial(count, np.full(count, 1 / count), DRAWS).astype(np.float64)
        drawn = self.correlation(weights)
        if middle:
            known = drawn[:, ~np.isnan(drawn).any(0)]
            drawn = np.median(known, 1) if known.shape[1] else np.full(DRAWS, np.nan)
        made: np.ndarray = np.nanquantile(drawn, (0.025, 0.975), axis=0) if not np.isnan(drawn).all() else drawn[:2]
        return made


def others(units: int, seed: int) -> np.ndarray:
    """For every unit others of its block, [H, up to 20], none of them itself, each at most once."""
    count = min(OTHERS, units - 1)
    generator = np.random.default_rng(seed)
    if units <= 4 * OTHERS:
        order = generator.random((units, units - 1)).argsort(1)[:, :count] if units > 1 else np.zeros((1, 0), np.int64)
    else:
        order = np.stack([generator.choice(units - 1, count, replace=False) for _ in range(units)])
    made: np.ndarray = order + (order >= np.arange(units)[:, None])  # past the unit itself
    return made


def shuffled(predicted_NH: np.ndarray, true_NH: np.ndarray, seed: int) -> np.ndarray:
    """The mean correlation of each unit with predictions made for others of its block, [H]; NaN where there is none."""
    units = true_NH.shape[1]
    drawn = others(units, seed)
    p, y = _standard(predicted_NH), _standard(true_NH)
    made = np.full(units, np.nan)
    for j in range(units):
        found = p[:, drawn[j]].T @ y[:, j] / len(y)
        known = found[~np.isnan(found)]
        made[j] = known.mean() if len(known) else np.nan
    return made


def _standard(values: np.ndarray) -> np.ndarray:
    """Columns with mean 0 and deviation 1; NaN where one never changes."""
    wide = values.astype(np.float64)
    mean, square = wide.mean(0), (wide * wide).mean(0)
    variance = ((wide - mean) ** 2).mean(0)
    moves = variance > FLAT * np.maximum(square, 1e-30)
    made: np.ndarray = np.where(moves, (wide - mean) / np.sqrt(np.where(moves, variance, 1)), np.nan)
    return made


def by_class(values: np.ndarray, labels: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """The class's mean of `values` [N, ...] for images of the classes `asked` [M]: [M, ...]. Of a class that has no image
    among them the mean of all."""
    whole = values.mean(0, dtype=np.float64)
    table = {int(c): values[labels == c].mean(0, dtype=np.float64) for c in np.unique(labels)}
    made: np.ndarray = np.stack([table.get(int(c), whole) for c in asked])
    return made


def told(score: float, control: float, ci95: np.ndarray | None = None, why: str | None = None) -> dict[str, Any]:
    """A score for JSON: null, with a reason, where there is none."""
    found = [None if v != v else float(v) for v in (score, control)]
    reason = None if found[0] is not None else why or "the activation or the prediction never changes"
    ends = None if ci95 is None or np.isnan(ci95).any() or found[0] is None else [float(v) for v in ci95]
    return {"score": found[0], "control": found[1], "ci95": ends, "why": reason}
