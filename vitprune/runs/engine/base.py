"""What an engine is: something that computes a job's parts, in this process or in others, and gives them back in order.

A part is a function of the job and its item alone: not of the memory that is free, the number of workers or the device's
index. So whoever computes it, and however often the work is interrupted, the parts are the same bits, and a caller that
merges them in order gets the same result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vitprune.core.reading import digest

Columns = dict[str, np.ndarray]
Track = Callable[[Iterable[Columns]], Iterable[Columns]]


@dataclass(frozen=True, slots=True)
class Job:
    """Work in parts. `work` makes the columns of one item and can be sent to another process (a module's function, or a
    `functools.partial` of one). `about` is everything a part depends on beside its item; both are JSON.

    `pinned`: the part at a position always goes to the same worker, which may hold in memory what it made for an earlier
    job's part at that position; it must be able to make it again. `kept` False: parts are handed over and not left in a
    folder, for what is large and soon of no use. `handed` False: parts that are kept are read where they lie, one column
    after the other, and handed over empty.
    """

    name: str
    items: Sequence[Any]
    work: Callable[[Any], Columns]
    about: Any
    pinned: bool = False
    kept: bool = True
    handed: bool = True

    def key(self, position: int) -> str:
        """Digest of what the part at `position` depends on."""
        return digest(self.name, self.about, self.items[position])


class Executor(Protocol):
    """Computes jobs. `close` ends whatever it started; no process outlives it."""

    workers: int

    def run(self, job: Job, folder: Path) -> Iterator[Columns]:
        """The parts of `job` in order. Those that lie whole in `folder` are taken from there; the others are left there, if
        the job keeps them.

        Raises UserError, whoever met the user's mistake, and for a part whose worker died three times.
        """
        ...

    def start(self) -> None:
        """Begin the workers now, where they are not wanted before the first job anyway; it is not waited for."""
        ...

    def carry(self, make: Callable[[], Any]) -> Callable[[], Any] | None:
        """For the workers a way to what `make` gives here; None where they make it themselves as well."""
        ...

    def close(self) -> None: ...
