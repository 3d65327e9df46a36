"""Strengths of a few units at every token of samples, and where an image's tokens lie in the image.

Legend: T tokens of a sample, V those of its image, U units.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from vitprune.core.device import device_of
from vitprune.model.sites.ffn import FfnSite
from vitprune.model.vlm import tokens
from vitprune.model.vlm.tokens import Sample
from vitprune.see.types import reading
from vitprune.see.types.reading import Of
from vitprune.see.types.shown import Unit

MEMORY = 1 << 30  # bytes of strengths that are held at once


@dataclass(slots=True)
class Watched:
    """One sample: its ids [T], the places of its image's and of its text's tokens, strengths [U, T] (0 at sinks), and the
    grid that its image's tokens make; None where that is not known."""

    ids: np.ndarray
    visual: np.ndarray
    text: np.ndarray
    strengths: np.ndarray
    grid: tuple[int, int] | None

    def map(self, unit: int) -> np.ndarray:
        """A unit's strengths at the image's tokens, [V]."""
        found: np.ndarray = self.strengths[unit, self.visual]
        return found

    def line(self, unit: int) -> np.ndarray:
        """A unit's strengths at the text's tokens."""
        found: np.ndarray = self.strengths[unit, self.text]
        return found


def watched(
    model: nn.Module, sites: Sequence[FfnSite], units: Sequence[Unit], samples: Sequence[Sample], of: Of, batch: int
) -> list[Watched]:
    """Every sample, units in the order given, in passes over as many blocks as `MEMORY` bytes hold at once."""
    config, blocks = getattr(model, "config", None), sorted({unit.block for unit in units})
    made = [_empty(sample, len(units), config) for sample in samples]
    longest = max(len(sample.ids) for sample in samples) if samples else 1
    size = max((sites[b].size for b in blocks), default=1)
    some = max(1, MEMORY // (4 * batch * longest * size))
    for start in range(0, len(blocks), some):
        now = blocks[start : start + some]
        for places, inputs in tokens.batches(samples, config, batch):
            one = inputs.to(device_of(model))
            found = dict(zip(now, reading.strength(model, [sites[b] for b in now], one, of), strict=True))
            for row, place in enumerate(places):
                sinks = one.kinds.sink[row].cpu().numpy()
                for u, unit in enumerate(units):
                    if unit.block in found:
                        values = found[unit.block][row, :, unit.number].cpu().numpy()
                        length = made[place].strengths.shape[1]
                        made[place].strengths[u] = np.where(sinks, 0, values)[:length]
    return made


def _empty(sample: Sample, units: int, config: Any) -> Watched:
    ids = sample.ids.numpy()
    visual = np.flatnonzero(ids == tokens.image_token(config))
    text = np.setdiff1d(np.arange(sample.start, len(ids)), visual)
    strengths = np.zeros((units, len(ids)), np.float32)
    return Watched(ids, visual, text, strengths, grid_of(sample, len(visual), config))


def grid_of(sample: Sample, count: int, config: Any) -> tuple[int, int] | None:
    """Rows and columns of the `count` tokens of a sample's one image; None for an image cut into tiles, and where the number
    is of no square."""
    sizes = sample.extras.get("image_grid_thw")
    if sizes is not None:
        merge = int(getattr(getattr(config, "vision_config", None), "spatial_merge_size", 1))
        frames, high, wide = (int(x) for x in sizes[0])
        grid = high // merge, wide // merge
        return grid if len(sizes) == frames == 1 and grid[0] * grid[1] == count else None
    pixels = sample.extras.get("pixel_values")
    if pixels is not None and pixels.dim() == 5 and pixels.shape[1] != 1:
        return None
    side = math.isqrt(count)
    return (side, side) if count and side * side == count else None
