"""Sums over the images of a class set as a job: parts of whole batches, added up in their order, site by site.

The first batch is a part of its own, as the others are summed around its values. Each of the others is a part as well, to
the bits of one pass over all batches, where these sums are small; where they are large, several batches are one part, so
that what lies on disk stays bounded. Parts are read where they lie, the sums of one site at a time: nobody but who makes a
part holds those of all sites. The sums of the sites take the place of the parts until the stage has finished.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vitprune.core import least_squares, memory
from vitprune.core.least_squares import Sums, of_site
from vitprune.core.reading import Json
from vitprune.criteria.catalog import CRITERIA
from vitprune.criteria.signatures import Summed
from vitprune.criteria.statistics import held
from vitprune.model.sites.attention import attention_sites
from vitprune.runs.engine.base import Columns, Job
from vitprune.runs.engine.parts import Parts, gone
from vitprune.runs.stages.image_scores import digest_of
from vitprune.runs.stages.versions import version
from vitprune.runs.state import precise
from vitprune.runs.state.run import Run
from vitprune.runs.state.workspace import PARTS

BYTES = 1 << 32  # of the parts of one sum, about
LARGE = 1 << 28  # bytes of sums beside which a pass gives back what it needed
FFN, ATTENTION = "ffn", "attention"
SITES = "sites"
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


@dataclass(frozen=True, slots=True)
class Totals:
    """The sums over all images as they lie in a run's folder, a part for each of the `sites` (a kind, a position); `key` says
    what they are of."""

    parts: Parts
    sites: list[list[Any]]
    key: str

    def of(self, kind: str, position: int) -> Sums:
        """The sums of one site, by their names where it is the only one. Raises UserError where they have gone."""
        found = self._read(self.sites.index([kind, position]))
        return {own: found[name] for own, name in of_site(found, position, kind == ATTENTION).items()}

    def all(self) -> Sums:
        """Those of all sites, by their own names."""
        return {name: value for place in range(len(self.sites)) for name, value in self._read(place).items()}

    def _read(self, place: int) -> Sums:
        found = self.parts.read(place)
        if found is None:
            raise gone(self.parts.path(place))
        return _tensors(found)


def totals(run: Run, asked: Asked, label: str) -> Totals:
    """The sums over all of the images, site by site; parts of an interrupted run are taken as they are."""
    about: Json = asdict(asked.how) | {"of": asked.summed.name, "batch": asked.batch, "code": version(asked.stage)}
    about |= {"model": run.model_digest, "data": run.data_digest, "device": run.device.type}
    about |= precise.told(run.recipe, run.device)
    key = digest_of(asked.index, about)
    folder = run.folder.stage_folder(asked.stage) / PARTS / f"{asked.summed.name}-{key[:16]}"
    sites = [[FFN, i] for i in range(len(run.sites))]
    if asked.attention:
        sites += [[ATTENTION, i] for i in range(len(attention_sites(run.loaded.model)))]
    found = Totals(Parts(folder / SITES, Job(f"{asked.summed.name}-sums", sites, _never, key)), sites, key)
    if not all(map(found.parts.there, range(len(sites)))):
        job = Job(
            found.parts.job.name, sites, partial(_added, _parts(run, asked, key, folder, label)), key, handed=False
        )
        for _ in run.executor.run(job, found.parts.folder):
            pass
        run.folder.clear(folder, {SITES})
    return found


def _never(_: object) -> Columns:
    raise AssertionError("sums that are read are there")


def _parts(run: Run, asked: Asked, key: str, folder: Path, label: str) -> list[Path]:
    """The files of all parts, in order."""
    count = len(asked.index)
    start = [0, min(asked.batch, count)]
    of_first = Job(asked.summed.name, [start], partial(_work, run, asked, None), key, handed=False)
    first = Parts(folder / "first", of_first)
    for _ in run.executor.run(of_first, first.folder):
        pass
    same = {name: first.column(0, name) for name in first.names(0) if name.startswith(least_squares.SAME)}
    rest = items(start[1], count, asked.batch, first.nbytes(0))
    others = Job(asked.summed.name, rest, partial(_work, run, asked, _tensors(same)), key, handed=False)
    step = rest[0][1] - rest[0][0] if rest else asked.batch
    made = itertools.chain([Columns()], run.executor.run(others, folder / "rest"))
    for _ in run.reporter.track(made, label, count, step):
        pass
    return [first.path(0), *(Parts(folder / "rest", others).path(at) for at in range(len(rest)))]


def _added(parts: Sequence[Path], site: Sequence[Any]) -> Columns:
    """The sums of one site over all parts, by the names that they have in them."""
    whole: Sums | None = None
    for path in parts:
        try:
            with safe_open(str(path), "numpy") as f:
                names = of_site(f.keys(), site[1], site[0] == ATTENTION).values()
                whole = least_squares.plus(whole, {name: torch.from_numpy(f.get_tensor(name)) for name in names})
        except (SafetensorError, OSError) as error:
            raise gone(path) from error
    assert whole is not None
    return _columns(whole)


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
    large = held.sums(asked.criterion, model, run.sites, asked.attention) >= LARGE
    with precise.passes(run), memory.returned() if large else contextlib.nullcontext():
        return _columns(of(model, run.sites, batches, classes=classes, how=asked.how, first=first))


def _columns(found: Sums) -> Columns:
    return {name: value.numpy() for name, value in found.items()}


def _tensors(found: Columns) -> Sums:
    return {name: torch.from_numpy(column) for name, column in found.items()}
