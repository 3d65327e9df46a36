"""Logits on the test split of models that are quickly made, as a job: every image is read once for all of them.

A part is a few whole batches of a class set's test images, or of all, and as many models as stand side by side. A model is
told by what a function makes it of again, in whichever process.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from vitprune.core.reading import Json
from vitprune.exam.logits import logits_side_by_side, predictor, test_indices
from vitprune.model import size
from vitprune.runs.engine.base import Columns, Job
from vitprune.runs.engine.parts import Parts, gone
from vitprune.runs.state.run import Run

IMAGES = 128  # of one part, at least
BYTES = 1 << 30  # of the models that stand side by side
Make = Callable[[Run, Json], nn.Module]


@dataclass(frozen=True, slots=True)
class Asked:
    """Models that are examined on the test images of some outputs (None: on all); `name` tells these from others."""

    name: str
    outputs: tuple[int, ...] | None
    models: Sequence[Json]


@dataclass(frozen=True, slots=True)
class Table:
    """The logits, in the parts of a job that has run."""

    parts: Parts

    def of(self, name: str, model: Json) -> np.ndarray | None:
        """A model's logits [N, C] on the images of an `Asked`; None where they were not asked for.

        Raises UserError where its parts have gone.
        """
        found = []
        for position, item in enumerate(self.parts.job.items):
            if item["of"] == name and model in item["models"]:
                columns = self.parts.read(position)
                if columns is None:
                    raise gone(self.parts.path(position))
                found.append(columns[str(item["models"].index(model))])
        return np.concatenate(found) if found else None


def table(run: Run, asked: Sequence[Asked], make: Make, about: Any, folder: Path, label: str) -> Table:
    """The logits of every model that is asked for."""
    items = [item for one in asked for item in _items(run, one)]
    outputs = {one.name: one.outputs for one in asked}
    batch = run.batching.batch
    job = Job(label, items, functools.partial(_work, run, make, outputs, batch), [about, batch])
    try:
        for _ in run.reporter.track(run.executor.run(job, folder), label, len(items)):
            pass
    finally:
        release()
    return Table(Parts(folder, job))


def _items(run: Run, asked: Asked) -> list[Json]:
    """Which models, from which image on, up to which: whole batches."""
    count, batch = len(_index(run, asked.outputs)), run.batching.batch
    step = -(-IMAGES // batch) * batch
    most = max(1, BYTES // max(1, 4 * size.parameters(run.loaded.model)))
    chunks = [list(asked.models[at : at + most]) for at in range(0, len(asked.models), most)]
    ranges = [(start, min(start + step, count)) for start in range(0, count, step)]
    return [
        {"of": asked.name, "models": models, "start": start, "stop": stop}
        for models in chunks
        for start, stop in ranges
    ]


def _index(run: Run, outputs: tuple[int, ...] | None) -> np.ndarray:
    return test_indices(run.images, run.split, None if outputs is None else np.array(outputs))


def _work(run: Run, make: Make, outputs: dict[str, tuple[int, ...] | None], batch: int, item: Json) -> Columns:
    index = _index(run, outputs[item["of"]])[item["start"] : item["stop"]]
    asks = [predictor(model) for model in _models(run, make, item["models"])]
    found = logits_side_by_side(asks, run.images, index, batch)
    return {str(i): logits for i, logits in enumerate(found)}


_held: tuple[Run, Make, list[Json], list[nn.Module]] | None = None  # the models of this process's last part


def _models(run: Run, make: Make, asked: list[Json]) -> list[nn.Module]:
    global _held
    if _held is None or _held[0] is not run or _held[1:3] != (make, asked):
        release()
        _held = (run, make, asked, [make(run, one) for one in asked])
    return _held[3]


def release() -> None:
    """Nothing; the models of the last part are let go."""
    global _held
    _held = None
