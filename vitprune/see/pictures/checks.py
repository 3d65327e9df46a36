"""Whether masks mean anything where no pixel is labelled: do they lie on the object, and does the unit need what is in them?

Every figure has its control: the same mask somewhere else, the same area somewhere else. Legend: n images, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

DRAWS = 2000


@dataclass(frozen=True, slots=True)
class Ratio:
    """A ratio with its 95 % interval over images."""

    value: float
    low: float
    high: float


def on_object(masks_nHW: np.ndarray, object_nHW: np.ndarray, shifts: int = 20, seed: int = 0) -> Ratio | None:
    """The masks' share on the object over that of the same masks shifted at random (around the edges): 1 is chance.

    None where no mask has a pixel, or no shifted one meets the object.
    """
    generator = np.random.default_rng(seed)
    own = (masks_nHW & object_nHW).sum((1, 2)).astype(np.float64)
    moved = np.zeros(len(masks_nHW))
    for i, (mask, what) in enumerate(zip(masks_nHW, object_nHW, strict=True)):
        for y, x in generator.integers(0, mask.shape, (shifts, 2)):
            moved[i] += (np.roll(mask, (int(y), int(x)), (0, 1)) & what).sum() / shifts
    if not own.sum() or not moved.sum():
        return None
    drawn = generator.integers(0, len(own), (DRAWS, len(own)))
    below = np.maximum(moved[drawn].sum(1), 1e-12)
    low, high = np.percentile(own[drawn].sum(1) / below, [2.5, 97.5])
    return Ratio(float(own.sum() / moved.sum()), float(low), float(high))


@torch.no_grad()
def deletion(
    activation: Callable[[Tensor], Tensor],
    images: Tensor,
    masks_nHW: Tensor,
    fill: Tensor,
    draws: int = 5,
    seed: int = 0,
) -> np.ndarray:
    """Per image how much further the unit falls when the mask's pixels are filled than when a random area is, [n].

    `activation` maps images [n, C, H, W] to the unit's value [n]; `fill` [C] is what black is to the model; the random area
    has as many pixels, the mask itself shifted at random around the edges.
    """
    before = activation(images)
    fall = before - activation(torch.where(masks_nHW[:, None], fill[:, None, None], images))
    generator = torch.Generator().manual_seed(seed)
    other = torch.zeros_like(fall)
    size = torch.tensor(masks_nHW.shape[1:])
    for _ in range(draws):
        shifts = (torch.rand(len(images), 2, generator=generator) * size).long().tolist()
        moved = torch.stack([m.roll((y, x), (0, 1)) for m, (y, x) in zip(masks_nHW, shifts, strict=True)])
        other += (before - activation(torch.where(moved[:, None], fill[:, None, None], images))) / draws
    return (fall - other).double().cpu().numpy()
