"""Sizes before arrays: what a file of weights says it unpacks to, held against the model and the file itself.

An .npz and torch's .pth are zip files. A few megabytes of them can say gigabytes, and all of it is made before anybody
looks at a shape. Only the directory and the arrays' own headers are read here.
"""

from __future__ import annotations

import io
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from vitprune.core import reading
from vitprune.core.errors import UserError

SPARE = 64 << 20
TIMES = 4  # as many bytes as the model's own, for a larger grid, double precision or a second head
MOST_ENTRIES = 100_000
MAGIC = np.lib.format.MAGIC_PREFIX


def check(path: Path, needed: int) -> None:
    """Raise UserError for a file that is none, or an archive that holds far more than a model of `needed` bytes does."""
    with reading.opened(path) as handle:
        ending = path.suffix.lower()
        if ending == ".npy":
            raise UserError(f"{path}: is one array; weights are a file of named ones (.safetensors, .pth, .npz)")
        if not zipfile.is_zipfile(handle):
            if ending == ".npz":
                raise UserError(f"{path}: is no .npz file; it is cut short or damaged")
            return
        size = handle.seek(0, io.SEEK_END)
        try:
            with zipfile.ZipFile(handle) as archive:
                entries = archive.infolist()
                whole = sum(entry.file_size for entry in entries)
                if len(entries) > MOST_ENTRIES:
                    raise UserError(f"{path}: holds {len(entries):,} entries, which no model has")
                if ending == ".npz":
                    _npz(path, archive, TIMES * needed + SPARE)
                elif whole > 2 * size + SPARE:
                    raise _too_large(path, whole, f"from {_shown(size)} on the disk, and torch packs nothing")
        except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
            raise UserError(f"{path}: is a damaged archive ({error})") from error


def _npz(path: Path, archive: zipfile.ZipFile, most: int) -> None:
    """Every array's size as its header says it, and that it is an array of numbers."""
    total = 0
    for entry in archive.infolist():
        total += entry.file_size
        with archive.open(entry) as content:
            if content.read(len(MAGIC)) != MAGIC:
                continue
        with archive.open(entry) as content:
            shape, kind = _header(content)
        if kind.hasobject:
            raise UserError(f"{path}: `{entry.filename}` holds Python objects, which could run code; save arrays alone")
        total += max(0, math.prod(shape) * kind.itemsize - entry.file_size)  # what it says beyond what is there
    if total > most:
        raise _too_large(path, total, f"more than the model can need ({_shown(most)})")


def _header(content: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(content)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, kind = read(content)
    return tuple(shape), kind


def _too_large(path: Path, size: int, why: str) -> UserError:
    return UserError(f"{path}: unpacks to {_shown(size)}, {why}; it is not read")


def _shown(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
