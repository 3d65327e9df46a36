"""The engine that shares parts among processes of this machine, each of them a pool of one by loky.

Workers die with this process, also when it is killed. A part that is kept is left in the folder by the worker that made it;
one that is not comes through the pipe.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable

from loky import ProcessPoolExecutor
from loky.process_executor import BrokenProcessPool

from vitprune.runs.engine.base import Columns
from vitprune.runs.engine.dispatch import DiedError, Dispatch, Served
from vitprune.runs.engine.parts import Parts

PR_SET_PDEATHSIG = 1
# A worker may hold what it made for an earlier job: loky would take that for a leak, and begin another in its place.
BLAS = "OPENBLAS_NUM_THREADS"
ENVIRONMENT = {"PYTHONWARNINGS": "ignore", "LOKY_MAX_MEMORY_LEAK_SIZE": "1e18"}


class Pool(Dispatch):
    """Parts in `workers` processes; `begin(rank)` is called in each before its first part. `threads`: of numpy's products in
    each, which have to be told before numpy is there; None: as many as there are cores."""

    def __init__(self, workers: int, begin: Callable[[int], None], threads: int | None = None) -> None:
        super().__init__(workers)
        self.begin, self.threads = begin, threads

    def start(self) -> None:
        """As in `Executor.start`: the processes begin, each by the thread that serves it."""
        with self.changed:
            self._crew = self._crew or [Served(self, rank, early=True) for rank in range(self.workers)]

    def hire(self, rank: int) -> Process:
        """The process of a rank; it starts with its first part, or before."""
        return Process(self.begin, rank, self.threads)


class Process:
    """One process. A job is sent to it once, then the positions of its parts alone."""

    def __init__(self, begin: Callable[[int], None], rank: int, threads: int | None) -> None:
        told = {} if threads is None or BLAS in os.environ else {BLAS: str(threads)}
        own = (begin, rank, os.getpid())
        self._pool = ProcessPoolExecutor(1, initializer=_begin, initargs=own, env=ENVIRONMENT | told)
        self._knows: Parts | None = None

    def part(self, parts: Parts, position: int) -> Columns | None:
        """What came back for a part, as in `dispatch.Worker`."""
        told = None if self._knows is parts else parts
        self._knows = parts
        try:
            return self._pool.submit(_work, told, position).result()  # type: ignore[no-any-return]
        except BrokenProcessPool as error:
            raise DiedError from error

    def start(self) -> None:
        """Begin the process, which reads what every part needs."""
        self._pool.submit(_nothing)

    def end(self) -> None:
        """End the process now."""
        self._pool.shutdown(wait=True, kill_workers=True)


def _begin(begin: Callable[[int], None], rank: int, parent: int) -> None:
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before it could be said
            os._exit(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the first process's to answer
    if "fork" in multiprocessing.get_all_start_methods():
        # With loky's own method a lock that a library makes here (tqdm's, say) has a name in the system, which the kill at the
        # end leaves behind, and a line about leaked semaphores is the last that a user sees. With this one it has none.
        multiprocessing.set_start_method("fork", force=True)
    begin(rank)


_parts: Parts | None = None  # in a worker: of the job that it was told of last


def _nothing() -> None:
    """What the initializer has not done already."""


def _work(told: Parts | None, position: int) -> Columns | None:
    global _parts
    _parts = told or _parts
    assert _parts is not None
    return _parts.made(position)
