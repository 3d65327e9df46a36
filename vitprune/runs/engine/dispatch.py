"""Who gets which part: what the engines with workers have in common.

Every worker is served by a thread of this process, which gives it one part at a time: the first that waits or, of a pinned
job, the first that is this worker's. A worker that dies costs the part it was at; it is given out again, three times at most.
Parts are handed over in order, and no more than a few of them are made ahead of the one that is asked for.
"""

from __future__ import annotations

import bisect
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from vitprune.core.errors import UserError
from vitprune.runs.engine.base import Columns, Job
from vitprune.runs.engine.parts import Parts, gone

TRIES = 3
AGAIN_SECONDS = 10.0  # until a worker for which there was no place is tried again
AHEAD = 3  # parts per worker that are made before the first of them is merged: what they take stays bounded


class DiedError(Exception):
    """A worker ended before its part was done."""


class NoRoomError(Exception):
    """There is no place for a worker now; `str(error)` is one line for the user."""


class Worker(Protocol):
    """A worker as the first process sees it. `end` may be called by another thread while `part` waits."""

    def part(self, parts: Parts, position: int) -> Columns | None:
        """What came back for a part: None where the worker left it in the folder. Raises DiedError, or as the work did."""
        ...

    def start(self) -> None:
        """Begin the process, if it can be without a part."""
        ...

    def end(self) -> None: ...


@dataclass(slots=True, eq=False)
class Board:
    """What is known of one job's parts: those that wait for a worker, and those that came back, or why they did not."""

    parts: Parts
    workers: int
    waiting: list[int] = field(default_factory=list)
    back: dict[int, Columns | BaseException | None] = field(default_factory=dict)
    deaths: Counter[int] = field(default_factory=Counter)
    seen: int = 0

    def missing(self, position: int) -> list[int]:
        """The parts not looked at so far that are to be made while the one at `position` is; the others came back."""
        first, self.seen = self.seen, min(position + AHEAD * self.workers, len(self.parts.job.items))
        return [one for one in range(first, self.seen) if not self.there(one)]

    def there(self, position: int) -> bool:
        """Whether a part lies whole in the folder; it has come back then."""
        if not self.parts.job.kept or not self.parts.there(position):
            return False
        self.back[position] = None
        return True

    def next(self, rank: int, absent: set[int]) -> int | None:
        """The part that a worker is to do next; none after one that failed. Of pinned ones its own, and those of ranks
        that are absent."""
        last = min((at for at, made in self.back.items() if isinstance(made, BaseException)), default=None)
        for position in self.waiting:
            if last is not None and position > last:
                return None
            if not self.parts.job.pinned or position % self.workers in absent | {rank}:
                return position
        return None

    def died(self, position: int, error: DiedError) -> None:
        """A worker died over a part: it waits again, or this was once too often."""
        self.deaths[position] += 1
        if self.deaths[position] < TRIES:
            bisect.insort(self.waiting, position)
            return
        job = self.parts.job
        told = UserError(
            f"{job.name}: a worker was ended {TRIES} times over part {position + 1} of {len(job.items)}; "
            f"if memory is short, take fewer --workers{f' ({error})' if str(error) else ''}"
        )
        told.__cause__ = error
        self.back[position] = told

    def handed(self, position: int) -> Columns:
        """A part that came back. Raises what its work raised."""
        made = self.back.pop(position)
        if isinstance(made, BaseException):
            raise made
        if made is None:
            made = self.parts.read(position) if self.parts.job.handed else {}
        if made is None:
            raise gone(self.parts.path(position))
        return made


