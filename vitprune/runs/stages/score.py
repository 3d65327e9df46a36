"""Neuron paths and summed scores of the probe images, shard by shard; the long stage, so it survives interruption."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
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
from vitprune.core.reading import Json, digest, read_json
from vitprune.criteria import paths, results
from vitprune.criteria.attribution.path_scores import path_scores
from vitprune.criteria.catalog import CRITERIA
from vitprune.criteria.curves import Curve
from vitprune.criteria.paths import Gathered, PathSet
from vitprune.criteria.scores import Scores
from vitprune.criteria.statistics.random import random
from vitprune.images import split
from vitprune.model.inside import pieces
from vitprune.model.sites.base import names
from vitprune.pruning import masks
from vitprune.runs.results import attention, curves
from vitprune.runs.stages import image_scores
from vitprune.runs.stages.exams import features
from vitprune.runs.stages.image_scores import ADVICE, Discovery
from vitprune.runs.stages.sums import Asked
from vitprune.runs.state import lengths, precise
from vitprune.runs.state.run import Run
from vitprune.runs.state.workspace import PARTS

GAP_IMAGES = 16
WHOLE_IMAGES = 64  # of one batch, for criteria that look at many images together


def discover(run: Run) -> list[Path]:
    """One file per criterion and t; those that share settings and images are found in one pass."""
    files: list[Path] = []
    needed = discoveries(run)
    for found in needed:
        files += _discover(run, found)
    for name in sorted({run.recipe.criterion.name, *run.recipe.baselines} - {"random"}):
        if CRITERIA[name].whole:
            for group, targets in run.classes.sets_and_union().items():
                files += _whole(run, name, group, targets)
    files += features.describe(run)
    _forget_others(run, needed)
    return files


def _whole_file(run: Run, name: str, group: str | None) -> Path:
    return run.folder.stage_folder("discover") / f"{name}-of-{group or 'all'}.safetensors"


def _weights_file(run: Run, name: str, group: str | None) -> Path:
    return run.folder.stage_folder("discover") / f"{name}-of-{group or 'all'}.weights.safetensors"


def _mixed(run: Run, targets: list[int]) -> np.ndarray:
    """The probe images of a class set, classes mixed, for the criteria that train."""
    c, labels = run.recipe.criterion, run.images.labels
    probe = run.split.probe[np.isin(labels[run.split.probe], targets)]
    index = split.first_per_class(probe, run.source.class_of, c.probe_per_class)
    return np.random.default_rng(c.seed).permutation(index)


def _whole(run: Run, name: str, group: str | None, targets: list[int]) -> list[Path]:
    """A criterion that looks at weights, or at the probe images of a class set as a whole."""
    c, row = run.recipe.criterion, CRITERIA[name]
    assert row.whole is not None
    index, images = _mixed(run, targets), run.images
    size = WHOLE_IMAGES if "training" in row.needs else min(run.batching.batch, WHOLE_IMAGES)
    started = time.monotonic()

    def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for x, y in images.batches(index, size):
            yield x.to(run.device), y.to(run.device)

    trained, how, both = None, c.how(name), run.recipe.prunes_attention and row.attention is not None
    found: Sequence[torch.Tensor | Curve]
    with memory.peak(run.device) as highest, precise.passes(run, half=False):
        if row.trains and how.train_weights:
            found, trained = row.trains(run.loaded.model, run.sites, batches, how=how)
        else:
            found = _of_all_sites(run, Asked("discover", name, how, index, size, both), group, batches)
    scores = Scores.whole(name, names(run.sites), found)
    if not all(bool(block.isfinite().all()) for block in scores.rows):
        where = run.recipe.model.name
        raise UserError(f"criterion `{name}`: gives values that are not finite; check the weights of `{where}`")
    path = _whole_file(run, name, group)
    files = [_write(path, scores.to_bytes()), path.with_suffix(".json")]
    files += [attention.file_of(run, name, group)] if both else []
    files += [] if trained is None else [_kept(trained, _weights_file(run, name, group))]
    seconds = round(time.monotonic() - started, 2)
    run.reporter.say(f"discover {name}: {seconds:.1f} s")
    notes: Json = {"settings": {"criterion": name, "per_class": c.probe_per_class, **asdict(how)}, "t": None}
    notes |= {"images": len(index) if "images" in row.needs else 0, "seconds": seconds, "group": group}
    notes |= {"batch": None, "smallest_batch": None, "peak_memory_mb": _rounded(highest[0])}
    write_json(path.with_suffix(".json"), notes | {"shards": None, "completeness": None})
    return files


def _of_all_sites(
    run: Run, asked: Asked, group: str | None, batches: Callable[[], Iterator[tuple[torch.Tensor, torch.Tensor]]]
) -> Sequence[torch.Tensor | Curve]:
    """What a criterion says of the FFNs; what it says of the attentions, if that is asked, is left in a file."""
    row, model, how = CRITERIA[asked.criterion], run.loaded.model, asked.how
    assert row.whole is not None
    label = f"discover {asked.criterion} {group or ''}".strip()
    if row.summed:
        found, of_attentions = curves.of_sites(run, asked, label)
    else:
        found = list(row.whole(model, run.sites, batches, how=how))
        of = row.attention.curves(model, batches, None, how=how) if row.attention and asked.attention else []
        of_attentions = [one.tensors() for one in of]
    if asked.attention:
        attention.write(run, asked.criterion, group, of_attentions)
    return found


def _kept(trained: torch.nn.Module, path: Path) -> Path:
    """The file with the weights that a criterion trained."""
    return _write(path, to_bytes({key: value.cpu().contiguous() for key, value in trained.state_dict().items()}))


def _write(path: Path, content: bytes) -> Path:
    """The file, written whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    return path


