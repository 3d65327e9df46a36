"""The parts of a job on disk: one file each, written whole or not at all, with a digest of what it is of and what is in it.

A part that is missing, damaged or of something else is None, and is computed again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from safetensors import SafetensorError, safe_open

from vitprune.core.errors import UserError
from vitprune.core.files import replacing, write_columns
from vitprune.core.reading import Json
from vitprune.runs.engine.base import Columns, Job


@dataclass(frozen=True, slots=True)
class Parts:
    """The files of one job's parts in a folder of their own."""

    folder: Path
    job: Job

    def path(self, position: int) -> Path:
        return self.folder / f"{position:06d}.safetensors"

    def read(self, position: int) -> Columns | None:
        """The columns of a part, or None where there is none that is whole and of this job."""
        try:
            with safe_open(str(self.path(position)), "numpy") as f:
                found = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118
                told = dict(f.metadata() or {})
        except (SafetensorError, OSError, ValueError, KeyError):
            return None
        return found if told.get("seal") == self.seal(position, found) else None

    def there(self, position: int) -> bool:
        """Whether a part lies whole in the folder; no more than a column of it is in memory at a time."""
        try:
            with safe_open(str(self.path(position)), "numpy") as f:
                told = dict(f.metadata() or {})
                return told.get("seal") == f"{self.job.key(position)}-{_checksum(f.keys(), f.get_tensor)}"
        except (SafetensorError, OSError, ValueError, KeyError):
            return False

    def taken(self, position: int) -> Columns | None:
        """What is handed over of a part that lies whole in the folder; None where there is none."""
        if self.job.handed:
            return self.read(position)
        return {} if self.there(position) else None

    def column(self, position: int, name: str) -> np.ndarray:
        """A column of a part that lies there. Raises UserError where it has gone."""
        try:
            with safe_open(str(self.path(position)), "numpy") as f:
                return cast(np.ndarray, f.get_tensor(name))
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            raise gone(self.path(position)) from error

    def names(self, position: int) -> list[str]:
        """The names of the columns of a part that lies there. Raises UserError where it has gone."""
        try:
            with safe_open(str(self.path(position)), "numpy") as f:
                return list(f.keys())
        except (SafetensorError, OSError) as error:
            raise gone(self.path(position)) from error

    def nbytes(self, position: int) -> int:
        """Bytes of the columns of a part that lies there."""
        with self.path(position).open("rb") as file:
            head = int.from_bytes(file.read(8), "little")
        return self.path(position).stat().st_size - 8 - head

    def write(self, position: int, made: Columns) -> None:
        """Keep a part. Raises UserError where the disk does not take it."""
        shapes = {name: (column.dtype, column.shape) for name, column in made.items()}
        with replacing(self.path(position)) as temporary, temporary.open("wb") as file:
            write_columns(file, shapes, made.__getitem__, {"seal": self.seal(position, made)})

    def seal(self, position: int, columns: Columns) -> str:
        """What the part is of, and what is in it; one word, as several stand in no fixed order in a file."""
        return f"{self.job.key(position)}-{checksum(columns)}"

    def compute(self, position: int) -> Columns:
        """Make a part, and keep it if the job does."""
        made = self.job.work(self.job.items[position])
        if self.job.kept:
            self.write(position, made)
        return made if self.job.handed else {}

    def made(self, position: int) -> Columns | None:
        """Make a part in a worker: what is to be sent back, None for a part that is kept."""
        made = self.compute(position)
        return None if self.job.kept else made


def packed(content: Json) -> Columns:
    """The columns of a part that is a record."""
    return {"json": np.frombuffer(json.dumps(content).encode(), np.uint8)}


def unpacked(columns: Columns) -> Json:
    """The record that `packed` was given."""
    return dict(json.loads(columns["json"].tobytes()))


def checksum(columns: Columns) -> str:
    """Hex digest of names, types, shapes and bytes."""
    return _checksum(columns, columns.__getitem__)


def _checksum(names: Iterable[str], column: Callable[[str], np.ndarray]) -> str:
    result = hashlib.sha256()
    for name in sorted(names):
        made = column(name)
        result.update(f"{name} {made.dtype} {made.shape}".encode())
        result.update(made.data if made.size and made.flags.c_contiguous else made.tobytes())
    return result.hexdigest()


def gone(path: Path) -> UserError:
    """What is said where a part is not there any more."""
    return UserError(f"{path}: gone or damaged since it was written; run again")
