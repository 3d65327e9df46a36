"""The job of one discovery: scores of the probe images, shard by shard, for every t at once.

The same job gives the same bits, whoever computes which shard and however often the work is interrupted. A batch that does
not fit in memory is taken in pieces, to the same bits (model/inside/pieces.py); the shard says so.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vitprune.core.errors import UserError
from vitprune.core.reading import digest
from vitprune.criteria import paths
from vitprune.criteria.catalog import CRITERIA
from vitprune.criteria.paths import Gathered
from vitprune.model.inside import pieces
from vitprune.runs.engine.base import Columns, Job
from vitprune.runs.stages.versions import CODE
from vitprune.runs.state import precise
from vitprune.runs.state.run import Run
from vitprune.runs.state.workspace import PARTS

SHARD = 64
ADVICE = "discover: not enough memory for a single image; take fewer `nodes`, or a device with more"
Score = Callable[[np.ndarray], tuple[dict[int, list[torch.Tensor]], torch.Tensor]]


@dataclass(frozen=True, slots=True)
class Discovery:
    """One pass over probe images: every t of one criterion under the same settings."""

    criterion: str
    how: Any
    per_class: int
    ts: tuple[int, ...]

    @property
    def settings(self) -> dict[str, Any]:
        """What a score depends on, without t: for a criterion that integrates nothing, no setting."""
        return {"criterion": self.criterion, "per_class": self.per_class, **asdict(self.how)}

    @property
    def nodes(self) -> int:
        """How often an image stands in one pass."""
        return self.how.nodes if CRITERIA[self.criterion].integrates else 1

    def name(self, t: int) -> str:
        """File name of the result at t."""
        return f"{self.criterion}-t{t}-{digest(self.settings)[:12]}"


def job(run: Run, found: Discovery, index: np.ndarray) -> Job:
    """The shards of `index`, positions of the images in their source: an item is where one starts and where it ends."""
    batch = run.batching.images_per_batch(found.nodes)
    about = {"model": run.model_digest, "data": run.data_digest, "code": CODE, "device": run.device.type}
    about |= found.settings | {"batch": batch} | precise.told(run.recipe, run.device, half=False)
    work = functools.partial(_work, run, found, index, batch)
    return Job(found.criterion, shards(len(index), batch), work, {"of": digest_of(index, about), "ts": list(found.ts)})


def digest_of(index: np.ndarray, about: Any) -> str:
    """Digest of what is computed on which images."""
    return digest(about, index.tolist())


def shards(count: int, batch: int) -> list[list[int]]:
    """Whole batches, at least SHARD images of them; the last shard is what is left."""
    step = math.ceil(SHARD / batch) * batch
    return [[start, min(start + step, count)] for start in range(0, count, step)]


def folder_of(run: Run, job: Job) -> Path:
    """Where the job's shards are."""
    return run.folder.stage_folder("discover") / PARTS / f"{job.name}-{job.about['of'][:16]}"


def _work(run: Run, found: Discovery, index: np.ndarray, batch: int, item: list[int]) -> Columns:
    images = index[item[0] : item[1]]
    return shard(
        images, batch, found.ts, _scorer(run, found, images, batch), keeps(found), run.batching.room(found.nodes)
    )


def shard(
    images: np.ndarray,
    batch: int,
    ts: Sequence[int],
    score: Score,
    keep: Callable[[int], int],
    room: int | None = None,
) -> Columns:
    """Scores of a few images gathered for every t, and the smallest number of them that one pass had room for.

    `keep(t)` units of each image are kept as its path. `room`: images of a pass.
    """
    parts: dict[int, list[Gathered]] = {t: [] for t in ts}
    smallest = batch
    for at in range(0, len(images), batch):
        whole = images[at : at + batch]
        found = pieces.taken(len(whole), lambda rows, whole=whole: score(whole[rows]), ADVICE, room)  # type: ignore[misc]
        smallest = min([smallest, *(len(labels) for _, labels in found if len(found) > 1)])
        label = torch.cat([labels for _, labels in found])
        for t in ts:
            scores = [torch.cat(blocks) for blocks in zip(*(of[t] for of, _ in found), strict=True)]
            parts[t].append(Gathered.of(scores, label, whole, keep(t)))
    columns = {f"t{t}.{name}": value for t in ts for name, value in paths.merge(parts[t]).columns().items()}
    return columns | {"smallest": np.array([smallest], np.int64)}


def of_t(columns: Columns, t: int) -> Gathered:
    """What a shard says of one t."""
    start = f"t{t}."
    return Gathered.of_columns({name.removeprefix(start): c for name, c in columns.items() if name.startswith(start)})


def _scorer(run: Run, found: Discovery, images: np.ndarray, batch: int) -> Score:
    """Positions in the source, as `shard` asks for them → scores of every t and the labels."""
    ahead = _Ahead(images, run.images.batches(images, batch))

    def score(index: np.ndarray) -> tuple[dict[int, list[torch.Tensor]], torch.Tensor]:
        x, y = (rows.to(run.device) for rows in ahead.of(index))
        model, of = run.loaded.model, CRITERIA[found.criterion].score
        assert of is not None
        with precise.passes(run, half=False):
            scores = of(model, run.sites, x, y, ts=found.ts, how=found.how)
        if not all(bool(block.isfinite().all()) for block in scores[found.ts[0]]):
            where = run.recipe.model.name
            raise UserError(f"model `{where}`: gives values that are not finite; check its weights and the images")
        return scores, y

    return score


@dataclass(slots=True)
class _Ahead:
    """The batches of a shard one after the other, in whatever pieces each is asked for; the next one is made meanwhile."""

    images: np.ndarray
    batches: Iterator[tuple[torch.Tensor, torch.Tensor]]
    held: tuple[torch.Tensor, torch.Tensor] | None = None
    start: int = 0

    def of(self, index: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Images and labels at a few positions that stand together in the batch at hand, or in one that follows."""
        while self.held is None or index[0] not in self.images[self.start : self.start + len(self.held[1])]:
            self.start += 0 if self.held is None else len(self.held[1])
            self.held = next(self.batches)
        first = int(np.flatnonzero(self.images[self.start :] == index[0])[0])
        x, y = (rows[first : first + len(index)] for rows in self.held)
        return x, y


def keeps(found: Discovery) -> Callable[[int], int]:
    """How many units of an image make its path: t, or none where the mean score ranks."""
    return lambda t: t if CRITERIA[found.criterion].ranks_by == "frequency" else 0
