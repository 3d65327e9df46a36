"""What a worker is told before its first part: its share of the threads, and which of the graphics cards is its own."""

from __future__ import annotations

import os

import torch

from vitprune.core.errors import UserError

_rank = 0


def begin(threads: int, rank: int) -> None:
    """Called once in every worker."""
    global _rank
    _rank = rank
    torch.set_num_threads(threads)


def own_device(kind: str) -> str:
    """The device of this worker: with several graphics cards, one for each worker in turn."""
    return f"cuda:{_rank % torch.cuda.device_count()}" if kind == "cuda" else kind


def one_process() -> None:
    """Raises UserError under torchrun, which would start the same run several times."""
    size = os.environ.get("WORLD_SIZE", "1")
    if size.isdigit() and int(size) > 1:
        raise UserError("torchrun: start the command as one process, without it; use --workers N")
