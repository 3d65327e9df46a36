"""What names are made from and held against: every unit's activation on probe images, and maps of the shown units.

Of each class one half of the images is for names and class means (`fit`), the other for scores: no name is scored on an image
that it was made from. Legend: N images, H units of a block, P patches, k shown units of a block.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vitprune.images.split import by_class
from vitprune.model.inside import hooks
from vitprune.runs.engine.base import Columns, Job
from vitprune.runs.seeing import passes, targets
from vitprune.runs.seeing.looking import Looking
from vitprune.runs.stages.image_scores import digest_of
from vitprune.runs.stages.versions import version
from vitprune.runs.state.run import Run
from vitprune.see.pictures import reading

MOST = 256 << 20  # bytes of all units' activations: of more images a seeded draw of each class
Units = dict[int, list[int]]  # per block the shown ones


@dataclass(frozen=True, slots=True)
class Activations:
    """Positions in the source and labels [N] of the images, which are for names (`fit` [N]); per block the activations
    [N, H] at the class token (`cls`) or their mean over `patches` or `all` tokens, and maps [N, P, k] of the `shown` units."""

    index: np.ndarray
    labels: np.ndarray
    fit: np.ndarray
    tokens: str
    values: list[np.ndarray]
    shown: Units
    maps: dict[int, np.ndarray]

    @property
    def held(self) -> np.ndarray:
        """The images for scores, [N]."""
        return ~self.fit


def activations(looking: Looking) -> Activations:
    """From one pass over the images; made once for both parts."""
    if "activations" not in looking.left:
        looking.left["activations"] = _collected(looking)
    made: Activations = looking.left["activations"]
    return made


def _collected(looking: Looking) -> Activations:
    run, choice = looking.run, looking.see.names_tokens
    read = passes.read_at(looking, choice, "see.names.tokens")
    shown: Units = {}
    for i, j in targets.shown_units(looking):
        shown.setdefault(i, []).append(j)
    index, fit = chosen(looking.index, run.images.labels[looking.index], _room(looking), looking.see.units.seed)
    batch = passes.batch_of(run)
    work = functools.partial(_looked, run, index, shown, looking.layout.prefix, read, batch)
    known = {"model": run.model_digest, "data": run.data_digest, "code": version("see"), "device": run.device.type}
    about = digest_of(index, known | {"shown": shown, "read": read, "batch": batch})
    job = Job("see-names", passes.items(len(index), batch), work, about)
    parts: dict[str, list[np.ndarray]] = {}
    found = run.executor.run(job, passes.folder_of(looking, "names"))
    for columns in run.reporter.track(found, "see names", len(index), job.items[0][1]):
        for name, column in columns.items():
            parts.setdefault(name, []).append(column)
    whole = {name: np.concatenate(column) for name, column in parts.items()}
    values = [whole[f"{i}.values"] for i in range(len(run.sites))]
    maps = {i: whole[f"{i}.maps"] for i in shown}
    return Activations(index, run.images.labels[index], fit, "cls" if read == "class" else read, values, shown, maps)


def _room(looking: Looking) -> int:
    return max(2, MOST // (4 * sum(site.size for site in looking.sites)))


def chosen(index: np.ndarray, labels: np.ndarray, most: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """At most about `most` of the images, as many of each class, and which are for names: of each class every other one of a
    seeded order. In the order given."""
    groups = by_class(np.arange(len(index)), labels)
    each = max(2, most // len(groups)) if len(index) > most else len(index)
    taken, fit = np.zeros(len(index), bool), np.zeros(len(index), bool)
    for label, places in groups.items():
        order = np.random.default_rng([seed, label]).permutation(places)[:each]
        taken[order], fit[order[::2]] = True, True
    return index[taken], fit[taken]


def _looked(
    run: Run, index: np.ndarray, shown: Units, prefix: int, where: str, batch: int, item: Sequence[int]
) -> Columns:
    """One part: of a gated unit the size, for its sign is nobody's choice; maps clipped at 0."""
    found: dict[str, list[np.ndarray]] = {}

    def look(position: int, hidden_BTH: Tensor) -> None:
        reading.finite(run.sites[position], hidden_BTH)
        sized = hidden_BTH.abs() if reading.gated(run.sites[position]) else hidden_BTH
        read = sized[:, 0] if where == "class" else sized[:, 0 if where == "all" else prefix :].mean(1)
        found.setdefault(f"{position}.values", []).append(read.float().cpu().numpy())
        if position in shown:
            maps = sized[:, prefix:][..., shown[position]].relu()
            found.setdefault(f"{position}.maps", []).append(maps.float().cpu().numpy())

    model = run.loaded.model
    with torch.no_grad(), hooks.hidden_units(model, run.sites, look):
        for at in range(item[0], item[1], batch):
            x, _ = next(run.images.batches(index[at : min(at + batch, item[1])], batch))
            model(x.to(run.device))
    return {name: np.concatenate(column) for name, column in found.items()}
