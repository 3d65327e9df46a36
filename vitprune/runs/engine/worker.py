"""What a worker is told before its first part: its share of the threads, and which of the devices is its own."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

import vitprune.model.load.opening  # noqa: F401 (read while a worker starts, not by its first part)
from vitprune.core import memory
from vitprune.core.errors import UserError

_rank = 0
_names: tuple[str, ...] = ()


def begin(threads: int, names: Sequence[str], rank: int, *, workers: int = 1) -> None:
    """Called once in every one of the `workers`. `names`: the devices that they share in turn; none: each sees its own."""
    global _rank, _names
    _rank, _names = rank, tuple(names)
    memory.sharing = -(-workers // len(names)) if names else 1
    torch.set_num_threads(threads)


def shared(device: torch.device) -> tuple[str, ...]:
    """The devices that workers of this machine share: all graphics cards, unless one was asked for by its number."""
    if device.type == "cuda" and device.index is None:
        return tuple(f"cuda:{i}" for i in range(torch.cuda.device_count()))
    return (str(device),)


def own_device(kind: str) -> str:
    """The device of this worker, in turn: with several graphics cards one for each."""
    if _names:
        return _names[_rank % len(_names)]
    return f"cuda:{_rank % torch.cuda.device_count()}" if kind == "cuda" else kind


def one_process() -> None:
    """Raises UserError under torchrun, which would start the same run several times."""
    size = os.environ.get("WORLD_SIZE", "1")
    if size.isdigit() and int(size) > 1:
        raise UserError("torchrun: start the command as one process, without it; use --workers N")
