"""What a criterion returns, and how per-image sums become it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from vitprune.criteria.curves import Curve, Unit
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

    `ties` has the same shapes and decides between equal scores. `images` is how many images took part. `curves`, where the
    criterion knows what each removal costs: its scores are then those of the curves, C is 1. A site's rows may be read from a
    file each time they are asked for (results.py): ask once.
    """

    criterion: str
    sites: Mapping[str, Tensor]
    ties: Mapping[str, Tensor] | None = None
    images: int = 0
    paths: PathSet | None = None
    curves: dict[str, Curve] | None = None

    @classmethod
    def whole(cls, criterion: str, sites: Sequence[str], found: Sequence[Tensor | Curve], images: int = 0) -> Scores:
        """The scores of a criterion that looks at the whole, from what it gave for each of `sites`."""
        pairs = list(zip(sites, found, strict=True))
        rows = {name: (one.scores[None] if isinstance(one, Curve) else one).float().cpu() for name, one in pairs}
        return cls(
            criterion, rows, images=images, curves={n: one for n, one in pairs if isinstance(one, Curve)} or None
        )

    @classmethod
    def from_file(cls, path: Path, criterion: str, sites: Sequence[str]) -> Scores:
        """What `to_bytes` gave; a file of an earlier version has scores alone."""
        with safe_open(path, "pt") as file:
            rows = {name: file.get_tensor(f"scores.{name}") for name in sites}
            unit = cast(Unit | None, (file.metadata() or {}).get("unit"))
            if unit is None:
                return cls(criterion, rows)
            parts = {name: (file.get_tensor(f"order.{name}"), file.get_tensor(f"costs.{name}")) for name in sites}
        return cls(criterion, rows, curves={name: Curve(*part, unit) for name, part in parts.items()})

    def to_bytes(self) -> bytes:
        """A file of the scores, and of the curves where there are some."""
        columns = {f"scores.{name}": block.contiguous() for name, block in self.sites.items()}
        for name, curve in (self.curves or {}).items():
            columns |= {f"order.{name}": curve.order.contiguous(), f"costs.{name}": curve.costs.contiguous()}
        units = {curve.unit for curve in (self.curves or {}).values()}
        return save(columns, {"unit": units.pop()} if units else None)

    def in_memory(self) -> Scores:
        """The same, read from its file once and for all."""
        return replace(self, sites=dict(self.sites), ties=dict(self.ties) if self.ties else None)

    @property
    def classes(self) -> int:
        """Number of class rows (1: class-free)."""
        return next(iter(self.sites.values())).shape[0]

    @property
    def rows(self) -> list[Tensor]:
        """[C, n] site by site, without the names."""
        return list(self.sites.values())
