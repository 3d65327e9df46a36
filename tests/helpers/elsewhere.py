"""An engine that does by itself what a worker would do, in another order."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Iterator
from pathlib import Path

from vitprune.runs.engine.base import Columns, Job
from vitprune.runs.engine.local import Local
from vitprune.runs.engine.parts import Parts


class Elsewhere(Local):
    """Its parts are computed by what a worker would be sent, the last of them first."""

    def run(self, job: Job, folder: Path) -> Iterator[Columns]:
        parts = Parts(folder, dataclasses.replace(job, work=pickle.loads(pickle.dumps(job.work))))
        made = [parts.compute(at) for at in reversed(range(len(job.items)))]
        yield from reversed(made)
