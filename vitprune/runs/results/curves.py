"""What a criterion by sums says of its sites, as a job: a part each, FFNs and attentions alike.

Whoever computes a part reads the sums of that site alone.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from vitprune.criteria.catalog import CRITERIA
from vitprune.criteria.curves import Curve, Unit
from vitprune.model.sites.attention import attention_sites
from vitprune.runs.engine.base import Columns, Job
from vitprune.runs.stages import sums
from vitprune.runs.stages.sums import FFN, Asked, Totals
from vitprune.runs.stages.versions import version
from vitprune.runs.state.run import Run
from vitprune.runs.state.workspace import PARTS


def of_sites(run: Run, asked: Asked, label: str) -> tuple[list[Tensor | Curve], list[dict[str, Tensor]]]:
    """What the criterion says of every FFN, and the tensors of what it says of every attention, if that is asked."""
    totals = sums.totals(run, asked, label)
    items = totals.sites
    about = [totals.key, asked.criterion, asdict(asked.how), version(asked.stage)]
    job = Job(f"{asked.criterion}-sites", items, functools.partial(_work, run, asked, totals), about)
    folder = run.folder.stage_folder(asked.stage) / PARTS / f"{job.name}-{totals.key[:16]}"
    ffns: list[Tensor | Curve] = []
    attentions = []
    for (kind, _), made in zip(
        items, run.reporter.track(_all(run, job, folder), f"{label}, sites", len(items)), strict=True
    ):
        found = {name: torch.tensor(column) for name, column in made.items()}
        if kind == FFN:
            ffns.append(_of_columns(found))
        else:
            attentions.append(found)
    return ffns, attentions


def _all(run: Run, job: Job, folder: Path) -> Iterator[Columns]:
    return run.executor.run(job, folder)


def _work(run: Run, asked: Asked, totals: Totals, item: Sequence[Any]) -> Columns:
    """What the criterion says of one site."""
    row, model, (kind, i) = CRITERIA[asked.criterion], run.loaded.model, item
    found = totals.of(kind, i)
    if kind == FFN:
        assert row.summed is not None
        (made,) = row.summed.scores(model, [run.sites[i]], found, how=asked.how)
        return _columns(made)
    assert row.attention is not None

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for x, y in run.images.batches(asked.index, asked.batch):
            yield x.to(run.device), y.to(run.device)

    (one,) = row.attention.curves(model, batches, found, how=asked.how, sites=[attention_sites(model)[i]])
    return {name: value.contiguous().numpy() for name, value in one.tensors().items()}


def _columns(made: Tensor | Curve) -> Columns:
    if not isinstance(made, Curve):
        return {"scores": made.cpu().contiguous().numpy()}
    unit = np.frombuffer(made.unit.encode(), np.uint8)
    return {"order": made.order.numpy(), "costs": made.costs.numpy(), "unit": unit}


def _of_columns(found: dict[str, Tensor]) -> Tensor | Curve:
    if "scores" in found:
        return found["scores"]
    return Curve(found["order"], found["costs"], cast(Unit, found["unit"].numpy().tobytes().decode()))
