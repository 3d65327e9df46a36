"""Sums over the images of a class set as a job: parts of whole batches, added up in their order.

The first batch is a part of its own, as the others are summed around its values. Each of the others is a part as well, to
the bits of one pass over all batches, where these sums are small; where they are large, several batches are one part, so
that what lies on disk stays bounded. A sum that is whole takes the place of its parts until the stage has finished.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitprune.core import least_squares
from vitprune.core.least_squares import Sums
from vitprune.core.reading import Json
from vitprune.criteria.catalog import CRITERIA
from vitprune.criteria.signatures import Summed
from vitprune.runs.engine.base import Columns, Job
from vitprune.runs.engine.parts import Parts
from vitprune.runs.stages.image_scores import digest_of
from vitprune.runs.stages.versions import version
from vitprune.runs.state import precise
from vitprune.runs.state.run import Run
from vitprune.runs.state.workspace import PARTS

BYTES = 1 << 32  # of the parts of one sum, about
FEWEST = 4  # parts after the first, however large they are


@dataclass(frozen=True, slots=True)
class Asked:
    """Sums that a criterion is made of, over the images at `index`, `batch` at a time, for a stage."""

    stage: str
    criterion: str
    how: Any
    index: np.ndarray
    batch: int
    attention: bool = False  # of FFNs and attentions together

    @property
    def summed(self) -> Summed:
        """How they are made."""
        found = CRITERIA[self.criterion].sums(self.attention)
        assert found is not None
        return found


def total(run: Run, asked: Asked, label: str) -> Sums:
    """The sums over all of the images; parts of an interrupted run are taken as they are."""
    return _tensors(_whole(run, asked, label)[1])


def in_file(run: Run, asked: Asked, label: str) -> tuple[Path, str]:
    """The file that has them, and a digest of what they are of."""
    whole, _ = _whole(run, asked, label)
    return whole.path(0), str(whole.job.about)


def _whole(run: Run, asked: Asked, label: str) -> tuple[Parts, Columns]:
    about: Json = asdict(asked.how) | {"of": asked.summed.name, "batch": asked.batch, "code": version(asked.stage)}
    about |= {"model": run.model_digest, "data": run.data_digest, "device": run.device.type}
    about |= precise.told(run.recipe, run.device)
    key = digest_of(asked.index, about)
    folder = run.folder.stage_folder(asked.stage) / PARTS / f"{asked.summed.name}-{key[:16]}"
    whole = Parts(folder, Job(asked.summed.name, ["all"], functools.partial(_work, run, asked, None), key))
    known = whole.read(0)
    if known is None:
        known = _columns(_added(run, asked, key, folder, label))
        whole.write(0, known)
        run.folder.clear(folder, {whole.path(0).name})
    return whole, known


def _added(run: Run, asked: Asked, key: str, folder: Path, label: str) -> Sums:
    def parts() -> Iterator[Columns]:
        yield from first
        work = functools.partial(_work, run, asked, least_squares.same(_tensors(first[0])))
        yield from run.executor.run(Job(asked.summed.name, rest, work, key), folder / "rest")

    count, whole = len(asked.index), None
    start = [0, min(asked.batch, count)]
    of_first = Job(asked.summed.name, [start], functools.partial(_work, run, asked, None), key)
    first = list(run.executor.run(of_first, folder / "first"))
    rest = items(start[1], count, asked.batch, sum(column.nbytes for column in first[0].values()))
    step = rest[0][1] - rest[0][0] if rest else asked.batch
    for part in run.reporter.track(parts(), label, count, step):
        whole = least_squares.plus(whole, _tensors(part))
        del part  # as large as all sums together; the next is made meanwhile
    assert whole is not None
    return whole


def items(start: int, stop: int, batch: int, nbytes: int) -> list[list[int]]:
    """Where the parts after the first start and end: whole batches, as few of them as `BYTES` of parts allow."""
    batches = -(-(stop - start) // batch)
    most = max(FEWEST, BYTES // nbytes)
    step = max(1, -(-batches // most)) * batch
    return [[at, min(at + step, stop)] for at in range(start, stop, step)]


def _work(run: Run, asked: Asked, first: Sums | None, item: Sequence[int]) -> Columns:
    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for x, y in run.images.batches(asked.index[item[0] : item[1]], asked.batch):
            yield x.to(run.device), y.to(run.device)

    classes = np.unique(run.images.labels[asked.index]).tolist()
    model, of = run.loaded.model, asked.summed.sums
    with precise.passes(run):
        return _columns(of(model, run.sites, batches, classes=classes, how=asked.how, first=first))


def _columns(found: Sums) -> Columns:
    return {name: value.numpy() for name, value in found.items()}


def _tensors(found: Columns) -> Sums:
    return {name: torch.from_numpy(column) for name, column in found.items()}
