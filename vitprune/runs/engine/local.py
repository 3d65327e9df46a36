"""The engine that computes every part in this process, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from vitprune.runs.engine.base import Columns, Job
from vitprune.runs.engine.parts import Parts


class Local:
    """Parts in this process."""

    workers = 1

    def run(self, job: Job, folder: Path) -> Iterator[Columns]:
        """The parts of `job` in order, as in `Executor.run`."""
        if not job.kept:
            yield from map(job.work, job.items)
            return
        parts = Parts(folder, job)
        for position in range(len(job.items)):
            found = parts.taken(position)
            yield parts.compute(position) if found is None else found

    def start(self) -> None:
        """There is nothing to begin."""

    def carry(self, make: Callable[[], Any]) -> None:
        """Nothing is sent anywhere."""

    def close(self) -> None:
        """Nothing was started."""
