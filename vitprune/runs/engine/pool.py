"""The engine that shares parts among processes of this machine, by loky's process pool.

A worker that dies costs its own part: the pool is made anew and the part is given out again, three times at most. Workers
die with this process, also when it is killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from loky import ProcessPoolExecutor
from loky.backend.context import get_context

from vitprune.core.errors import UserError
from vitprune.runs.engine.base import Columns, Job
from vitprune.runs.engine.parts import Parts

TRIES = 3
AHEAD = 2  # parts given out per worker before the first of them is merged: what lies on disk stays bounded
PR_SET_PDEATHSIG = 1


class Pool:
    """Parts in `workers` processes; `begin(rank)` is called in each before its first part."""

    def __init__(self, workers: int, begin: Callable[[int], None]) -> None:
        self.workers, self.begin = workers, begin
        self._pool: ProcessPoolExecutor | None = None

    def run(self, job: Job, folder: Path) -> Iterator[Columns]:
        """The parts of `job` in order, as in `Executor.run`."""
        parts, count = Parts(folder, job), len(job.items)
        given: dict[int, Future[None]] = {}
        died = [0] * count
        asked = 0
        try:
            for position in range(count):
                while asked <= position or position in given:
                    try:
                        while asked < count and (asked <= position or len(given) < AHEAD * self.workers):
                            if parts.read(asked) is None:
                                given[asked] = self._submit(parts, asked)
                            asked += 1
                        if position in given:
                            given[position].result()
                            del given[position]
                    except BrokenProcessPool as error:
                        self._bury(parts, list(given), died, error)
                        given.clear()
                        asked = position
                found = parts.read(position)
                if found is None:
                    raise UserError(f"{parts.path(position)}: gone or damaged since it was written; run again")
                yield found
        except BaseException:
            self.close()
            raise

    def _submit(self, parts: Parts, position: int) -> Future[None]:
        if self._pool is None:
            ranks = get_context().SimpleQueue()
            ranks.put(0)  # the next worker's rank; one that loky replaces gets a new one
            self._pool = ProcessPoolExecutor(
                self.workers,
                initializer=_begin,
                initargs=(self.begin, ranks, os.getpid()),
                env={"PYTHONWARNINGS": "ignore"},
            )
        return self._pool.submit(_work, parts, position)  # type: ignore[no-any-return]

    def _bury(self, parts: Parts, given: list[int], died: list[int], error: BaseException) -> None:
        """End the broken pool; whose part is not there may have been the one that died on it."""
        self.close()
        for position in given:
            if parts.read(position) is None:
                died[position] += 1
                if died[position] == TRIES:
                    raise UserError(
                        f"{parts.job.name}: a worker was ended {TRIES} times over part {position + 1} of {len(died)}; "
                        "if memory is short, take fewer --workers"
                    ) from error

    def close(self) -> None:
        """End every worker now."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, kill_workers=True)
            self._pool = None


def _begin(begin: Callable[[int], None], ranks: Any, parent: int) -> None:
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before it could be said
            os._exit(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the first process's to answer
    rank = ranks.get()
    ranks.put(rank + 1)
    begin(rank)


def _work(parts: Parts, position: int) -> None:
    parts.compute(position)
