"""Neuron paths: the TopK units of each image, gathered into class frequencies, utilisation and similarity.

Legend: B images of a batch, C classes, L blocks, n hidden units, t units per image and block.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save
from torch import Tensor

from vitprune.types import PathSet, Scores


@dataclass(slots=True)
class Gathered:
    """What streams out of discovery: counts and score sums per block [C, n] float64, images per class [C], columns."""

    counts: list[np.ndarray]
    sums: list[np.ndarray]
    images: np.ndarray
    paths: PathSet

    @classmethod
    def of(cls, scores: list[Tensor], labels: Tensor, index: np.ndarray, t: int, classes: int) -> Gathered:
        """One batch: `scores` per block [B, n], `labels` [B], `index` [B] positions in the image source."""
        label = labels.cpu().numpy().astype(np.int64)
        units, best, counts, sums = [], [], [], []
        for block in scores:
            top = block.topk(t, 1)
            unit = top.indices.cpu().numpy().astype(np.int32)
            units.append(unit)
            best.append(top.values.float().cpu().numpy())
            count = np.zeros((classes, block.shape[1]))
            np.add.at(count, (label[:, None], unit), 1)
            total = np.zeros((classes, block.shape[1]))
            np.add.at(total, label, block.double().cpu().numpy())
            counts.append(count)
            sums.append(total)
        paths = PathSet(np.asarray(index, np.int64), label, np.stack(units, 1), np.stack(best, 1))
        return cls(counts, sums, np.bincount(label, minlength=classes), paths)

    def to_bytes(self) -> bytes:
        """Columns as safetensors."""
        p = self.paths
        columns = {"image": p.image, "label": p.label, "units": p.units, "scores": p.scores, "images": self.images}
        for i, (count, total) in enumerate(zip(self.counts, self.sums, strict=True)):
            columns |= {f"counts.{i}": count, f"sums.{i}": total}
        whole = {k: np.ascontiguousarray(v) for k, v in columns.items()}
        return save(whole, metadata={"sha256": _checksum(whole)})

    @classmethod
    def from_file(cls, path: str) -> Gathered:
        """Inverse of `to_bytes`. Raises ValueError when the columns are not what was written."""
        with safe_open(path, "numpy") as f:
            c = {key: f.get_tensor(key) for key in f.keys()}  # noqa: SIM118
            if (f.metadata() or {}).get("sha256") != _checksum(c):
                raise ValueError(f"{path}: damaged")
        depth = c["units"].shape[1]
        return cls(
            [c[f"counts.{i}"] for i in range(depth)],
            [c[f"sums.{i}"] for i in range(depth)],
            c["images"],
            PathSet(c["image"], c["label"], c["units"], c["scores"]),
        )


def _checksum(columns: dict[str, np.ndarray]) -> str:
    result = hashlib.sha256()
    for name in sorted(columns):
        result.update(name.encode() + columns[name].tobytes())
    return result.hexdigest()


def merge(parts: Iterable[Gathered]) -> Gathered:
    """Sum the counts and sums in float64, join the columns in the order given."""
    all_parts = list(parts)
    if not all_parts:
        raise ValueError("nothing to merge")
    depth = len(all_parts[0].counts)
    columns = [np.concatenate([getattr(p.paths, c) for p in all_parts]) for c in ("image", "label", "units", "scores")]
    return Gathered(
        [np.sum([p.counts[i] for p in all_parts], axis=0) for i in range(depth)],
        [np.sum([p.sums[i] for p in all_parts], axis=0) for i in range(depth)],
        np.sum([p.images for p in all_parts], axis=0),
        PathSet(*columns),
    )


def to_scores(gathered: Gathered, criterion: str) -> Scores:
    """Class frequencies (share of the class's images whose path has the unit), ties decided by the mean summed score."""
    per_class = np.maximum(gathered.images, 1)[:, None]
    return Scores(
        criterion,
        [torch.from_numpy((c / per_class).astype(np.float32)) for c in gathered.counts],
        [torch.from_numpy((s / per_class).astype(np.float32)) for s in gathered.sums],
        int(gathered.images.sum()),
        gathered.paths,
    )


def utilisation(scores: Scores) -> list[Tensor]:
    """Utilisation matrices per block [C, n]: each class's row sums to 1 (counts over selections), or is all zero."""
    return [block / block.sum(1, keepdim=True).clamp_min(1e-12) for block in scores.blocks]


def class_similarity(scores: Scores) -> Tensor:
    """Cosine similarity [C, C] of the classes' flattened utilisation matrices."""
    flat = torch.cat(utilisation(scores), 1)
    unit = flat / flat.norm(dim=1, keepdim=True).clamp_min(1e-12)
    return unit @ unit.T
