"""A repair as jobs: every worker holds the streams of its images, and gives the moments of one layer after the other.

The first process adds the moments up, solves the layer and leaves its weights in a file, where the workers find them and
where a repair that was stopped finds them again. A worker that does not hold a part as far as it is needed makes it again
from its images and these files, to the same bits.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from vitprune.core import memory
from vitprune.core.reading import digest
from vitprune.model.inside import pieces
from vitprune.model.load import opening, saving
from vitprune.model.sites import attention
from vitprune.pruning.repair import head, walk
from vitprune.pruning.repair.layerwise import Others
from vitprune.pruning.repair.names import Recovery, closed_form
from vitprune.pruning.repair.walk import Seen, Walk, Weights
from vitprune.runs.engine.base import Columns, Job
from vitprune.runs.engine.parts import Parts, checksum
from vitprune.runs.stages.versions import version
from vitprune.runs.state import precise
from vitprune.runs.state.run import Run
from vitprune.runs.state.workspace import PARTS

LARGE = 2048  # units of a block from which on a repair's sums weigh most
SLIM = "slim"  # the folder of the model that is repaired, as it was before
STEPS = range(1 << 20)  # more than any road has


@dataclass(frozen=True, slots=True)
class Left:
    """The weights that are solved so far, a file for each step; `key` says what the repair depends on."""

    folder: Path
    key: str

    @property
    def _parts(self) -> Parts:
        return Parts(self.folder, Job("repaired", STEPS, _never, self.key))

    def read(self, step: int) -> Weights | None:
        """The weights of a step; None where they are not there, whole and of this repair."""
        found = self._parts.read(step)
        return None if found is None else {name: torch.from_numpy(value) for name, value in found.items()}

    def write(self, step: int, weights: Weights) -> None:
        """Leave the weights of a step."""
        self._parts.write(step, _columns(weights))


def _never(_: object) -> Columns:
    raise AssertionError("a step is solved from all parts")


@dataclass(frozen=True, slots=True)
class Asked:
    """A repair `how` from the images at `index`, `batch` at a time, of a dense model and a data set with the digest `dense`;
    it goes to the workers with every part."""

    left: Left
    dense: str
    how: Recovery
    index: np.ndarray
    batch: int

    def items(self, images: int) -> list[list[int]]:
        """The parts of the first so many images: where their batches begin and end."""
        return [[part.start, part.stop] for part in walk.parts(-(-min(images, len(self.index)) // self.batch))]

    def images(self, run: Run, part: range) -> Iterator[Tensor]:
        """The batches of a part."""
        index = self.index[part.start * self.batch : part.stop * self.batch]
        return (x for x, _ in run.images.batches(index, self.batch))


def others(run: Run, how: Recovery, index: np.ndarray, batch: int, kept: bool, slim: nn.Module) -> Others:
    """What others do for the repair of `slim`, which is ready for it: weights are left in files where they are to be `kept` or
    workers read them; where there are workers, moments come from them."""
    shared = run.executor.workers > 1
    if not shared and not kept:
        return Others()
    left = _left(run, how, index, batch, slim)
    if not shared:
        return Others(left)
    saving.save(left.folder / SLIM, run.loaded, slim, {})
    asked = Asked(left, digest(run.model_digest, run.data_digest), how, index, batch)
    told = functools.partial(_told, run, asked, head.most(slim)) if how.endswith("head") else None
    return Others(left, functools.partial(_moments, run, asked), told)


def spared(run: Run) -> contextlib.AbstractContextManager[None]:
    """Around a repair: where its sums are large, memory of what is gone goes back at once."""
    return memory.returned() if max(site.size for site in run.sites) >= LARGE else contextlib.nullcontext()


def clear(run: Run, kept: bool) -> None:
    """Remove what a repair needed, but the weights, where they are `kept` until the stage has finished."""
    folder = run.folder.stage_folder("prune") / PARTS
    for one in folder.glob("repair-*") if kept else [folder]:
        run.folder.clear(one / SLIM if kept else one, set())


def _left(run: Run, how: Recovery, index: np.ndarray, batch: int, slim: nn.Module) -> Left:
    state = {name: value.detach().cpu().numpy() for name, value in slim.state_dict().items()}
    of_slim = [checksum(state), attention.slim(slim)]
    images = [checksum({"index": index}), batch, run.data_digest, pieces.RULE]
    settings = [
        closed_form(how),
        run.recipe.ridge,
        run.device.type,
        version("prune"),
        precise.told(run.recipe, run.device),
    ]
    key = digest(run.model_digest, of_slim, images, settings)
    return Left(run.folder.stage_folder("prune") / PARTS / f"repair-{key[:16]}", key)


def _moments(run: Run, asked: Asked, step: int) -> Iterator[Seen]:
    """A step's moments part by part, from the workers."""
    job = Job(
        "repair", asked.items(len(asked.index)), functools.partial(_of_part, run, asked, step), [asked.left.key, step],
        pinned=True, kept=False,
    )  # fmt: skip
    for found in run.executor.run(job, asked.left.folder / PARTS):
        yield Seen.of({name: torch.tensor(column) for name, column in found.items()}, run.device)


