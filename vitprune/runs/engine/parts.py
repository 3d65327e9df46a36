"""A long per-image job cut into shards that survive interruption, in one folder per discovery.

manifest.json   what is computed on which images in which order; batch and shard size
t<t>/<start>.safetensors   one shard: whole batches, written to a temporary name and renamed, with its own checksum

The same manifest gives the same bits, whoever computes which shard and however often the work is interrupted: a valid
shard is taken as it is, a missing or damaged one is computed again, and shards are merged in their order. A batch that
does not fit in memory is taken in pieces, to the same bits (model/inside/pieces.py); the shard says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError

from vitprune.core.errors import UserError
from vitprune.core.files import replacing, write_json
from vitprune.core.reading import digest, read_json
from vitprune.criteria import paths
from vitprune.criteria.paths import Gathered
from vitprune.model.inside import pieces

SHARD = 64
ADVICE = "discover: not enough memory for a single image; take fewer `nodes`, or a device with more"
Score = Callable[[np.ndarray], tuple[dict[int, list[torch.Tensor]], torch.Tensor]]


@dataclass(frozen=True, slots=True)
class Manifest:
    """The plan: positions of the images in their source [N], images per batch and per shard (whole batches), every t."""

    folder: Path
    index: np.ndarray
    batch: int
    step: int
    ts: tuple[int, ...]

    @classmethod
    def open(cls, folder: Path, index: np.ndarray, ts: Sequence[int], about: Any, batch: Callable[[], int]) -> Manifest:
        """The plan in `folder` when it is of the same job; else a new one, of the batch size said here."""
        made = cls.read(folder, index, ts, about)
        if made is None:
            size = batch()
            made = cls(folder, index, size, math.ceil(SHARD / size) * size, tuple(ts))
            content = {"job": job(index, about), "batch": made.batch, "step": made.step, "about": about}
            write_json(folder / "manifest.json", content)
        return made

    @classmethod
    def read(cls, folder: Path, index: np.ndarray, ts: Sequence[int], about: Any) -> Manifest | None:
        """The plan in `folder`, or None when there is none of this job."""
        try:
            found = read_json(folder / "manifest.json")
            size, step = found["batch"], found["step"]
            same = found["job"] == job(index, about)
        except (UserError, OSError, KeyError, TypeError):
            return None
        sound = isinstance(size, int) and isinstance(step, int) and 0 < size <= step <= 1 << 20 and step % size == 0
        return cls(folder, index, size, step, tuple(ts)) if same and sound else None

    @property
    def starts(self) -> range:
        return range(0, len(self.index), self.step)

    def path(self, t: int, start: int) -> Path:
        return self.folder / f"t{t}" / f"{start:08d}.safetensors"

    def read_shard(self, t: int, start: int) -> Gathered | None:
        """A shard of exactly these images, or None when it is missing or damaged."""
        try:
            found = Gathered.from_file(str(self.path(t, start)))
        except (SafetensorError, KeyError, OSError, ValueError, IndexError):
            return None
        return found if np.array_equal(found.paths.image, self.index[start : start + self.step]) else None

    def is_there(self, start: int) -> bool:
        """Whether every t of a shard has a file; whether it is whole shows when it is read."""
        return all(self.path(t, start).is_file() for t in self.ts)

    def compute(self, start: int, score: Score, keep: Callable[[int], int], room: int | None = None) -> None:
        """Make one shard, for every t; `keep(t)` units of each image are kept as its path. `room`: images of a pass."""
        parts: dict[int, list[Gathered]] = {t: [] for t in self.ts}
        smallest = self.batch
        part = self.index[start : start + self.step]
        for at in range(0, len(part), self.batch):
            whole = part[at : at + self.batch]
            found = pieces.taken(len(whole), lambda rows, whole=whole: score(whole[rows]), ADVICE, room)  # type: ignore[misc]
            smallest = min([smallest, *(len(labels) for _, labels in found if len(found) > 1)])
            label = torch.cat([labels for _, labels in found])
            for t in self.ts:
                scores = [torch.cat(blocks) for blocks in zip(*(of[t] for of, _ in found), strict=True)]
                parts[t].append(Gathered.of(scores, label, whole, keep(t)))
        for t in self.ts:
            made = paths.merge(parts[t])
            made.notes = {"batch": str(smallest)}
            with replacing(self.path(t, start)) as temporary:
                temporary.write_bytes(made.to_bytes())

    def ensure(self, start: int, score: Score, keep: Callable[[int], int], room: int | None = None) -> None:
        """Make the shard unless it is there whole."""
        if not all(self.read_shard(t, start) for t in self.ts):
            self.compute(start, score, keep, room)

    def shards(self, t: int) -> Iterator[Gathered]:
        """Every shard in order. Raises UserError when one has gone or is damaged."""
        for start in self.starts:
            found = self.read_shard(t, start)
            if found is None:
                raise UserError(f"{self.path(t, start)}: gone or damaged since it was written; run again")
            yield found


def job(index: np.ndarray, about: Any) -> str:
    """Digest of what is computed on which images."""
    return digest(about, index.tolist())
