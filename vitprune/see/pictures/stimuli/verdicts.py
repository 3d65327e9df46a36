"""What a model says of stimulus images, and how that stands beside chance, another model and random units.

An image that only its own model recognises is an adversarial one, so that the rates of the model itself, of a judge and of
random units belong together. Legend: n images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from vitprune.exam.metrics import wilson
from vitprune.images.decode import as_mode
from vitprune.see.pictures.stimuli.ascent import Stimulus
from vitprune.see.pictures.stimuli.space import Space


@dataclass(frozen=True, slots=True)
class Rate:
    """How many of `n` images were given their class, with Wilson's 95 % interval; `failed` images could not be made."""

    right: int
    n: int
    low: float | None
    high: float | None
    failed: int = 0

    @property
    def share(self) -> float | None:
        """The share right, None of no image."""
        return self.right / self.n if self.n else None


@torch.no_grad()
def own_verdicts(model: nn.Module, made: Sequence[Stimulus], space: Space) -> list[int | None]:
    """The output that the model itself gives each image, by its quantised pixels; None for a failed one."""
    return [None if one.pixels is None else int(model(space.seen(one.pixels[None])).argmax()) for one in made]


@torch.no_grad()
def judged(
    judge: nn.Module, made: Sequence[Stimulus], transform: Callable[[Image.Image], Tensor], channels: int
) -> list[int | None]:
    """The output that another model gives each image, prepared as any image of its own; None for a failed one."""
    device = next(judge.parameters()).device
    found: list[int | None] = []
    for one in made:
        if one.pixels is None:
            found.append(None)
            continue
        picture = as_mode(Image.fromarray(one.pixels.squeeze()), "L" if channels == 1 else "RGB")
        found.append(int(judge(transform(picture)[None].to(device)).argmax()))
    return found


def rate(
    made: Sequence[Stimulus], verdicts: Sequence[int | None], output_of: Sequence[int | None] | None = None
) -> Rate:
    """How many images were given the class of their target; `output_of` says which of the judge's outputs is which of the
    model's (None: a class that the judge does not have, whose images are left out)."""
    right, n = 0, 0
    for one, verdict in zip(made, verdicts, strict=True):
        aimed = one.target.output
        if aimed is not None and output_of is not None:
            aimed = output_of[aimed]
        if verdict is not None and aimed is not None:
            right, n = right + (verdict == aimed), n + 1
    low, high = wilson(right, n) if n else (None, None)
    return Rate(right, n, low, high, sum(one.failed is not None for one in made))


def apart(one: Rate, other: Rate) -> float | None:
    """Fisher's exact two-sided p that two rates are the same; None where one has no image."""
    if not one.n or not other.n:
        return None
    from scipy.stats import fisher_exact  # large, and not before it is wanted

    table = np.array([[one.right, one.n - one.right], [other.right, other.n - other.right]])
    return float(fisher_exact(table).pvalue)