class Dispatch:
    """Jobs shared by `workers`, each made by `hire` in the thread that serves it."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.changed = threading.Condition()
        self.boards: list[Board] = []
        self.absent: set[int] = set()  # ranks for which there is no worker now
        self.failed: BaseException | None = None  # what ended everything
        self._crew: list[Served] = []

    def hire(self, rank: int) -> Worker:
        """The worker of a rank, new. Raises NoRoomError."""
        raise NotImplementedError

    def start(self) -> None:
        """As in `Executor.start`."""

    def run(self, job: Job, folder: Path) -> Iterator[Columns]:
        """The parts of `job` in order, as in `Executor.run`."""
        board = Board(Parts(folder, job), self.workers)
        with self.changed:
            self.boards.append(board)
        try:
            for position in range(len(job.items)):
                yield self._handed(board, position)
        except BaseException:
            self.close()
            raise
        finally:
            with self.changed:
                self.boards.remove(board)

    def _handed(self, board: Board, position: int) -> Columns:
        if board.seen == position and board.parts.job.kept:  # nobody was asked for it yet
            found = board.parts.taken(position)
            if found is not None:
                board.seen += 1
                return found
        missing = board.missing(position)
        with self.changed:
            board.waiting += missing
            self._crew = self._crew or [Served(self, rank) for rank in range(self.workers)]
            self.changed.notify_all()
            self.changed.wait_for(lambda: self.failed is not None or position in board.back)
        if self.failed is not None:
            raise self.failed
        return board.handed(position)

    def task(self, rank: int) -> tuple[Board, int] | None:
        """The next part for a worker, if one waits; it is still among those that wait."""
        for board in self.boards:
            position = board.next(rank, self.absent)
            if position is not None:
                return board, position
        return None

    def without(self, rank: int, error: NoRoomError) -> None:
        """Do without a worker for a while; without any of them nothing goes on."""
        self.absent.add(rank)
        found = self.task(rank) if len(self.absent) == self.workers else None
        if found is not None:
            found[0].back[found[1]] = UserError(str(error))
        self.changed.notify_all()

    def fail(self, error: BaseException) -> None:
        """Give up every job: nobody will answer any more, and nobody is waited for."""
        with self.changed:
            self.failed = error
            self.changed.notify_all()

    def carry(self, make: Callable[[], Any]) -> Callable[[], Any] | None:
        """As in `Executor.carry`."""
        return None

    def close(self) -> None:
        """End every worker now."""
        with self.changed:
            crew, self._crew = self._crew, []
            for one in crew:
                one.stopped = True
            self.changed.notify_all()
        if self.failed is not None:
            return
        for one in crew:
            one.end()
        for one in crew:
            one.thread.join()


class Served:
    """A worker and its thread. The thread lives as long as the worker may: Linux ends the worker with it."""

    def __init__(self, dispatch: Dispatch, rank: int, early: bool = False) -> None:
        self.dispatch, self.rank, self.stopped, self.early = dispatch, rank, False, early
        self.worker: Worker | None = None
        self.lock = threading.Lock()
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def end(self) -> None:
        """End the worker, whatever it is at."""
        with self.lock:
            if self.worker is not None:
                self.worker.end()
                self.worker = None

    def _serve(self) -> None:
        dispatch = self.dispatch
        if self.early and not isinstance(begun := self._hired(), BaseException):
            begun.start()
        while True:
            with dispatch.changed:
                dispatch.changed.wait_for(lambda: self.stopped or dispatch.task(self.rank) is not None)
                if self.stopped:
                    return
            worker = self._hired()
            with dispatch.changed:
                task = dispatch.task(self.rank)
                if isinstance(worker, NoRoomError):
                    dispatch.without(self.rank, worker)
                    dispatch.changed.wait_for(lambda: self.stopped, AGAIN_SECONDS)
                    continue
                dispatch.absent.discard(self.rank)
                if task is None:
                    continue
                task[0].waiting.remove(task[1])
            self._do(worker, *task)

    def _hired(self) -> Worker | BaseException:
        """The worker, or why there is none."""
        with self.lock:
            try:
                if self.worker is None and not self.stopped:
                    self.worker = self.dispatch.hire(self.rank)
                return self.worker or DiedError()
            except BaseException as error:
                return error

    def _do(self, worker: Worker | BaseException, board: Board, position: int) -> None:
        made: Columns | BaseException | None
        try:
            made = worker if isinstance(worker, BaseException) else worker.part(board.parts, position)
        except BaseException as error:
            made = error
        if isinstance(made, DiedError):
            self.end()
        with self.dispatch.changed:
            if self.stopped:
                bisect.insort(board.waiting, position)
            elif isinstance(made, DiedError):
                board.died(position, made)
            else:
                board.back[position] = made
            self.dispatch.changed.notify_all()
