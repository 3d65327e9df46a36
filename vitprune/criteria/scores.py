"""What a criterion returns, and how per-image sums become it."""

from __future__ import annotations

from collections.abc import Sequence
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
    gathered: Gathered,
    criterion: str,
    sites: Sequence[str],
    outputs: int,
    ranks_by: Literal["frequency", "mean"] = "frequency",
) -> Scores:
    """Rows for all `outputs` classes, by the names of the `sites` that were scored.

    `frequency`: the share of the class's images whose path has the unit, ties decided by the mean score;
    `mean`: the mean score itself.
    """
    per_class = np.maximum(gathered.images, 1)[:, None]

    def rows(blocks: list[np.ndarray]) -> dict[str, Tensor]:
        whole = [np.zeros((outputs, block.shape[1]), np.float32) for block in blocks]
        for out, block in zip(whole, blocks, strict=True):
            out[gathered.classes] = block / per_class
        return {name: torch.from_numpy(out) for name, out in zip(sites, whole, strict=True)}

    images, columns = int(gathered.images.sum()), gathered.paths if len(gathered.paths.image) else None
    if ranks_by == "mean":
        return Scores(criterion, rows(gathered.sums), None, images)
    return Scores(criterion, rows(gathered.counts), rows(gathered.sums), images, columns)


@dataclass(frozen=True, slots=True)
class Scores:
    """What a criterion returns: by site name [C, n] float32, larger is kept first; C is 1 when it knows no classes.

    `ties` has the same shapes and decides between equal scores. `images` is how many images took part.
    """

    criterion: str
    sites: dict[str, Tensor]
    ties: dict[str, Tensor] | None = None
    images: int = 0
    paths: PathSet | None = None

    @property
    def classes(self) -> int:
        """Number of class rows (1: class-free)."""
        return next(iter(self.sites.values())).shape[0]

    @property
    def rows(self) -> list[Tensor]:
        """[C, n] site by site, without the names."""
        return list(self.sites.values())
