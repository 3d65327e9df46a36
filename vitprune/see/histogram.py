"""Counts of each unit's activations in 1,024 bins that grow with their range, and quantiles from them.

A bin is a power of two wide and starts at a multiple of that, both said by the unit's least and greatest value alone. So two
bins of one width make one of the next exactly, and the counts of parts add up to those of the whole, to the bit.
Legend: H units.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

BINS = 1024
CHUNK = 1 << 18  # activations binned at once
FINEST = 36  # powers of two below the largest value: what float32 cannot tell apart needs no bins of its own


@dataclass(frozen=True, slots=True)
class Histogram:
    """Per unit: least and greatest value [H], and counts [H, BINS] in its bins."""

    low: np.ndarray
    high: np.ndarray
    counts: np.ndarray

    @classmethod
    def of(cls, values: Tensor) -> Histogram:
        """Of a batch's activations, [..., H]."""
        every = tuple(range(values.ndim - 1))
        low, high = (end(every).double().cpu().numpy() for end in (values.amin, values.amax))
        step = max(1, CHUNK * len(low) // values.numel())
        exponent, start = _bins(low, high)
        scale, first = torch.from_numpy(np.exp2(-exponent)), torch.from_numpy(start)
        counts = np.empty((len(low), BINS), np.uint32)
        for at in range(0, len(low), step):
            some = slice(at, at + step)
            place = (values[..., some].cpu().double() * scale[some]).floor_().sub_(first[some]).long()
            place += torch.arange(place.shape[-1]) * BINS
            found = torch.bincount(place.flatten(), minlength=place.shape[-1] * BINS)
            counts[some] = found.view(-1, BINS).numpy()
        return cls(low, high, counts)

    def joined(self, other: Histogram) -> Histogram:
        """The counts of both, in the bins of their common range."""
        low, high = np.minimum(self.low, other.low), np.maximum(self.high, other.high)
        counts = _moved(self, low, high)
        counts += _moved(other, low, high)
        return Histogram(low, high, counts)

    @property
    def width(self) -> np.ndarray:
        """How wide each unit's bins are, [H]."""
        made: np.ndarray = np.exp2(_bins(self.low, self.high)[0])
        return made

    def quantile(self, q: float) -> np.ndarray:
        """Each unit's quantile [H], as numpy defines it, to within a bin."""
        exponent, start = _bins(self.low, self.high)
        place = q * (int(self.counts[0].sum()) - 1)
        below, part = int(place), place - int(place)
        reached = np.cumsum(self.counts, 1, dtype=np.int64)
        ends = [(reached > rank).argmax(1) for rank in (below, min(below + 1, int(reached[0, -1]) - 1))]
        lower, upper = ((start + end + 0.5) * np.exp2(exponent) for end in ends)
        made: np.ndarray = np.clip(lower + part * (upper - lower), self.low, self.high)
        return made

    def packed(self) -> dict[str, np.ndarray]:
        """As columns of a part; most bins are empty, so the counts are compressed."""
        squeezed = zlib.compress(self.counts.tobytes(), 1)
        return {"low": self.low, "high": self.high, "counts": np.frombuffer(squeezed, np.uint8)}

    @classmethod
    def unpacked(cls, columns: dict[str, np.ndarray]) -> Histogram:
        """What `packed` was made of."""
        counts = np.frombuffer(zlib.decompress(columns["counts"].tobytes()), np.uint32)
        return cls(columns["low"], columns["high"], counts.reshape(-1, BINS))


def _bins(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The exponent of two of each unit's bins, the least that 1,024 of them suffice for, and the first bin's number."""
    largest = np.maximum(np.abs(low), np.abs(high))
    finest = np.frexp(np.where(largest > 0, largest, 2.0**-100))[1] - float(FINEST)
    span = np.where(high > low, high - low, 1.0)
    exponent = np.where(high > low, np.frexp(span / BINS)[1] - 2.0, finest)
    exponent = np.maximum(exponent, finest)
    while True:
        step = np.exp2(-exponent)
        start = np.floor(low * step)
        short = np.floor(high * step) - start >= BINS
        if not short.any():
            return exponent, start
        exponent = exponent + short


def _moved(given: Histogram, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """The counts in the bins of a wider range, [H, BINS]."""
    (old, first), (new, start) = _bins(given.low, given.high), _bins(low, high)
    counts = given.counts.copy()
    every = np.flatnonzero((old != new) | (first != start))
    for at in range(0, len(every), CHUNK // BINS // 4):
        moved = every[at : at + CHUNK // BINS // 4]
        numbers = first[moved, None] + np.arange(BINS)
        place = np.floor(numbers * np.exp2(old - new)[moved, None]) - start[moved, None]
        rows = np.arange(len(moved))[:, None] * BINS
        flat = (rows + place.clip(0, BINS - 1)).astype(np.int64)  # what lies outside is empty
        made = np.bincount(flat.ravel(), given.counts[moved].ravel(), minlength=len(moved) * BINS)
        counts[moved] = made.reshape(-1, BINS)
    return counts
