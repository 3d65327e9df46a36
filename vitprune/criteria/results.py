"""What a discovery leaves: one file per t, of which only what is asked for is read.

The columns, for the K classes met and blocks i: `classes` [K], `images` [K], `counts.i` [K, n] (unsigned, of 16 bits where
no class has more images than that holds) and `means.i` [K, n], the mean score in float32, rounded once from the float64
sums. Frequencies and means are those of the whole sums to the bit. `seals` [columns, 32] are SHA-256 of the others, by
their names in order; a column is held against its own when it is read. Files of earlier versions hold the sums themselves.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vitprune.core.errors import UserError
from vitprune.core.files import write_columns
from vitprune.criteria.paths import Gathered, smallest
from vitprune.criteria.scores import Scores, to_scores

RanksBy = Literal["frequency", "mean"]
SEALS = "seals"


def write(file: BinaryIO, gathered: Gathered, ranks_by: RanksBy = "frequency") -> None:
    """Write what `read` reads, block by block: no second copy of the sums is made. Counts are left out where means rank."""
    whole, seals = _Columns(gathered, ranks_by), dict[str, bytes]()

    def column(name: str) -> np.ndarray:
        if name == SEALS:
            return np.frombuffer(b"".join(seals[key] for key in sorted(seals)), np.uint8).reshape(len(seals), -1)
        made = whole.column(name)
        seals[name] = _seal(name, made)
        return made

    shapes = {name: whole.shape(name) for name in whole.names}
    shapes[SEALS] = (np.dtype(np.uint8), (len(shapes), hashlib.sha256().digest_size))  # bytes: after all others
    write_columns(file, shapes, column)


def _seal(name: str, column: np.ndarray) -> bytes:
    made = hashlib.sha256(f"{name} {column.dtype} {column.shape}".encode())
    made.update(np.ascontiguousarray(column).data)
    return made.digest()


@dataclass(frozen=True, slots=True)
class _Columns:
    """The columns of a file, each made when it is asked for."""

    gathered: Gathered
    ranks_by: RanksBy

    @property
    def names(self) -> list[str]:
        """What they are called."""
        depth = range(len(self.gathered.sums))
        counts = [f"counts.{i}" for i in depth] if self.ranks_by == "frequency" else []
        return ["classes", "images", *(f"means.{i}" for i in depth), *counts]

    def shape(self, name: str) -> tuple[np.dtype[np.generic], tuple[int, ...]]:
        """The type and shape of a column."""
        kind, _, block = name.partition(".")
        if not block:
            return np.dtype(np.int64), self.gathered.classes.shape
        of = smallest(self.gathered.images) if kind == "counts" else np.dtype(np.float32)
        return of, self.gathered.sums[int(block)].shape

    def column(self, name: str) -> np.ndarray:
        """The column itself."""
        kind, _, block = name.partition(".")
        if not block:
            return np.asarray(getattr(self.gathered, name), np.int64)
        if kind == "counts":
            return self.gathered.counts[int(block)].astype(self.shape(name)[0])
        return (self.gathered.sums[int(block)] / np.maximum(self.gathered.images, 1)[:, None]).astype(np.float32)


def read(path: Path, criterion: str, sites: Sequence[str], outputs: int, ranks_by: RanksBy = "frequency") -> Scores:
    """The scores that `write` kept, by the names of the `sites`, a row for each of `outputs` classes; a block is read when it
    is asked for, and not kept. Raises UserError for a file that is damaged."""
    try:
        with safe_open(str(path), "numpy") as file:
            known = set(file.keys())
        if SEALS not in known:
            return to_scores(Gathered.from_file(str(path)), criterion, sites, outputs, ranks_by)
    except (SafetensorError, ValueError, KeyError) as error:
        raise _damaged(path) from error
    means = Blocks(path, "means", tuple(sites), outputs)
    images = int(means.column("images").sum())
    if ranks_by == "mean":
        return Scores(criterion, means, None, images)
    return Scores(criterion, Blocks(path, "counts", tuple(sites), outputs), means, images)


@dataclass(frozen=True, slots=True)
class Blocks(Mapping[str, Tensor]):
    """By site name [C, n] float32: the mean scores of a file, or its counts as frequencies; each is read anew every time."""

    path: Path
    kind: Literal["means", "counts"]
    sites: tuple[str, ...]
    outputs: int

    def __iter__(self) -> Iterator[str]:
        return iter(self.sites)

    def __len__(self) -> int:
        return len(self.sites)

    def __getitem__(self, site: str) -> Tensor:
        if site not in self.sites:
            raise KeyError(site)
        found = self.column(f"{self.kind}.{self.sites.index(site)}")
        whole = np.zeros((self.outputs, found.shape[1]), np.float32)
        if self.kind == "counts":
            whole[self.column("classes")] = found / np.maximum(self.column("images"), 1)[:, None]
        else:
            whole[self.column("classes")] = found
        return torch.from_numpy(whole)

    def column(self, name: str) -> np.ndarray:
        """A column of the file. Raises UserError where it is not what was written."""
        try:
            with safe_open(str(self.path), "numpy") as file:
                offset = sorted(set(file.keys()) - {SEALS}).index(name)
                found: np.ndarray = file.get_tensor(name)
                seal = file.get_slice(SEALS)[offset : offset + 1].tobytes()
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            raise _damaged(self.path) from error
        if seal != _seal(name, found):
            raise _damaged(self.path)
        return found


def _damaged(path: Path) -> UserError:
    return UserError(f"{path}: damaged; run the recipe with --force, which finds its scores again")
