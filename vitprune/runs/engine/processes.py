"""Several processes over the same shards of a discovery: `--workers N` on one machine, or torchrun.

Process r of n makes shards r, r + n, …; the first one holds the run's folder, writes the manifests the others wait
for, waits for their shards in turn, makes those that never come, and merges in order: who made what leaves no trace.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from vitprune.core.errors import UserError
from vitprune.recipe.parse import dump
from vitprune.runs.engine.parts import Manifest
from vitprune.runs.state.context import Context

POLL = 0.1
PATIENCE = 120.0  # seconds without a new shard from processes that cannot be asked whether they live


@dataclass(slots=True)
class Team:
    """This process among `size`; `alive` tells whether any other still works."""

    rank: int = 0
    size: int = 1
    alive: Callable[[], bool] = lambda: False
    last_seen: float = field(default_factory=time.monotonic)
    given_up: bool = False

    def order(self, manifest: Manifest) -> list[int]:
        """This process's shards, then everybody else's."""
        own = [s for k, s in enumerate(manifest.starts) if k % self.size == self.rank]
        return own + [s for k, s in enumerate(manifest.starts) if k % self.size != self.rank]

    def wait(self, manifest: Manifest, start: int) -> None:
        """Until somebody has made the shard, or nobody will."""
        if (start // manifest.step) % self.size == self.rank:
            return
        while not manifest.is_there(start) and not self.given_up and self.alive():
            self.given_up = time.monotonic() - self.last_seen > PATIENCE
            time.sleep(POLL)
        self.last_seen = time.monotonic()


def from_torchrun() -> tuple[int, int]:
    """(rank, world size) as torchrun says it; (0, 1) without."""
    try:
        return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    except (KeyError, ValueError):
        return 0, 1


def one_process(verb: str) -> None:
    """Raises UserError under torchrun: only `run` and its stages share their work that way."""
    if from_torchrun()[1] > 1:
        raise UserError(f"{verb}: start it as one process, without torchrun; --workers shares its discovery")


def device_of_rank(device: str, rank: int) -> str:
    """`auto` and `cuda` mean one GPU for each process, in turn."""
    if device in ("auto", "cuda") and torch.cuda.is_available():
        return f"cuda:{int(os.environ.get('LOCAL_RANK', rank)) % torch.cuda.device_count()}"
    return device


@contextmanager
def team(context: Context) -> Iterator[Team]:
    """The processes that share this run's discovery; those of `--workers` are started and stopped here."""
    rank, size = from_torchrun()
    if not context.shared:
        yield Team()
    elif size > 1:
        yield Team(rank, size, lambda: True)
    elif context.workers > 1:
        with _started(context) as others:
            yield Team(0, context.workers, lambda: any(p.poll() is None for p in others))
    else:
        yield Team()


@contextmanager
def _started(context: Context) -> Iterator[list[subprocess.Popen[bytes]]]:
    size, threads = context.workers, torch.get_num_threads()
    share = max(1, threads // size)
    others = []
    try:
        for rank in range(1, size):
            told = [str(rank), str(size), str(share), str(context.device)]
            command = [sys.executable, "-W", "ignore", "-m", "vitprune.runs.worker", *told]
            process = subprocess.Popen(command, stdin=subprocess.PIPE)
            others.append(process)
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError), process.stdin as pipe:
                pipe.write(dump(context.recipe).encode())
        if context.device.type == "cpu":
            torch.set_num_threads(share)
        yield others
    finally:
        torch.set_num_threads(threads)
        for process in others:
            process.terminate()
        for process in others:
            process.wait()
