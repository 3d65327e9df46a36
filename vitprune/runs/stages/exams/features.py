"""What a backbone's dense features are like on the probe images of its costs: the scale that errors are told in.

A job over whole batches; its sums are added in their order, so that any number of workers gives the same bits.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes

from vitprune.core import least_squares
from vitprune.core.errors import UserError
from vitprune.core.files import replacing
from vitprune.core.least_squares import Sums
from vitprune.exam import features
from vitprune.exam.features import Spread
from vitprune.images.split import first_per_class
from vitprune.runs.engine.base import Columns, Job
from vitprune.runs.stages.versions import version
from vitprune.runs.state.run import Run
from vitprune.runs.state.workspace import PARTS

FILE = "features.safetensors"
IMAGES = 128  # of one part, at least


def describe(run: Run) -> list[Path]:
    """The file of the dense features' spread; nothing for a classifier."""
    if run.backbone is None:
        return []
    batch, index = run.batching.batch, _index(run)
    step = -(-IMAGES // batch) * batch
    items = [[start, min(start + step, len(index))] for start in range(0, len(index), step)]
    about = [run.model_digest, run.data_digest, index.tolist(), batch, run.backbone.reads, version("discover")]
    job = Job("features", items, functools.partial(_sums, run, index), [*about, run.device.type])
    folder = run.folder.stage_folder("discover") / PARTS / "features"
    total: Sums | None = None
    for part in run.reporter.track(run.executor.run(job, folder), "discover, features", len(index), step):
        total = least_squares.plus(total, {name: torch.from_numpy(column) for name, column in part.items()})
    assert total is not None
    path = run.folder.stage_folder("discover") / FILE
    with replacing(path) as temporary:
        temporary.write_bytes(to_bytes(features.spread_of(run.backbone, total).tensors()))
    return [path]


def spread(run: Run) -> Spread:
    """What `describe` left. Raises UserError where it is gone."""
    path = run.folder.stage_folder("discover") / FILE
    if not path.is_file():
        raise UserError(f"{path}: is missing; run the recipe again")
    return Spread.of_tensors(load_file(path))


def _index(run: Run) -> np.ndarray:
    return first_per_class(run.split.probe, run.source.class_of, run.recipe.criterion.probe_per_class)


def _sums(run: Run, index: np.ndarray, item: list[int]) -> Columns:
    assert run.backbone is not None
    tell, total = features.teller(run.loaded.model), None
    for x, _ in run.images.batches(index[item[0] : item[1]], run.batching.batch):
        total = least_squares.plus(total, features.spread_sums(run.backbone, tell(x)))
    assert total is not None
    return {name: value.numpy() for name, value in total.items()}
