"""Neuron paths and summed scores of the probe images, shard by shard; the long stage, so it survives interruption."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import nn

from vitprune.core import memory
from vitprune.core.errors import UserError
from vitprune.core.files import replacing, write_json
from vitprune.core.reading import digest, read_json
from vitprune.criteria import paths
from vitprune.criteria.attribution.path_scores import path_scores
from vitprune.criteria.catalog import CRITERIA
from vitprune.criteria.curves import Curve
from vitprune.criteria.paths import Gathered, PathSet
from vitprune.criteria.scores import Scores, to_scores
from vitprune.criteria.statistics.random import random
from vitprune.images import split
from vitprune.model.inside import pieces
from vitprune.model.sites.base import names
from vitprune.pruning import masks
from vitprune.runs.stages import image_scores
from vitprune.runs.stages.image_scores import ADVICE, Discovery
from vitprune.runs.state.context import Context
from vitprune.runs.state.workspace import PARTS

GAP_IMAGES = 16
WHOLE_IMAGES = 64  # of one batch, for criteria that look at many images together


def discover(context: Context) -> list[Path]:
    """One file per criterion and t; those that share settings and images are found in one pass."""
    files: list[Path] = []
    needed = discoveries(context)
    for found in needed:
        files += _discover(context, found)
    _forget_others(context, needed)
    for name in sorted({context.recipe.criterion.name, *context.recipe.baselines} - {"random"}):
        if CRITERIA[name].whole:
            for group, targets in context.sets_and_their_union().items():
                files += _whole(context, name, group, targets)
    return files


def _whole_file(context: Context, name: str, group: str | None) -> Path:
    return context.folder.stage_folder("discover") / f"{name}-of-{group or 'all'}.safetensors"


def _weights_file(context: Context, name: str, group: str | None) -> Path:
    return context.folder.stage_folder("discover") / f"{name}-of-{group or 'all'}.weights.safetensors"


def _mixed(context: Context, targets: list[int]) -> np.ndarray:
    """The probe images of a class set, classes mixed, for the criteria that train."""
    c, labels = context.recipe.criterion, context.images.labels
    probe = context.split.probe[np.isin(labels[context.split.probe], targets)]
    index = split.first_per_class(probe, context.source.class_of, c.probe_per_class)
    return np.random.default_rng(c.seed).permutation(index)


def _whole(context: Context, name: str, group: str | None, targets: list[int]) -> list[Path]:
    """A criterion that looks at weights, or at the probe images of a class set as a whole."""
    c, row = context.recipe.criterion, CRITERIA[name]
    assert row.whole is not None
    index, images = _mixed(context, targets), context.images
    started = time.monotonic()

    def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for x, y in images.batches(
            index, WHOLE_IMAGES if "training" in row.needs else min(context.batch, WHOLE_IMAGES)
        ):
            yield x.to(context.device), y.to(context.device)

    with memory.peak(context.device) as highest:
        trained, how = None, c.how(name)
        found: Sequence[torch.Tensor | Curve]
        if row.trains and how.train_weights:
            found, trained = row.trains(context.loaded.model, context.sites, batches, how=how)
        else:
            found = row.whole(context.loaded.model, context.sites, batches, how=how)
    scores = Scores.whole(name, names(context.sites), found)
    if not all(bool(block.isfinite().all()) for block in scores.rows):
        raise UserError(
            f"criterion `{name}`: gives values that are not finite; check the weights of `{context.recipe.model.name}`"
        )
    path = _whole_file(context, name, group)
    with replacing(path) as temporary:
        temporary.write_bytes(scores.to_bytes())
    files = [path, path.with_suffix(".json")]
    if trained is not None:
        files.append(_kept(trained, _weights_file(context, name, group)))
    seconds = round(time.monotonic() - started, 2)
    context.reporter.say(f"discover {name}: {seconds:.1f} s")
    images_read = len(index) if "images" in row.needs else 0
    notes: dict[str, Any] = {"settings": {"criterion": name, "per_class": c.probe_per_class, **asdict(how)}, "t": None}
    notes |= {"images": images_read, "seconds": seconds, "batch": None, "smallest_batch": None}
    notes |= {"peak_memory_mb": _rounded(highest[0])}
    write_json(path.with_suffix(".json"), notes | {"shards": None, "completeness": None, "group": group})
    return files


def _kept(trained: torch.nn.Module, path: Path) -> Path:
    """The file with the weights that a criterion trained."""
    state = {key: value.cpu().contiguous() for key, value in trained.state_dict().items()}
    with replacing(path) as temporary:
        temporary.write_bytes(to_bytes(state))
    return path


def discoveries(context: Context) -> list[Discovery]:
    """Every t of the run's own criterion, of its baselines and of the paper's protocol."""
    recipe, c = context.recipe, context.recipe.criterion
    needed: dict[tuple[str, Any, int], set[int]] = {}
    for name in {c.name, *recipe.baselines} - {"random"}:
        if CRITERIA[name].score:
            needed.setdefault((name, c.how(name), c.images_per_class(name)), set()).add(c.t)
    if recipe.paper_protocol:
        p = recipe.paper_protocol
        for name in ("jas", "activation"):
            needed.setdefault((name, p.how(name), p.probe_per_class), set()).update(p.t)
    masks.check_t(max((t for ts in needed.values() for t in ts), default=1), context.sites)
    made = [Discovery(*key, tuple(sorted(ts))) for key, ts in needed.items()]
    return sorted(made, key=lambda d: (d.criterion, digest(d.settings)))


def result_file(context: Context, criterion: str, t: int, how: Any, per_class: int) -> Path:
    """Where one discovery's class frequencies and sums are."""
    name = Discovery(criterion, how, per_class, (t,)).name(t)
    return context.folder.stage_folder("discover") / f"{name}.safetensors"


