"""The parts of a job on disk: one file each, written whole or not at all, with a digest of what it is of and what is in it.

A part that is missing, damaged or of something else is None, and is computed again.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

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
        return made

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
    result = hashlib.sha256()
    for name in sorted(columns):
        result.update(f"{name} {columns[name].dtype} {columns[name].shape}".encode() + columns[name].tobytes())
    return result.hexdigest()
