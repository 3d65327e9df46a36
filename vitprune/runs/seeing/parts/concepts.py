"""The part `concepts`: how far every unit's masks are those of labelled pixels (`data.masks`), beside what chance would give.

After Bau et al. (Network Dissection, CVPR 2017): the unit before its activation, bilinear on the pixels, above a threshold
of its own over all images; counted in whole numbers, part after part. A unit *shows* a label at an IoU above 0.04.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from vitprune.core.errors import UserError
from vitprune.core.reading import Json
from vitprune.images.pixel_labels import PixelLabels
from vitprune.images.preprocess import Preprocessing
from vitprune.runs.engine.base import Columns, Job
from vitprune.runs.seeing import passes
from vitprune.runs.seeing.looking import Looking
from vitprune.runs.state.run import Run
from vitprune.see.histogram import Histogram
from vitprune.see.pictures import dissection, maps
from vitprune.see.pictures.dissection import Counted

EDGE = 112  # longest side at which pixels are counted
BYTES = 1 << 30  # of the counters


def work(looking: Looking) -> None:
    """Nothing; the columns, and what see.json says of every label."""
    folder = looking.run.recipe.data.masks
    assert folder is not None
    labels = PixelLabels(folder)
    labels.require([looking.run.source.names[i] for i in looking.index])
    about = [labels.fingerprint(), looking.see.masks.labelled]
    thresholds = _thresholds(looking, about)
    work = functools.partial(_counted, looking.run, looking.index, labels, thresholds, passes.batch_of(looking.run))
    job = _not_kept(passes.job(looking, "concepts", work, about))
    found: list[Counted] = []
    parts = looking.run.executor.run(job, passes.folder_of(looking, "concepts"))
    for columns in looking.run.reporter.track(parts, "see concepts", len(looking.index), job.items[0][1]):
        part = [Counted.unpacked(columns, f"{i}.") for i in range(len(looking.sites))]
        found = [old + new for old, new in zip(found, part, strict=True)] if found else part
        _require_room(found, folder.name)
    _tell(looking, found, labels.names())


def _not_kept(job: Job) -> Job:
    """The same; its parts are large and quickly made again."""
    return Job(job.name, job.items, job.work, job.about, kept=False)


def _require_room(found: list[Counted], name: str) -> None:
    need = sum(one.both.nbytes for one in found)
    if need > BYTES:
        raise UserError(
            f"data.masks {name}: {len(found[0].labels):,} labels need {need / 1e9:.1f} GB of counters for these units; "
            "join labels, so that there are fewer"
        )


def _thresholds(looking: Looking, about: Sequence[object]) -> list[Tensor]:
    """Per block each unit's percentile over the patches of all images, [H]."""
    run = looking.run
    work = functools.partial(_spread, run, looking.index, passes.batch_of(run))
    found: list[Histogram] = []
    job = _not_kept(passes.job(looking, "concepts-range", work, about))
    for columns in run.executor.run(job, passes.folder_of(looking, "concepts-range")):
        part = [
            Histogram.unpacked({name: columns[f"{i}.{name}"] for name in ("low", "high", "counts")})
            for i in range(len(run.sites))
        ]
        found = [old.joined(new) for old, new in zip(found, part, strict=True)] if found else part
    share = looking.see.masks.labelled / 100
    return [torch.from_numpy(one.quantile(share)).float() for one in found]


def _maps(run: Run, index: np.ndarray, at: int, end: int, batch: int) -> list[Tensor]:
    """Every unit's maps before its activation on the images at these positions, [B, H, g, g'] per block."""
    x, _ = next(run.images.batches(index[at:end], batch))
    every = [list(range(site.size)) for site in run.sites]
    return maps.all_maps(run.loaded.model, run.sites, every, x.to(run.device), "pre")


def _spread(run: Run, index: np.ndarray, batch: int, item: Sequence[int]) -> Columns:
    found: list[Histogram] = []
    for at in range(item[0], item[1], batch):
        blocks = _maps(run, index, at, min(at + batch, item[1]), batch)
        part = [Histogram.of(block.flatten(2).transpose(1, 2)) for block in blocks]
        found = [old.joined(new) for old, new in zip(found, part, strict=True)] if found else part
    return {f"{i}.{name}": column for i, one in enumerate(found) for name, column in one.packed().items()}


def _counted(
    run: Run, index: np.ndarray, labels: PixelLabels, thresholds: list[Tensor], batch: int, item: Sequence[int]
) -> Columns:
    prepare = Preprocessing.of(run.loaded.data_config)
    found: list[Counted] = []
    for at in range(item[0], item[1], batch):
        end = min(at + batch, item[1])
        read = [labels.of(run.source.names[i], run.source.image(int(i)), prepare) for i in index[at:end]]
        shown = dissection.at_most(np.stack(read), EDGE)
        blocks = _maps(run, index, at, end, batch)
        part = [Counted.of(block, shown, limit) for block, limit in zip(blocks, thresholds, strict=True)]
        found = [old + new for old, new in zip(found, part, strict=True)] if found else part
    return {name: column for i, one in enumerate(found) for name, column in one.packed(f"{i}.").items()}


def _tell(looking: Looking, found: list[Counted], names: dict[int, str]) -> None:
    best = [one.best() for one in found]
    name = lambda label: names.get(int(label), f"label {int(label)}")  # noqa: E731
    looking.column("concept", [[name(v) if v else None for v in one.label] for one in best])
    looking.column("concept_iou", [one.iou for one in best])
    looking.column("concept_iou_chance", [one.chance for one in best])
    rows: list[Json] = []
    for place, label in enumerate(found[0].labels.tolist()):
        if label == 0:
            continue
        iou = [one.iou()[:, place] for one in found]
        shown = [int((one > dissection.SHOWS).sum()) for one in iou]
        i = int(np.argmax([np.nanmax(one, initial=-1) for one in iou]))
        j = int(np.nanargmax(np.where(np.isnan(iou[i]), -1, iou[i])))
        row: Json = {"label": label, "name": name(label), "pixels": found[0].share(place), "shown_by": shown}
        row |= {"best": f"{i}:{j}", "iou": float(iou[i][j]), "chance": float(found[i].chance()[j, place])}
        rows.append(row)
    shows = [int((one.iou > dissection.SHOWS).sum()) for one in best]
    looking.told["concepts"] = {
        "images": len(looking.index), "percentile": looking.see.masks.labelled, "bar": dissection.SHOWS,
        "units": shows, "labels": rows,
    }  # fmt: skip
