"""An engine that does by itself what a worker would do, in another order."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path

from vitprune.runs.engine.base import Columns, Job
from vitprune.runs.engine.local import Local


class Elsewhere(Local):
    """Its parts are computed by what a worker would be sent, the last of them first."""

    def run(self, job: Job, folder: Path) -> Iterator[Columns]:
        work = pickle.loads(pickle.dumps(job.work))
        made = [work(item) for item in reversed(job.items)]
        yield from reversed(made)