def _index(context: Context, found: Discovery) -> np.ndarray:
    """The probe images that take part, class by class."""
    probe = context.split.probe
    probe = probe[np.isin(context.images.labels[probe], context.every_target())]
    return split.first_per_class(probe, context.source.class_of, found.per_class)


def _discover(context: Context, found: Discovery) -> list[Path]:
    """Every shard of one discovery, then the sums of each t; shards of an interrupted run are taken as they are."""
    row = CRITERIA[found.criterion]
    index = _index(context, found)
    job = image_scores.job(context, found, index)
    folder = image_scores.folder_of(context, job)
    label = f"discover {found.criterion}" + (
        f" t={','.join(map(str, found.ts))}" if row.ranks_by == "frequency" else ""
    )
    classes = np.array(context.every_target(), np.int64)
    sums: dict[int, Gathered] = {}
    chosen: dict[int, list[PathSet]] = {t: [] for t in found.ts}
    smallest = batch = context.images_per_batch(found.nodes)
    started = time.monotonic()
    with memory.peak(context.device) as highest:
        parts = context.executor.run(job, folder)
        step = job.items[0][1] - job.items[0][0]
        for (start, stop), columns in zip(
            job.items, context.reporter.track(parts, label, len(index), step), strict=True
        ):
            smallest = min(smallest, int(columns["smallest"][0]))
            for t in found.ts:
                part = image_scores.of_t(columns, t)
                sums[t] = paths.plus(sums.get(t), part, classes)
                if row.path_dependent:
                    chosen[t] += _for_gap(part.paths, start, stop, len(index), batch)
    seconds = time.monotonic() - started
    files = []
    for t in found.ts:
        path = context.folder.stage_folder("discover") / f"{found.name(t)}.safetensors"
        with replacing(path) as temporary:
            temporary.write_bytes(sums[t].to_bytes())
        notes = {"settings": found.settings, "t": t, "images": len(index), "seconds": round(seconds, 2)}
        notes |= {"batch": batch, "smallest_batch": smallest, "peak_memory_mb": _rounded(highest[0]), "group": None}
        notes |= {"shards": folder.relative_to(context.folder.root).as_posix(), "completeness": None}
        if row.path_dependent:
            notes["completeness"] = _completeness(context, found, chosen[t])
        write_json(path.with_suffix(".json"), notes)
        files += [path, path.with_suffix(".json")]
    return files


