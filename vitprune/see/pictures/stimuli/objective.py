"""What an image is made for: one unit, or several with weights; and what keeps the images of one unit apart.

Legend: B images, T tokens, H hidden units, M images of one target.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Mix = Literal["equal", "score", "softmax"]


@dataclass(frozen=True, slots=True)
class Target:
    """Units as (position of the site, unit), and how much each counts; `output` is the class that they write, by which the
    image is judged (None: by none)."""

    units: tuple[tuple[int, int], ...]
    weights: tuple[float, ...] = (1.0,)
    output: int | None = None

    @property
    def name(self) -> str:
        """The units as `block:unit`, joined by +."""
        return "+".join(f"{site}:{unit}" for site, unit in self.units)


def mixed(units: Sequence[tuple[int, int]], scores: Sequence[float], how: Mix, output: int | None = None) -> Target:
    """Several units as one target. `score`: a score's share of the sum, a negative one as 0 (all of them: equal)."""
    if how == "softmax":
        raised = [math.exp(s - max(scores)) for s in scores]
    else:
        raised = [max(float(s), 0.0) for s in scores] if how == "score" else [1.0] * len(scores)
    raised = raised if sum(raised) > 0 else [1.0] * len(scores)
    return Target(tuple(units), tuple(v / sum(raised) for v in raised), output)


def value(target: Target, row: int, found: dict[int, Tensor], tokens: dict[int, slice]) -> Tensor:
    """Σ w·(mean of the unit over its tokens) of image `row`, from the hidden units [B, T, H] by site."""
    parts = [
        weight * found[site][row, tokens[site], unit].mean()
        for (site, unit), weight in zip(target.units, target.weights, strict=True)
    ]
    return torch.stack(parts).sum()


def likeness(hidden_MTH: Tensor) -> Tensor:
    """Σ over tokens and over pairs of images (each with itself too) of the cosine of their hidden units.

    One image has T, whatever it is, and no gradient.
    """
    unit = F.normalize(hidden_MTH, dim=2, eps=1e-12)
    return torch.einsum("mth,nth->", unit, unit)
