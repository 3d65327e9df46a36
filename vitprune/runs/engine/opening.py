"""Which engine a run's jobs go to: this process, several of this machine, or a Ray cluster."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

from vitprune.core.errors import UserError
from vitprune.recipe.recipe import Recipe
from vitprune.runs.engine import worker
from vitprune.runs.engine.base import Executor
from vitprune.runs.engine.local import Local
from vitprune.runs.engine.pool import Pool

NAMES = ("local", "ray")


@dataclass(frozen=True, slots=True)
class Crew:
    """Who computes: what `--workers`, `--engine` and `--address` say; None where a flag was not given."""

    workers: int | None = None
    engine: str | None = None
    address: str | None = None

    @classmethod
    def of(cls, workers: Workers, recipe: Recipe) -> Team:
        """So many processes of this machine, or the crew that was given; what neither says is as the recipe has it. Raises
        UserError for what does not go together."""
        said = workers if isinstance(workers, Crew) else cls(None if workers == 1 else workers)
        engine = said.engine or recipe.engine or NAMES[0]
        address = said.address or (recipe.address if engine == recipe.engine else None)
        return Team(recipe.workers or 1 if said.workers is None else said.workers, engine, address)


@dataclass(frozen=True, slots=True)
class Team:
    """Who computes, all of it said. Raises UserError for what does not go together."""

    workers: int
    engine: str
    address: str | None

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise UserError(f"--workers {self.workers}: at least one process is needed")
        if self.engine not in NAMES:
            raise UserError(f"--engine {self.engine}: not an engine; take one of {', '.join(NAMES)}")
        if self.address is not None and self.engine != "ray":
            raise UserError(f"--address {self.address}: is of a Ray cluster; add --engine ray")

    def executor(self, device: torch.device) -> Executor:
        """The executor of a run; nothing is started before its first job. Raises UserError where Ray is not installed."""
        share = max(1, torch.get_num_threads() // self.workers)
        if self.engine == "ray":
            from vitprune.runs.engine.ray import Ray

            threads = share if self.address is None else 1
            # Ray gives an actor its graphics card; other devices are every machine's own
            begin = functools.partial(worker.begin, threads, ())
            return Ray(self.workers, begin, self.address, device.type == "cuda")
        if self.workers == 1:
            return Local()
        begin = functools.partial(worker.begin, share, worker.shared(device), workers=self.workers)
        return Pool(self.workers, begin, share)


Workers = int | Crew
