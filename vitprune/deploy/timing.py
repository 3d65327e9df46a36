"""What speaks against a measured time: rounds that disagree, other processes at work, more time saved than arithmetic."""

from __future__ import annotations

import os
import time

import psutil

from vitprune.core.reading import Json

SPREAD = 0.05  # the quartiles of the paired ratio agree when they lie within this share of its median
PATIENCE = 5  # rounds that do not agree go on for at most this many times the time asked for
EFFICIENCY = 1.15  # speed-up per multiply-adds removed; beyond it the same kernels saved more time than work
SHORTEST = 0.5  # seconds below which the system's counters are too coarse
OTHERS = 0.25, 0.02  # cores that other processes may use, and share of all cores, whichever is more


class Load:
    """How many cores the rest of the machine used while this process was at work."""

    def __init__(self) -> None:
        self.started, self.busy, self.own = time.monotonic(), _busy(), _own()

    def others(self) -> float | None:
        """Mean number of cores in use by other processes since the start; None where that cannot be told."""
        seconds, busy = time.monotonic() - self.started, _busy()
        if busy is None or self.busy is None or seconds < SHORTEST:
            return None
        return max(0.0, (busy - self.busy - (_own() - self.own)) / seconds)


def _busy() -> float | None:
    """Seconds of all cores that were not idle, time stolen from a virtual machine included."""
    try:
        spent = psutil.cpu_times()
    except (OSError, psutil.Error):
        return None
    inside = getattr(spent, "guest", 0.0) + getattr(spent, "guest_nice", 0.0)  # counted as user and nice already
    return sum(spent) - spent.idle - getattr(spent, "iowait", 0.0) - inside


def _own() -> float:
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def spread(quartiles: list[float], median: float) -> float:
    """Distance of the quartiles as a share of the median."""
    return (quartiles[1] - quartiles[0]) / median


def notes(measured: Json, efficiency: float | None) -> list[str]:
    """One phrase for everything that speaks against a ratio of `runtime.interleaved`; none where it can be believed.

    `efficiency`: speed-up times the ratio of the multiply-adds, of the same precision and engine, or None.
    """
    found = []
    low, high = measured["relative_quartiles"]
    if spread([low, high], measured["relative"]) > SPREAD:
        found.append(f"wide spread: half of the {measured['rounds']} rounds lie outside {low:.3g} to {high:.3g}")
    others, cores = measured["other_cores"], os.cpu_count() or 1
    if others is not None and others > max(OTHERS[0], OTHERS[1] * cores):
        found.append(f"other processes used {others:.1f} of the {cores} cores meanwhile")
    if efficiency is not None and efficiency > EFFICIENCY:
        found.append(f"efficiency {efficiency:.2f}: more time saved than arithmetic, next to impossible; measure again")
    return found
