"""Passes over the probe images as jobs: fixed parts of whole batches, merged in their order.

What a part is made of is said by the model, the images and the kind of device, never by free memory or workers.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vitprune.core.errors import UserError
from vitprune.model.inside import hooks
from vitprune.runs.engine.base import Columns, Job
from vitprune.runs.seeing.looking import Looking
from vitprune.runs.stages.image_scores import digest_of
from vitprune.runs.stages.versions import version
from vitprune.runs.state.run import Run
from vitprune.runs.state.workspace import PARTS
from vitprune.see import exemplars
from vitprune.see.seen import Asked, Seen

SHARD = 64  # images of a part, at least
MOST = 64  # parts, so that what lies on disk stays bounded
BATCH = 32
SAMPLED, FEWEST, VALUES = 2048, 128, 1 << 22  # units whose value on every image is kept; so many values in all, about


def batch_of(run: Run) -> int:
    """Images of one forward pass."""
    return min(BATCH, run.batching.repair_batch)


def items(count: int, batch: int) -> list[list[int]]:
    """Where the parts start and end: whole batches, `SHARD` images or more."""
    size = max(SHARD, -(-count // MOST))
    step = -(-size // batch) * batch
    return [[at, min(at + step, count)] for at in range(0, count, step)]


def job(looking: Looking, name: str, work: functools.partial[Columns], about: object) -> Job:
    """Work on the images that are looked at, part by part; `work` is given where a part starts and ends."""
    run, batch = looking.run, batch_of(looking.run)
    known = {"model": run.model_digest, "data": run.data_digest, "code": version("see"), "device": run.device.type}
    of = digest_of(looking.index, known | {"about": about, "batch": batch})
    return Job(f"see-{name}", items(len(looking.index), batch), work, of)


def folder_of(looking: Looking, name: str) -> Path:
    """Where a job's parts are."""
    return looking.run.folder.stage_folder("see") / PARTS / name


def seen(looking: Looking) -> list[Seen]:
    """What the pass over the dense model leaves of every block; made once."""
    if "seen" not in looking.left:
        run, see = looking.run, looking.see
        about = see.exemplars.model_dump(exclude={"quantile"}) | {"seed": see.units.seed}
        work = functools.partial(_looked, run, looking.index, asked(looking), batch_of(run))
        made = job(looking, "units", work, about)
        found = [Seen.nothing(one) for one in asked(looking)]
        parts = run.executor.run(made, folder_of(looking, "units"))
        step = made.items[0][1]
        for columns in run.reporter.track(parts, "see units", len(looking.index), step):
            for i, block in enumerate(found):
                start = f"{i}."
                block.merge({k.removeprefix(start): v for k, v in columns.items() if k.startswith(start)})
        looking.left["seen"] = found
    made_before: list[Seen] = looking.left["seen"]
    return made_before


def asked(looking: Looking) -> list[Asked]:
    """How every block is looked at."""
    how, layout = looking.see.exemplars, looking.layout
    most = how.random + how.k  # so that as many as are asked for are none of the strongest
    sampled = sample(looking)
    return [
        Asked(
            layout.prefix,
            layout.class_token,
            how.k,
            exemplars.draws(len(looking.index), site.size, most, [looking.see.units.seed, i]),
            sampled[i],
        )
        for i, site in enumerate(looking.sites)
    ]


def sample(looking: Looking) -> list[np.ndarray]:
    """Per block the units whose value on every image is kept: of small models nearly all, else a seeded draw of the whole
    model's, the fewer the more images there are, so that what is held stays bounded."""
    widths = [site.size for site in looking.sites]
    count = min(max(VALUES // len(looking.index), FEWEST), SAMPLED, sum(widths))
    drawn = np.sort(np.random.default_rng([looking.see.units.seed, 1]).permutation(sum(widths))[:count])
    ends = np.cumsum(widths)
    parts = np.split(drawn, np.searchsorted(drawn, ends))[:-1]
    return [part - end + width for part, end, width in zip(parts, ends, widths, strict=True)]


def _looked(run: Run, index: np.ndarray, how: Sequence[Asked], batch: int, item: Sequence[int]) -> Columns:
    found = [Seen.nothing(one) for one in how]
    at = 0

    def look(position: int, hidden_BTH: Tensor) -> None:
        if not bool(torch.isfinite(hidden_BTH).all()):
            raise UserError(f"see: block {position} gives values that are not finite; check the model's weights")
        ids = index[at : at + len(hidden_BTH)]
        found[position].look(hidden_BTH, at, ids, run.images.labels[ids])

    model = run.loaded.model
    with torch.no_grad(), hooks.hidden_units(model, run.sites, look):
        for at in range(item[0], item[1], batch):
            x, _ = next(run.images.batches(index[at : min(at + batch, item[1])], batch))
            model(x.to(run.device))
    return {f"{i}.{name}": column for i, block in enumerate(found) for name, column in block.columns().items()}
