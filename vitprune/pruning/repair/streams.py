"""Tensors of a repair by name and batch; and the dense model's, from one repair to the next.

On a graphics card they lie in its memory, beyond a share of that in pinned memory of the machine, from which they come back
by copies that nobody waits for, and beyond that in a file; elsewhere in memory, then in a file. No result says where.
"""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
from functools import cached_property
from pathlib import Path
from typing import IO

import torch
from torch import Tensor, nn

from vitprune.core import memory
from vitprune.core.device import device_of, host_copy, moved
from vitprune.core.files import explain
from vitprune.model import families
from vitprune.model.tokens import stream_width, tokens_per_site

IN_MEMORY = 2 << 30
KEPT_IN_MEMORY = 128 << 20  # bytes of the dense streams between two repairs, of all processes; the rest lies in a file
PINNED = 4 << 30  # bytes of pinned memory at most: no other process can have it meanwhile
KEPT_SHARE = 0.5  # of the free memory, for the dense streams between two repairs; of a card's rest, for the others
PINNED_SHARE = 0.25  # of the machine's free memory
HERE = torch.device("cpu")


class DenseStreams:
    """The dense model's stream of every batch, from one repair to the next: at place 0 into the first block, at 2i + 1 after
    block i's attention, at 2i + 2 after block i. The first repair fills it; all must be of the same images. On a processor
    `room` bytes lie in memory, the rest in a file of `folder` as those of `Streams`."""

    def __init__(
        self, whole: int = 0, pinned: bool = False, room: float = math.inf, folder: Path | None = None
    ) -> None:
        self.tensors: dict[tuple[int, int], Tensor] = {}  # by place and batch
        self.whole, self.pinned, self.room = whole, pinned, room
        self.filed = Streams(folder, room=0)

    @classmethod
    def if_room(
        cls, dense: nn.Module, images: int, workers: int = 1, folder: Path | None = None
    ) -> DenseStreams | None:
        """Room for the streams of so many images in each of so many processes; None where they would take more than half of
        the memory that is free. What a graphics card has no room for lies in pinned memory, where that has."""
        device, size = device_of(dense), workers * images * (2 * len(families.ffn_sites(dense)) + 1) * _one(dense)
        if size <= KEPT_SHARE * memory.free(device):
            return cls(size, room=kept_room(device, workers), folder=folder)
        return cls(size, pinned=True) if device.type == "cuda" and 2 * size <= _pinned() else None

    def __contains__(self, key: tuple[int, int]) -> bool:
        place, batch = key
        return key in self.tensors or (str(place), batch) in self.filed.places

    def put(self, place: int, batch: int, value: Tensor) -> None:
        """Keep a batch's stream at a place."""
        if value.nbytes > self.room:
            self.filed.put(str(place), batch, value)
            return
        self.room -= value.nbytes
        self.tensors[place, batch] = host_copy(value, pinned=True) if self.pinned else value

    def get(self, place: int, batch: int, device: torch.device) -> Tensor:
        """What is kept of a batch at a place, on the device."""
        if (place, batch) in self.tensors:
            return moved(self.tensors[place, batch], device)
        return self.filed.get(str(place), batch, device)

    @property
    def to_come(self) -> int:
        """Bytes that it will take of the device beside what it has there now."""
        return 0 if self.pinned else max(0, self.whole - sum(value.nbytes for value in self.tensors.values()))


def rooms(device: torch.device, reserved: int = 0) -> tuple[int, int]:
    """Bytes for the streams of a model on a device: on a graphics card, of which `reserved` bytes are spoken for, and in the
    machine's memory, pinned beside a card."""
    if device.type != "cuda":
        return 0, IN_MEMORY
    return int(KEPT_SHARE * max(0, memory.free(device) - reserved)) // memory.sharing, _pinned()


def kept_room(device: torch.device, workers: int = 1) -> float:
    """Bytes of the dense streams that each of so many processes keeps in memory."""
    return KEPT_IN_MEMORY // workers if device.type == "cpu" else math.inf


def _pinned() -> int:
    """Bytes that may be pinned now."""
    return int(min(PINNED, PINNED_SHARE * memory.free(HERE)))


def _one(model: nn.Module) -> int:
    """Bytes of one stream of one image, at its widest."""
    sites = families.ffn_sites(model)
    tokens, widths = tokens_per_site(model, sites), [stream_width(model, site) for site in sites]
    return 4 * max(t * w for t, w in zip(tokens, widths, strict=True))


class Streams:
    """Tensors by name and batch, of a model on `device`. Those that do not fit into `IN_MEMORY` bytes together, or `room` (of
    a graphics card: into a share of its memory, less the `reserved` bytes, and of what may be pinned) lie in a file of
    `folder` (None: that of temporary files) that has no name, so that none of it is left however this process ends."""

    def __init__(
        self, folder: Path | None, device: torch.device = HERE, reserved: int = 0, room: int | None = None
    ) -> None:
        self.folder, self.far = folder, device.type == "cuda"
        self.near, self.room = rooms(device, reserved) if room is None else (0, room)  # left on the card, and beside it
        self.kept: dict[tuple[str, int], Tensor] = {}
        self.places: dict[tuple[str, int], tuple[int, int]] = {}  # where in the file, and how many bytes
        self.forms: dict[tuple[str, int], tuple[torch.Size, torch.dtype]] = {}

    def put(self, name: str, batch: int, value: Tensor) -> None:
        """Keep `value`, in the place of what had the name."""
        key = name, batch
        self._let_go(key)
        if self.far and value.nbytes <= self.near:
            self.near -= value.nbytes
            self.kept[key] = value
            return
        if self._taken(value) <= self.room:
            self.room -= self._taken(value)
            self.kept[key] = host_copy(value, pinned=True) if self.far else value
            return
        try:
            self._write(key, value.cpu().contiguous())
        except OSError as error:
            raise explain(error, self.folder or Path(tempfile.gettempdir())) from error

    def get(self, name: str, batch: int, device: torch.device) -> Tensor:
        """What `put` was given last."""
        key = name, batch
        if key in self.kept:
            return moved(self.kept[key], device) if self.far else self.kept[key]
        shape, kind = self.forms[key]
        value = torch.empty(shape, dtype=kind)
        at, count = self.places[key]
        self._file.seek(at)
        if self._file.readinto(value.flatten().view(torch.uint8).numpy().data) != count:  # type: ignore[attr-defined]
            raise OSError(f"{self.folder}: the file of the repair's streams is shorter than what was written")
        return moved(value, device)

    def drop(self, batch: int) -> None:
        """Forget all that was kept of a batch."""
        for key in [key for key in self.kept if key[1] == batch]:
            self._let_go(key)

    def _let_go(self, key: tuple[str, int]) -> None:
        """Forget what is in memory, if it is, and have its room again."""
        old = self.kept.pop(key, None)
        if old is None:
            return
        if self.far and old.device.type == "cuda":
            self.near += old.nbytes
        else:
            self.room += self._taken(old)

    def _taken(self, value: Tensor) -> int:
        """Bytes of a tensor in the machine's memory; what is pinned comes in powers of two."""
        return 1 << max(0, value.nbytes - 1).bit_length() if self.far else value.nbytes

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
