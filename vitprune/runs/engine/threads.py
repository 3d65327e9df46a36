"""How the threads of one process wait for each other, and whether other processes leave them room; without torch.

OpenMP's threads spin while they wait for the last of them. With other processes at work on the same cores the last one is
the one that does not get its turn, and the others burn the time it needs: two threads were seventeen times slower than
two that sleep. So they sleep, unless the user's environment says how they wait. Their number is never changed here: the
last bits of a product hang on it.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping

QUIET = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}
BUSY = 0.5  # of the cores, in use by others, from which it is said


def wait_quietly(environment: MutableMapping[str, str] | None = None) -> None:
    """Nothing; threads that are started from now on sleep while they wait. What the user has said of it stays. Of use only
    before torch is imported, whose OpenMP reads this once."""
    own = os.environ if environment is None else environment
    if not QUIET.keys() & own.keys():
        own.update(QUIET)


def waiting() -> str:
    """How the threads wait: `asleep`, or the words of the environment, or `spinning`, OpenMP's own way."""
    said = {name: os.environ[name] for name in QUIET if name in os.environ}
    if said == QUIET:
        return "asleep"
    return ", ".join(f"{name}={value}" for name, value in said.items()) or "spinning"


def load() -> float | None:
    """How many processes were running or waiting for a core in the last minute, on average; None where that is not told."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return None


def crowded(threads: int, found: float | None, cores: int | None = None) -> str | None:
    """A line where several threads share their cores with others; None where there is room."""
    cores = cores or os.cpu_count() or 1
    if found is None or threads < 2 or found < BUSY * cores or found + threads <= cores:
        return None
    return (
        f"the load is {found:.1f} on {cores} cores, and this process has {threads} threads: OMP_NUM_THREADS=1 may be as fast "
        "(the last digits of results hang on the number of threads)"
    )


def crowded_here() -> str | None:
    """The same of this process, whose torch has been imported."""
    import torch

    return crowded(torch.get_num_threads(), load())
