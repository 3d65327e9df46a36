"""The engine that shares parts among the actors of a Ray cluster: that of `--address`, or one of this machine, for the run.

An actor is a worker. What came of a part goes through the object store, and this process writes it into the folder. A job,
and what a run carries for its workers, go to the store once. An actor that dies, with its node or alone, is followed by
another wherever there is room; where there is none, the others do its parts.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import re
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from vitprune.core.errors import UserError, one_line
from vitprune.runs.engine.base import Columns, Job
from vitprune.runs.engine.dispatch import DiedError, Dispatch, NoRoomError
from vitprune.runs.engine.parts import Parts

WATCH_SECONDS, GRACE_SECONDS = 0.3, 1.0
SERVERS = ("raylet", "gcs_server")
ENDED = (
    "--engine ray: the cluster of this machine has ended; if memory is short, take fewer --workers; the same command "
    "continues where it was"
)
ROOM_SECONDS = 60.0  # until an actor for which the cluster has no room is given up
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
# of a cluster of this machine alone: nobody else can reach it, as Ray has it on macOS, or is let in
ALONE = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token"}


def library(alone: bool = False) -> Any:
    """Ray. Raises UserError where it is not installed."""
    for name, value in (QUIET | (ALONE | {"RAY_AUTH_TOKEN": secrets.token_hex(32)} if alone else {})).items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError as error:
        raise UserError("--engine ray: Ray is not installed; pip install 'vitprune[ray]'") from error
    return ray


class Ray(Dispatch):
    """Parts in `workers` actors, each with a graphics card of its own if `cuda`, else with a core."""

    def __init__(
        self, workers: int, begin: Callable[[int], None], address: str | None = None, cuda: bool = False
    ) -> None:
        super().__init__(workers)
        self.begin, self.address, self.cuda = begin, address, cuda
        self.ray = library(alone=address is None)
        self._started = False
        self._stored: dict[int, tuple[Any, Any]] = {}
        self._lock = threading.RLock()  # what a job holds may be stored on its way

    def run(self, job: Job, folder: Path) -> Iterator[Columns]:
        """The parts of `job` in order, as in `Executor.run`."""
        self._connect()
        yield from super().run(job, folder)
        with self._lock:
            self._stored = {key: kept for key, kept in self._stored.items() if not isinstance(kept[0], Parts)}

    def hire(self, rank: int) -> Actor:
        """An actor, where the cluster has room."""
        made = self.ray.remote(_Actor).options(num_cpus=0 if self.cuda else 1, num_gpus=1 if self.cuda else 0)
        actor = made.remote(str(Path.cwd()), pickle.dumps(self.begin), rank)
        asked = actor.ready.remote()
        if not self.ray.wait([asked], timeout=ROOM_SECONDS)[0]:
            self.ray.kill(actor)
            kind = "graphics card" if self.cuda else "core"
            raise NoRoomError(f"--engine ray: no {kind} of the cluster is free for a worker; take fewer --workers")
        return Actor(self, actor, asked)

    def carry(self, make: Callable[[], Any]) -> Callable[[], Any]:
        """A way to a value out of the object store, in a worker; it is put there once."""
        return Carried(self.stored(make()))

    def stored(self, value: Any) -> Any:
        """Where a value is in the object store."""
        with self._lock:
            if id(value) not in self._stored:
                self._connect()
                self._stored[id(value)] = (value, self.ray.put(value))
            return self._stored[id(value)][1]

    def close(self) -> None:
        """End every actor now, and the cluster if it is the run's own."""
        super().close()
        self._stored.clear()
        if self._started:
            self._started = False
            if self.failed is None:
                self.ray.shutdown()

    def _connect(self) -> None:
        if self._started or self.ray.is_initialized():
            return
        own = {"num_cpus": self.workers, "include_dashboard": False}
        quiet = {"logging_level": logging.ERROR, "log_to_driver": False}
        before = signal.getsignal(signal.SIGTERM)
        try:
            with contextlib.nullcontext() if self.address else _path():
                self.ray.init(self.address or "local", **quiet, **({} if self.address else own))
        except Exception as error:
            where = f"--address {self.address}" if self.address else "--engine ray"
            raise UserError(f"{where}: Ray does not answer: {_told(error)}") from error
        self._started = True
        if not self.address:
            threading.Thread(target=self._watch, args=(_servers(),), daemon=True).start()
        with contextlib.suppress(AttributeError):  # it tells of dead workers on standard output, where results go
            self.ray._private.worker.print_to_stdstream = lambda *_, **__: None
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)  # Ray puts one of its own there

    def _watch(self, servers: list[psutil.Process]) -> None:
        """Give up when a process that the run's own cluster rests on is gone: Ray ends this one without a word soon after."""
        while self._started:
            if not all(map(_alive, servers)) and self._started:
                self.fail(UserError(ENDED))
                time.sleep(GRACE_SECONDS)
                if self._started:  # who asked is at something else
                    print(f"vitprune: {ENDED}", file=sys.stderr, flush=True)
                    os._exit(2)
                return
            time.sleep(WATCH_SECONDS)


def _servers() -> list[psutil.Process]:
    """The processes that a cluster which this one has started cannot be without."""
    return [one for one in psutil.Process().children() if one.name() in SERVERS]


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@contextlib.contextmanager
def _path() -> Iterator[None]:
    """What Ray starts here finds the modules that this process finds."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(place or str(Path.cwd()) for place in sys.path)
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def _told(error: Exception) -> str:
    """An error of Ray's in one line, without its colours."""
    return one_line(Exception(re.sub(r"\x1b\[\d*m", "", str(error))))


@dataclass(frozen=True, slots=True)
class Carried:
    """A value in the object store."""

    ref: Any

    def __call__(self) -> Any:
        return library().get(self.ref)


class Actor:
    """One actor, seen from the first process. A job is sent to it once, then the positions of its parts alone."""

    def __init__(self, engine: Ray, actor: Any, ready: Any) -> None:
        self._engine, self._actor = engine, actor
        self._knows: Parts | None = None
        self._get(ready)

    def part(self, parts: Parts, position: int) -> Columns | None:
        """What came back for a part, as in `dispatch.Worker`."""
        told = None if self._knows is parts else [self._engine.stored(parts)]
        made: Columns = self._get(self._actor.part.remote(told, position))
        self._knows = parts
        if not parts.job.kept:
            return made
        parts.write(position, made)
        return None

    def start(self) -> None:
        """It is there since it was hired."""

    def end(self) -> None:
        """End the actor now."""
        with contextlib.suppress(Exception):  # it may have gone with its node
            self._engine.ray.kill(self._actor)

    def _get(self, asked: Any) -> Any:
        errors = self._engine.ray.exceptions
        try:
            return self._engine.ray.get(asked)
        except errors.RayTaskError as error:
            raise (error.cause if isinstance(error.cause, Exception) else error) from None
        except errors.RayError as error:  # of the actor, its node, the store, or their memory
            raise DiedError(_told(error)) from error


class _Actor:
    """In a worker."""

    def __init__(self, folder: str, begin: bytes, rank: int) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the first process's to answer
        with contextlib.suppress(OSError):  # paths that a recipe gives are relative to it
            os.chdir(folder)
        pickle.loads(begin)(rank)
        self._parts: Parts | None = None

    def ready(self) -> str:
        """Where this is."""
        return socket.gethostname()

    def part(self, told: list[Any] | None, position: int) -> Columns:
        """The columns of one part; `told` holds where its job is, if that is another one than the last."""
        if told is not None:
            self._parts = library().get(told[0])
        assert self._parts is not None
        return self._parts.job.work(self._parts.job.items[position])