def _told(run: Run, asked: Asked, most: int) -> Iterator[tuple[Tensor, Tensor]]:
    """What the classifier reads and the dense model says, part by part, from the workers."""
    work = functools.partial(_told_of_part, run, asked)
    job = Job("classifier", asked.items(most), work, asked.left.key, kept=False)
    for found in run.executor.run(job, asked.left.folder / PARTS):
        yield torch.tensor(found["features"]).to(run.device), torch.tensor(found["logits"]).to(run.device)


# ---- in a worker


@dataclass(slots=True)
class _Held:
    """A repair that this process works for: its walk, and how many steps of the road the pruned model has learnt."""

    run: Run
    asked: Asked
    walk: Walk
    learnt: int = 0


_held: list[_Held] = []  # one, at most


def _of_part(run: Run, asked: Asked, step: int, item: Sequence[int]) -> Columns:
    with precise.passes(run), spared(run):
        part, walk = range(*item), _walk(run, asked, step)
        if not walk.holds(part, step):
            walk.start(asked.images(run, part), part.start, part.start * asked.batch)
        return _columns(walk.moments(part, step).sums())


def _told_of_part(run: Run, asked: Asked, item: Sequence[int]) -> Columns:
    with precise.passes(run):
        walk = _walk(run, asked)
        found = list(head.told(walk.new.model, walk.old.model, asked.images(run, range(*item))))
    features, logits = (torch.cat(tensors) for tensors in zip(*found, strict=True))
    return _columns({"features": features, "logits": logits})


def _walk(run: Run, asked: Asked, step: int | None = None) -> Walk:
    """The walk of a repair, its pruned model with the weights of every step before `step`; of all, if that is None."""
    if not _held or _held[0].asked.left != asked.left:
        _begin(run, asked)
    held = _held[0]
    for k in range(held.learnt, len(held.walk.road) if step is None else step):
        weights = asked.left.read(k)
        assert weights is not None, f"{asked.left.folder}: the weights of step {k} were written before"
        held.walk.learn(k, weights)
        held.learnt = k + 1
    return held.walk


def _begin(run: Run, asked: Asked) -> None:
    """Hold another repair; the dense streams of the one before stay where they are of the same model and images."""
    for former in _held:
        former.walk.close()
        if former.asked.dense == asked.dense and former.run is not run:
            run.adopt_streams(former.run)
    _held.clear()
    slim = opening.load(asked.left.folder / SLIM, run.device)
    streams = run.dense_streams(asked.index, asked.batch)
    walk = Walk(slim, run.loaded.model, closed_form(asked.how) == "layerwise", streams, run.folder.root)
    walk.streams.room //= run.workers  # who share the memory
    _held.append(_Held(run, asked, walk))


def _columns(tensors: dict[str, Tensor]) -> Columns:
    return {name: value.detach().cpu().contiguous().numpy() for name, value in tensors.items()}