def discoveries(run: Run) -> list[Discovery]:
    """Every t of the run's own criterion, of its baselines and of the paper's protocol."""
    recipe, c = run.recipe, run.recipe.criterion
    needed: dict[tuple[str, Any, int], set[int]] = {}
    for name in {c.name, *recipe.baselines} - {"random"}:
        if CRITERIA[name].score:
            needed.setdefault((name, c.how(name), c.images_per_class(name)), set()).update(lengths.every(run, name))
    if recipe.paper_protocol:
        p = recipe.paper_protocol
        for name in ("jas", "activation"):
            needed.setdefault((name, p.how(name), p.probe_per_class), set()).update(p.t)
    masks.check_t(max((t for ts in needed.values() for t in ts), default=1), run.sites)
    made = [Discovery(*key, tuple(sorted(ts))) for key, ts in needed.items()]
    return sorted(made, key=lambda d: (d.criterion, digest(d.settings)))


def result_file(run: Run, criterion: str, t: int, how: Any, per_class: int) -> Path:
    """Where one discovery's class frequencies and sums are."""
    name = Discovery(criterion, how, per_class, (t,)).name(t)
    return run.folder.stage_folder("discover") / f"{name}.safetensors"


def _index(run: Run, found: Discovery) -> np.ndarray:
    """The probe images that take part, class by class."""
    probe = run.split.probe
    probe = probe[np.isin(run.images.labels[probe], run.classes.every())]
    return split.first_per_class(probe, run.source.class_of, found.per_class)


def _discover(run: Run, found: Discovery) -> list[Path]:
    """Every shard of one discovery, then the sums of each t; shards of an interrupted run are taken as they are."""
    row = CRITERIA[found.criterion]
    index = _index(run, found)
    job = image_scores.job(run, found, index)
    folder = image_scores.folder_of(run, job)
    label = f"discover {found.criterion}" + (
        f" t={','.join(map(str, found.ts))}" if row.ranks_by == "frequency" else ""
    )
    classes = np.array(run.classes.every(), np.int64)
    gathered: dict[int, Gathered] = {}
    chosen: dict[int, list[PathSet]] = {t: [] for t in found.ts}
    smallest = batch = run.batching.images_per_batch(found.nodes)
    started = time.monotonic()
    with memory.peak(run.device) as highest:
        parts = run.executor.run(job, folder)
        step = job.items[0][1] - job.items[0][0]
        for (start, stop), columns in zip(job.items, run.reporter.track(parts, label, len(index), step), strict=True):
            smallest = min(smallest, int(columns["smallest"][0]))
            for t in found.ts:
                part = image_scores.of_t(columns, t)
                gathered[t] = paths.plus(gathered.get(t), part, classes)
                if row.path_dependent:
                    chosen[t] += _for_gap(part.paths, start, stop, len(index), batch)
    seconds = time.monotonic() - started
    files = []
    for t in found.ts:
        path = run.folder.stage_folder("discover") / f"{found.name(t)}.safetensors"
        with replacing(path) as temporary, temporary.open("wb") as file:
            results.write(file, gathered.pop(t), row.ranks_by)
        notes = {"settings": found.settings, "t": t, "images": len(index), "seconds": round(seconds, 2)}
        notes |= {"batch": batch, "smallest_batch": smallest, "peak_memory_mb": _rounded(highest[0]), "group": None}
        notes |= {"shards": folder.relative_to(run.folder.root).as_posix(), "completeness": None}
        if row.path_dependent:
            notes["completeness"] = _completeness(run, found, chosen[t])
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


