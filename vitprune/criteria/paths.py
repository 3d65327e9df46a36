"""Neuron paths: the TopK units of each image, gathered into class frequencies.

Legend: B images of a batch, K classes met, C classes in all, L blocks, n hidden units, t units per image and block.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save
from torch import Tensor

if TYPE_CHECKING:  # recipes are read, and checked, without either
    import numpy as np
    from torch import Tensor


@dataclass(slots=True)
class Gathered:
    """What streams out of discovery, for the classes met [K]: counts, score sums per block [K, n], images, columns.

    Only classes that were met have rows, so that a shard of a thousand-class run is not a thousand rows high. Counts are
    unsigned, of 16 or 32 bits; sums are float64.
    """

    classes: np.ndarray
    counts: list[np.ndarray]
    sums: list[np.ndarray]
    images: np.ndarray
    paths: PathSet

    @classmethod
    def of(cls, scores: list[Tensor], labels: Tensor, index: np.ndarray, t: int) -> Gathered:
        """One batch: `scores` per block [B, n], `labels` [B], `index` [B] positions in the image source; t = 0: no paths."""
        label = labels.cpu().numpy().astype(np.int64)
        classes, row = np.unique(label, return_inverse=True)
        tops = [block.topk(t, 1) for block in scores]  # one transfer of each kind for all blocks
        units = torch.stack([top.indices for top in tops], 1).cpu().numpy().astype(np.int32)
        best = torch.stack([top.values for top in tops], 1).float().cpu().numpy()
        of_blocks = torch.cat(scores, 1).cpu().double().split([block.shape[1] for block in scores], 1)
        counts, sums = [], []
        for i, block in enumerate(of_blocks):
            count = np.zeros((len(classes), block.shape[1]), smallest(np.array([len(label)])))
            np.add.at(count, (row[:, None], units[:, i]), 1)
            total = np.zeros(count.shape)
            for r, score in zip(row, block.numpy(), strict=True):
                total[r] += score
            counts.append(count)
            sums.append(total)
        columns = PathSet(np.asarray(index, np.int64), label, units, best)
        return cls(classes, counts, sums, np.bincount(row), columns)

    def columns(self) -> dict[str, np.ndarray]:
        """Everything by name."""
        p = self.paths
        columns = {"image": p.image, "label": p.label, "units": p.units, "scores": p.scores}
        columns |= {"classes": self.classes, "images": self.images}
        for i, (count, total) in enumerate(zip(self.counts, self.sums, strict=True)):
            columns |= {f"counts.{i}": count, f"sums.{i}": total}
        return {k: np.ascontiguousarray(v) for k, v in columns.items()}

    def to_bytes(self) -> bytes:
        """Columns as safetensors."""
        whole = self.columns()
        return save(whole, metadata={"sha256": _checksum(whole)})

    @classmethod
    def from_file(cls, path: str) -> Gathered:
        """Inverse of `to_bytes`. Raises ValueError when the columns are not what was written."""
        with safe_open(path, "numpy") as f:
            c = {key: f.get_tensor(key) for key in f.keys()}  # noqa: SIM118
            notes = dict(f.metadata() or {})
        if notes.get("sha256") != _checksum(c):
            raise ValueError(f"{path}: damaged")
        return cls.of_columns(c)

    @classmethod
    def of_columns(cls, c: dict[str, np.ndarray]) -> Gathered:
        """Inverse of `columns`."""
        depth = c["units"].shape[1]
        return cls(
            c["classes"],
            [c[f"counts.{i}"] for i in range(depth)],
            [c[f"sums.{i}"] for i in range(depth)],
            c["images"],
            PathSet(c["image"], c["label"], c["units"], c["scores"]),
        )


def smallest(images: np.ndarray) -> np.dtype[np.generic]:
    """The unsigned type that counts up to the most of `images` need, of 16 bits or of 32."""
    return np.dtype(np.uint16 if int(images.max(initial=0)) <= np.iinfo(np.uint16).max else np.uint32)


def _checksum(columns: dict[str, np.ndarray]) -> str:
    result = hashlib.sha256()
    for name in sorted(columns):
        result.update(f"{name} {columns[name].dtype} {columns[name].shape}".encode() + columns[name].tobytes())
    return result.hexdigest()


def merge(parts: Sequence[Gathered]) -> Gathered:
    """Sum the counts and sums in float64 in the order given, join the columns."""
    if not parts:
        raise ValueError("nothing to merge")
    columns = [np.concatenate([getattr(p.paths, c) for p in parts]) for c in ("image", "label", "units", "scores")]
    whole = total(parts, np.unique(np.concatenate([p.classes for p in parts])))
    counts = [block.astype(smallest(whole.images)) for block in whole.counts]
    return Gathered(whole.classes, counts, whole.sums, whole.images, PathSet(*columns))


def total(parts: Iterable[Gathered], classes: np.ndarray) -> Gathered:
    """Sums over the parts for `classes` (sorted), without the columns: memory does not grow with the number of images."""
    result: Gathered | None = None
    for part in parts:
        result = plus(result, part, classes)
    if result is None:
        raise ValueError("nothing to add up")
    return result


def plus(result: Gathered | None, part: Gathered, classes: np.ndarray) -> Gathered:
    """The sums for `classes` (sorted) with one more part added in place; None stands for nothing yet."""
    if result is None:
        shapes = [(len(classes), block.shape[1]) for block in part.counts]
        depth = part.paths.units.shape[1]
        none = PathSet(*(np.zeros(0, np.int64) for _ in range(2)), *(np.zeros((0, depth, 0), d) for d in ("i4", "f4")))
        counts, sums = ([np.zeros(shape, d) for shape in shapes] for d in (np.uint32, np.float64))
        result = Gathered(classes, counts, sums, np.zeros(len(classes), np.int64), none)
    row = np.searchsorted(classes, part.classes)
    result.images[row] += part.images
    for i, (count, score) in enumerate(zip(part.counts, part.sums, strict=True)):
        result.counts[i][row] += count.astype(np.uint32, copy=False)  # int64 in parts of earlier versions
        result.sums[i][row] += score
    return result


def mode_per_rank(columns: PathSet, classes: Sequence[int], widths: Sequence[int]) -> np.ndarray:
    """The class path of the authors' code: per class, block and rank the unit most often there, int64 [C, L, t].

    Ranks are looked at one by one, so that a unit can stand in a class path twice; ties go to the smallest index. A class
    without images has -1 everywhere.
    """
    _, depth, t = columns.units.shape
    made = np.full((len(classes), depth, t), -1, np.int64)
    for row, c in enumerate(classes):
        own = columns.units[columns.label == c]
        if len(own):
            for block, rank in np.ndindex(depth, t):
                made[row, block, rank] = np.bincount(own[:, block, rank], minlength=widths[block]).argmax()
    return made


@dataclass(frozen=True, slots=True)
class PathSet:
    """Neuron paths in columns: image [N] int64, label [N] int64, units [N, L, t] int32, scores [N, L, t] float32.

    Units of one image and block are in descending order of score.
    """

    image: np.ndarray
    label: np.ndarray
    units: np.ndarray
    scores: np.ndarray
