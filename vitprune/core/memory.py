"""How much memory is free, and how much a piece of work took at its highest point."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch

from vitprune.core.errors import UserError

_SELF = Path("/proc/self")
_MAPPED, _TRIMMED = -3, -1  # of glibc's mallopt: from which size on blocks are mapped; what may stay free at the end
sharing = 1  # processes whose work is on this process's device, where that is a graphics card
_around: list[float] = []  # per `peak` that is open: the highest use seen before one inside it began the count again


def free(device: torch.device) -> int:
    """Bytes that can be allocated on the device now."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(min(psutil.virtual_memory().available, _left_to_the_container()))


def whole(device: torch.device | None) -> int:
    """Bytes of memory that the device has, in use or not; None: the machine itself, up to a container's own limit."""
    if device is not None and device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return int(min(psutil.virtual_memory().total, _limit()))


def _limit(folder: Path = Path("/sys/fs/cgroup")) -> float:
    try:
        return int((folder / "memory.max").read_text())
    except (OSError, ValueError):  # no such file, or the limit is `max`
        return math.inf


def _left_to_the_container(folder: Path = Path("/sys/fs/cgroup")) -> float:
    """Bytes below a container's own limit, file cache that can go counted as free; infinite without a limit."""
    try:
        most, used = (folder / "memory.max").read_text(), int((folder / "memory.current").read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return max(0, int(most) - used + int(stat.get("inactive_file", 0)))
    except (OSError, ValueError):  # no such files, or the limit is `max`
        return math.inf


def lacking(error: BaseException) -> bool:
    """Whether a failed pass would fit with fewer rows."""
    texts = ["not enough memory", "can't allocate memory", "cannot allocate memory", "out of memory", "bad_alloc"]
    texts += ["status_alloc_failed", "failed to allocate memory"]  # CUDA's libraries
    return (
        isinstance(error, torch.OutOfMemoryError | MemoryError)
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or (isinstance(error, RuntimeError) and any(text in str(error).lower() for text in texts))
    )


def release() -> None:
    """Give back what nothing holds any more, after a pass that did not fit."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def returned() -> Iterator[None]:
    """Inside, memory of large tensors goes back to the system as soon as they are gone, where the C library can be told so:
    what work beside much that stays needs at its highest point is less, and a little time is spent on it."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_MAPPED, 4 << 20)
    try:
        yield
    finally:
        with contextlib.suppress(OSError, AttributeError):
            library = ctypes.CDLL(None)
            library.mallopt(_MAPPED, 32 << 20)  # what it comes to by itself
            library.mallopt(_TRIMMED, 64 << 20)


@contextmanager
def refused(what: str, device: torch.device) -> Iterator[None]:
    """Work that cannot be taken in pieces: where memory does not suffice for it, one line with the figure."""
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        if not lacking(error):
            raise
        left = free(device) / 1e6
        raise UserError(f"{what}: not enough memory ({left:,.0f} MB are free); free some and run again") from error


@contextmanager
def peak(device: torch.device) -> Iterator[list[float | None]]:
    """Yields a list that holds, afterwards, the megabytes the work needed beyond what was in use before it.

    One may stand inside another. None where the system does not say (no CUDA device and no Linux).
    """
    result: list[float | None] = [None]
    now = _highest(device) or 0.0
    _around[:] = [max(seen, now) for seen in _around]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    else:
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)  # give back what earlier work left, or it would be used again unseen
        with contextlib.suppress(OSError):
            (_SELF / "clear_refs").write_text("5")  # the high-water mark starts again at what is resident now
        before = psutil.Process().memory_info().rss
    _around.append(0.0)
    try:
        yield result
    finally:
        seen = _around.pop()
    highest = _highest(device)
    if highest is not None:
        result[0] = max(0.0, (max(seen, highest) - before) / 1e6)


def _highest(device: torch.device) -> float | None:
    """The high-water mark in bytes since it was last begun again."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    with contextlib.suppress(OSError, ValueError, IndexError, StopIteration):
        line = next(x for x in (_SELF / "status").read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) * 1024.0
    return None
