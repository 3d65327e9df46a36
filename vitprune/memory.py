"""How much memory is free, and how much a piece of work took at its highest point."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch

_SELF = Path("/proc/self")


def free(device: torch.device) -> int:
    """Bytes that can be allocated on the device now."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


@contextmanager
def peak(device: torch.device) -> Iterator[list[float | None]]:
    """Yields a list that holds, afterwards, the megabytes the work needed beyond what was in use before it.

    None where the system does not say (no CUDA device and no Linux).
    """
    result: list[float | None] = [None]
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
    yield result
    if device.type == "cuda":
        result[0] = (torch.cuda.max_memory_allocated(device) - before) / 1e6
        return
    with contextlib.suppress(OSError, ValueError, IndexError):
        line = next(x for x in (_SELF / "status").read_text().splitlines() if x.startswith("VmHWM"))
        result[0] = max(0.0, (int(line.split()[1]) * 1024 - before) / 1e6)