def _rounded(megabytes: float | None) -> float | None:
    return None if megabytes is None else round(megabytes, 1)


def _for_gap(found: PathSet, start: int, stop: int, images: int, batch: int) -> list[PathSet]:
    """Of one shard, the paths that the quadrature is checked on: a few images, evenly over all of them, batch by batch."""
    of = np.linspace(0, images - 1, min(GAP_IMAGES, images)).astype(int)
    inside = of[(of >= start) & (of < stop)] - start
    rows = np.array_split(inside, range(batch, len(inside), batch)) if len(inside) else []
    return [PathSet(found.image[row], found.label[row], found.units[row], found.scores[row]) for row in rows]


def _completeness(context: Context, found: Discovery, chosen: list[PathSet]) -> dict[str, Any]:
    """|Σ w̄·∂p − (p(α = 1) − p(α = 0))| of the found paths of a few images: how far the quadrature is from exact."""
    gaps = []
    for few in chosen:
        x, y = next(context.images.batches(few.image, len(few.image)))
        x, y = x.to(context.device), y.to(context.device)

        def gap(x: torch.Tensor, y: torch.Tensor, units: torch.Tensor) -> torch.Tensor:
            return path_scores(context.loaded.model, context.sites, x, y, units, found.how).gap

        units = torch.from_numpy(few.units)
        gaps += pieces.joined(gap, x, y, units, advice=ADVICE, fits=context.room(found.nodes)).abs().tolist()
    return {"mean_abs_gap": float(np.mean(gaps)), "max_abs_gap": float(np.max(gaps)), "images": len(gaps)}


def _forget_others(context: Context, needed: list[Discovery]) -> None:
    """Shards of discoveries that this recipe does not ask for any more."""
    jobs = [image_scores.job(context, found, _index(context, found)) for found in needed]
    used = {image_scores.folder_of(context, job).name for job in jobs}
    context.folder.clear(context.folder.stage_folder("discover") / PARTS, used)


def load(context: Context, criterion: str, t: int, how: Any, per_class: int) -> Scores:
    """The scores of one discovery."""
    gathered = Gathered.from_file(str(result_file(context, criterion, t, how, per_class)))
    return to_scores(gathered, criterion, names(context.sites), context.loaded.outputs, CRITERIA[criterion].ranks_by)


def columns(context: Context, criterion: str, t: int, how: Any, per_class: int) -> PathSet:
    """Every image's path of one finished discovery, from its shards; those that have gone are computed again."""
    asked = Discovery(criterion, how, per_class, (t,))
    known = [found for found in discoveries(context) if found.settings == asked.settings and t in found.ts]
    found = known[0] if known else asked
    job = image_scores.job(context, found, _index(context, found))
    parts = context.executor.run(job, image_scores.folder_of(context, job))
    return paths.merge([image_scores.of_t(columns, t) for columns in parts]).paths


def model_of(context: Context, criterion: str, group: str | None = None) -> nn.Module:
    """What a criterion's mask is cut from: the dense model, or the copy whose weights the criterion trained."""
    row, dense = CRITERIA.get(criterion), context.loaded.model
    if row is None or row.trains is None or not context.recipe.criterion.train_weights:
        return dense
    trained = copy.deepcopy(dense)
    trained.load_state_dict(load_file(_weights_file(context, criterion, group)))
    return trained


def notes_of(context: Context) -> list[dict[str, Any]]:
    """What the finished discoveries say of themselves, for the report."""
    folder = context.folder.stage_folder("discover")
    return [dict(read_json(path)) for path in sorted(folder.glob("*.json")) if path.name != "stage.json"]


def scores_of(context: Context, criterion: str, seed: int = 0, group: str | None = None) -> Scores:
    """A criterion's scores for a class set at the recipe's own settings, from the discover stage."""
    if criterion == "random":
        return random(context.sites, seed=seed)
    c = context.recipe.criterion
    if CRITERIA[criterion].whole:
        return Scores.from_file(_whole_file(context, criterion, group), criterion, names(context.sites))
    return load(context, criterion, c.t, c.how(criterion), c.images_per_class(criterion))
