"""What a criterion returns, and how per-image sums become it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from vitprune.criteria.paths import Gathered, PathSet

if TYPE_CHECKING:  # recipes are read, and checked, without either
    import numpy as np
    from torch import Tensor


def to_scores(
    gathered: Gathered, criterion: str, outputs: int, ranks_by: Literal["frequency", "mean"] = "frequency"
) -> Scores:
    """Rows for all `outputs` classes.

    `frequency`: the share of the class's images whose path has the unit, ties decided by the mean score;
    `mean`: the mean score itself.
    """
    per_class = np.maximum(gathered.images, 1)[:, None]

    def rows(blocks: list[np.ndarray]) -> list[Tensor]:
        whole = [np.zeros((outputs, block.shape[1]), np.float32) for block in blocks]
        for out, block in zip(whole, blocks, strict=True):
            out[gathered.classes] = block / per_class
        return [torch.from_numpy(out) for out in whole]

    images, columns = int(gathered.images.sum()), gathered.paths if len(gathered.paths.image) else None
    if ranks_by == "mean":
        return Scores(criterion, rows(gathered.sums), None, images)
    return Scores(criterion, rows(gathered.counts), rows(gathered.sums), images, columns)


@dataclass(frozen=True, slots=True)
class Scores:
    """What a criterion returns: per block [C, n] float32, larger is kept first; C is 1 when it knows no classes.

    `ties` has the same shapes and decides between equal scores. `images` is how many images took part.
    """

    criterion: str
    blocks: list[Tensor]
    ties: list[Tensor] | None = None
    images: int = 0
    paths: PathSet | None = None

    @property
    def classes(self) -> int:
        """Number of class rows (1: class-free)."""
        return self.blocks[0].shape[0]
