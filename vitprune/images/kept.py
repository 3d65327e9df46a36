"""What was decoded once, kept for the next pass: pixels not normalised yet, in memory or in a file of the run's folder.

The file is for one run. It has a temporary's name, so that the next run over the folder removes what a killed one left, and
the machine's, as other machines may see its parts in another order than they were written. Processes of one machine
share it: an image counts as there when its pixels lie in the file, and whoever decodes one puts it there.
Legend: N images of the source, B of a batch.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import numpy as np

MOST = 64 << 30  # bytes of a file
SHARE = 0.5  # of the free disk, at most
PREFIX, ENDING = ".pixels-", ".vitprune.tmp"  # as every temporary name of ours ends


class Kept(Protocol):
    """Pixels by the image's position in its source."""

    where: str

    def has(self, index: np.ndarray) -> np.ndarray:
        """Which of the images are there, [B] bool."""

    def put(self, i: int, pixels: np.ndarray) -> None:
        """Keep an image."""

    def get(self, index: np.ndarray) -> np.ndarray:
        """The pixels of images that are there, [B, ...]."""


class InMemory:
    """Pixels [N, ...] in this process."""

    where = "memory"

    def __init__(self, count: int, like: np.ndarray) -> None:
        self._pixels = np.empty((count, *like.shape), like.dtype)
        self._there = np.zeros(count, bool)

    def has(self, index: np.ndarray) -> np.ndarray:
        """Which of the images are there, [B] bool."""
        return self._there[index]

    def put(self, i: int, pixels: np.ndarray) -> None:
        """Keep an image."""
        self._pixels[i] = pixels
        self._there[i] = True

    def get(self, index: np.ndarray) -> np.ndarray:
        """The pixels of images that are there, [B, ...]."""
        return self._pixels[index]


class OnDisk:
    """Pixels [N, ...] in a file, and behind them a byte for every image that is there. A disk that is full keeps no more."""

    def __init__(self, folder: Path, count: int, like: np.ndarray) -> None:
        host = re.sub(r"[^A-Za-z0-9-]", "-", platform.node())[:64]
        self.path = folder / f"{PREFIX}{host}{ENDING}"
        self.where = str(self.path)
        self._shape, self._kind, self._size, self._count = like.shape, like.dtype, like.nbytes, count
        self._there, self._full = np.zeros(count, bool), False
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)

    def __del__(self) -> None:
        with suppress(OSError, AttributeError):
            os.close(self._file)

    def has(self, index: np.ndarray) -> np.ndarray:
        """Which of the images are there, [B] bool; those that other processes have put there as well."""
        if not self._there[index].all():
            told = np.frombuffer(os.pread(self._file, self._count, self._count * self._size), np.uint8)
            self._there[: len(told)] |= told == 1
        return self._there[index]

    def put(self, i: int, pixels: np.ndarray) -> None:
        """Keep an image, unless the disk is full."""
        if self._full:
            return
        try:
            content = pixels.tobytes()
            done = os.pwrite(self._file, content, i * self._size)
            if done == self._size and os.pwrite(self._file, b"\1", self._count * self._size + i) == 1:
                self._there[i] = True
        except OSError:
            self._full = True

    def get(self, index: np.ndarray) -> np.ndarray:
        """The pixels of images that are there, [B, ...]."""
        made = np.empty((len(index), *self._shape), self._kind)
        for place, i in enumerate(index.tolist()):
            read = os.preadv(self._file, [made[place].reshape(-1).view(np.uint8).data], i * self._size)
            if read != self._size:
                raise OSError(f"{self.path}: shorter than it was written")
        return made


def on_disk(folder: Path | None, count: int, like: np.ndarray) -> OnDisk | None:
    """A file in a folder for so many images; None where the disk has no room for it, or the folder is not to be written."""
    if folder is None or not folder.is_dir():
        return None
    if like.nbytes * count > min(MOST, SHARE * shutil.disk_usage(folder).free):
        return None
    try:
        return OnDisk(folder, count, like)
    except OSError:
        return None


def clear(folder: Path) -> None:
    """Remove the files of a run that has ended."""
    for path in folder.glob(f"{PREFIX}*{ENDING}"):
        path.unlink(missing_ok=True)
