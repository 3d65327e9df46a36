"""Tensors of a repair by name and batch, in memory or in files; and the dense model's, from one repair to the next."""

from __future__ import annotations

import contextlib
import os
import tempfile
from functools import cached_property
from pathlib import Path
from typing import IO, Literal

import torch
from torch import Tensor, nn

from vitprune.core import memory
from vitprune.core.device import device_of
from vitprune.core.files import explain
from vitprune.model import families
from vitprune.model.tokens import stream_width, tokens_per_site

IN_MEMORY = 2 << 30
KEPT_SHARE = 0.5  # of the free memory, for the dense streams between two repairs


class DenseStreams:
    """The dense model's stream of every batch, in memory from one repair to the next: at place 0 into the first block, at
    2i + 1 after block i's attention, at 2i + 2 after block i. The first repair fills it; all must be of the same images."""

    def __init__(self) -> None:
        self.tensors: dict[tuple[int, int], Tensor] = {}  # by place and batch

    @classmethod
    def if_room(cls, dense: nn.Module, images: int) -> DenseStreams | None:
        """Room for the streams of so many images; None where they would take more than half of the memory that is free."""
        size = images * (2 * len(families.ffn_sites(dense)) + 1) * _one(dense)
        return cls() if size <= KEPT_SHARE * memory.free(device_of(dense)) else None


def bytes_of(model: nn.Module, images: int) -> int:
    """Bytes of the streams that a repair block by block holds of so many images, all processes together, when those of the
    dense model are not kept: both models' streams, and what goes into a projection."""
    return 3 * _one(model) * images


def lies(size: int, sharing: int = 1) -> Literal["memory", "disk"]:
    """Where streams of so many bytes lie, among so many processes, each with a budget of its own."""
    return "memory" if size <= IN_MEMORY // sharing * sharing else "disk"


def _one(model: nn.Module) -> int:
    """Bytes of one stream of one image, at its widest."""
    sites = families.ffn_sites(model)
    tokens, widths = tokens_per_site(model, sites), [stream_width(model, site) for site in sites]
    return 4 * max(t * w for t, w in zip(tokens, widths, strict=True))


class Streams:
    """Tensors by name and batch. Those that do not fit into `IN_MEMORY` bytes together lie in a file of `folder` (None: that
    of temporary files) that has no name, so that none of it is left however this process ends."""

    def __init__(self, folder: Path | None) -> None:
        self.folder, self.room = folder, IN_MEMORY
        self.kept: dict[tuple[str, int], Tensor] = {}
        self.places: dict[tuple[str, int], tuple[int, int]] = {}  # where in the file, and how many bytes
        self.forms: dict[tuple[str, int], tuple[torch.Size, torch.dtype]] = {}

    def put(self, name: str, batch: int, value: Tensor) -> None:
        """Keep `value`, in the place of what had the name."""
        key = name, batch
        old = self.kept.pop(key, None)
        self.room += 0 if old is None else old.nbytes
        if value.nbytes <= self.room:
            self.room -= value.nbytes
            self.kept[key] = value
            return
        try:
            self._write(key, value.cpu().contiguous())
        except OSError as error:
            raise explain(error, self.folder or Path(tempfile.gettempdir())) from error

    def get(self, name: str, batch: int, device: torch.device) -> Tensor:
        """What `put` was given last."""
        key = name, batch
        if key in self.kept:
            return self.kept[key]
        shape, kind = self.forms[key]
        value = torch.empty(shape, dtype=kind)
        at, count = self.places[key]
        self._file.seek(at)
        if self._file.readinto(value.flatten().view(torch.uint8).numpy().data) != count:  # type: ignore[attr-defined]
            raise OSError(f"{self.folder}: the file of the repair's streams is shorter than what was written")
        return value.to(device)

    def drop(self, batch: int) -> None:
        """Forget all that was kept of a batch."""
        for key in [key for key in self.kept if key[1] == batch]:
            self.room += self.kept.pop(key).nbytes

    def _write(self, key: tuple[str, int], value: Tensor) -> None:
        place = self.places.get(key)
        at = place[0] if place and place[1] == value.nbytes else self._file.seek(0, os.SEEK_END)
        self._file.seek(at)
        self._file.write(value.flatten().view(torch.uint8).numpy().data)
        self._file.flush()
        self.places[key], self.forms[key] = (at, value.nbytes), (value.shape, value.dtype)

    @cached_property
    def _file(self) -> IO[bytes]:
        return tempfile.TemporaryFile(dir=self.folder)

    def close(self) -> None:
        """Give the file's space back now."""
        if "_file" in self.__dict__:
            with contextlib.suppress(OSError):
                self._file.close()
