"""How units' masks meet labelled pixels: counts that add up, intersection over union, and what chance would give.

Legend: n images, H units, g x g' the grid, h x w pixels, L labels in their order (0 is no label).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vitprune.see.pictures.maps import upsample

SHOWS = 0.04  # IoU above which a unit is said to show a label
AT_ONCE = 1 << 22  # pixels of masks


def at_most(labels_nHW: np.ndarray, edge: int) -> np.ndarray:
    """The labels with their longer side at most `edge`, each pixel the one at its middle."""
    scale = max(1.0, max(labels_nHW.shape[1:]) / edge)
    rows, columns = (
        ((np.arange(max(round(size / scale), 1)) + 0.5) * size / max(round(size / scale), 1)).astype(int)
        for size in labels_nHW.shape[1:]
    )
    return labels_nHW[:, rows][:, :, columns]


@dataclass(frozen=True, slots=True)
class Best:
    """Per unit the label of its greatest IoU (0 where it meets none), that IoU, and what chance would give: [H] each,
    NaN where nothing was there."""

    label: np.ndarray
    iou: np.ndarray
    chance: np.ndarray


@dataclass(frozen=True, slots=True)
class Counted:
    """Pixels in whole numbers: `both` [H, L] in a unit's mask and under a label, `masked` [H], `labelled` [L]; `labels` [L]
    says which. Counts of any portions of the images add up to those of the whole."""

    labels: np.ndarray
    both: np.ndarray
    masked: np.ndarray
    labelled: np.ndarray

    @classmethod
    def of(cls, maps_nHgg: Tensor, labels_nhw: np.ndarray, threshold_H: Tensor) -> Counted:
        """Of images' maps: the mask is what is strictly above the unit's threshold."""
        labels, place = np.unique(labels_nhw, return_inverse=True)
        size, units = labels_nhw.shape[1:], maps_nHgg.shape[1]
        under = torch.nn.functional.one_hot(torch.from_numpy(place.reshape(len(labels_nhw), -1)), len(labels)).float()
        both = torch.zeros(units, len(labels), dtype=torch.int64)
        step = max(1, AT_ONCE // (size[0] * size[1]))
        for maps, marks in zip(maps_nHgg, under.to(maps_nHgg.device), strict=True):
            for at in range(0, units, step):
                some = slice(at, at + step)
                large = upsample(maps[None, some], (size[0], size[1]))[0].flatten(1)
                mask = large > threshold_H[some, None].to(large)
                both[some] += (mask.float() @ marks).long().cpu()  # whole numbers, far below 2²⁴
        counts = np.bincount(place.ravel(), minlength=len(labels)).astype(np.int64)
        return cls(labels.astype(np.int64), both.numpy(), both.sum(1).numpy(), counts)

    def __add__(self, other: Counted) -> Counted:
        labels = np.union1d(self.labels, other.labels)
        both = np.zeros((len(self.masked), len(labels)), np.int64)
        labelled = np.zeros(len(labels), np.int64)
        for one in (self, other):
            place = np.searchsorted(labels, one.labels)
            both[:, place] += one.both
            labelled[place] += one.labelled
        return Counted(labels, both, self.masked + other.masked, labelled)

    def iou(self) -> np.ndarray:
        """Intersection over union, [H, L]; NaN where neither has a pixel."""
        return self._over(self.both.astype(np.float64))

    def chance(self) -> np.ndarray:
        """The same, had each mask as many pixels anywhere: the intersection is masked · labelled / all, [H, L]."""
        return self._over(self.masked[:, None] * (self.labelled / self.labelled.sum())[None])

    def _over(self, both: np.ndarray) -> np.ndarray:
        union = self.masked[:, None] + self.labelled[None] - both
        return np.divide(both, union, out=np.full(union.shape, np.nan), where=union > 0)

    def share(self, place: int) -> float:
        """The share of all pixels that have a label."""
        return float(self.labelled[place] / self.labelled.sum())

    def best(self) -> Best:
        """Of each unit; of equal ones the lower label."""
        real = np.flatnonzero(self.labels != 0)
        if not len(real):
            nothing = np.full(len(self.masked), np.nan)
            return Best(np.zeros(len(self.masked), np.int64), nothing, nothing)
        iou, rows = np.nan_to_num(self.iou()[:, real], nan=-1.0), np.arange(len(self.masked))
        first = iou.argmax(1)
        best = iou[rows, first]
        return Best(np.where(best > 0, self.labels[real][first], 0), best, self.chance()[:, real][rows, first])

    def packed(self, start: str) -> dict[str, np.ndarray]:
        """As columns of a part."""
        names = ("labels", "both", "masked", "labelled")
        return {f"{start}{name}": getattr(self, name) for name in names}

    @classmethod
    def unpacked(cls, columns: Mapping[str, np.ndarray], start: str) -> Counted:
        """What `packed` was made of."""
        return cls(*(columns[f"{start}{name}"] for name in ("labels", "both", "masked", "labelled")))