def _completeness(run: Run, found: Discovery, chosen: list[PathSet]) -> dict[str, Any]:
    """|Σ w̄·∂p − (p(α = 1) − p(α = 0))| of the found paths of a few images: how far the quadrature is from exact."""
    gaps = []
    for few in chosen:
        x, y = next(run.images.batches(few.image, len(few.image)))
        x, y = x.to(run.device), y.to(run.device)

        def gap(x: torch.Tensor, y: torch.Tensor, units: torch.Tensor) -> torch.Tensor:
            return path_scores(run.loaded.model, run.sites, x, y, units, found.how).gap

        units = torch.from_numpy(few.units)
        gaps += pieces.joined(gap, x, y, units, advice=ADVICE, fits=run.batching.room(found.nodes)).abs().tolist()
    return {"mean_abs_gap": float(np.mean(gaps)), "max_abs_gap": float(np.max(gaps)), "images": len(gaps)}


def _forget_others(run: Run, needed: list[Discovery]) -> None:
    """Shards of discoveries that this recipe does not ask for any more, and the sums of criteria that are found."""
    jobs = [image_scores.job(run, found, _index(run, found)) for found in needed]
    used = {image_scores.folder_of(run, job).name for job in jobs}
    run.folder.clear(run.folder.stage_folder("discover") / PARTS, used)


def load(run: Run, criterion: str, t: int, how: Any, per_class: int) -> Scores:
    """The scores of one discovery."""
    path = result_file(run, criterion, t, how, per_class)
    return results.read(path, criterion, names(run.sites), run.loaded.outputs, CRITERIA[criterion].ranks_by)


def columns(run: Run, criterion: str, t: int, how: Any, per_class: int) -> PathSet:
    """Every image's path of one finished discovery, from its shards; those that have gone are computed again."""
    asked = Discovery(criterion, how, per_class, (t,))
    known = [found for found in discoveries(run) if found.settings == asked.settings and t in found.ts]
    found = known[0] if known else asked
    job = image_scores.job(run, found, _index(run, found))
    parts = run.executor.run(job, image_scores.folder_of(run, job))
    return paths.merge([image_scores.of_t(columns, t) for columns in parts]).paths


def model_of(run: Run, criterion: str, group: str | None = None) -> nn.Module:
    """What a criterion's mask is cut from: the dense model, or the copy whose weights the criterion trained."""
    row, dense = CRITERIA.get(criterion), run.loaded.model
    if row is None or row.trains is None or not run.recipe.criterion.train_weights:
        return dense
    trained = copy.deepcopy(dense)
    trained.load_state_dict(load_file(_weights_file(run, criterion, group)))
    return trained


def notes_of(run: Run) -> list[dict[str, Any]]:
    """What the finished discoveries say of themselves, for the report."""
    folder = run.folder.stage_folder("discover")
    return [dict(read_json(path)) for path in sorted(folder.glob("*.json")) if path.name != "stage.json"]


def scores_of(run: Run, criterion: str, seed: int = 0, group: str | None = None, t: int | None = None) -> Scores:
    """A criterion's scores for a class set at the recipe's own settings, from the discover stage; `t` None: that of the
    recipe's own budget."""
    if criterion == "random":
        return random(run.sites, seed=seed)
    c = run.recipe.criterion
    if CRITERIA[criterion].whole:
        return Scores.from_file(_whole_file(run, criterion, group), criterion, names(run.sites))
    t = lengths.of(run, criterion, run.recipe.keep) if t is None else t
    return load(run, criterion, t, c.how(criterion), c.images_per_class(criterion))
