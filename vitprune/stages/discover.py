"""Neuron paths and summed scores of the probe images, shard by shard; the long stage, so it survives interruption."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from safetensors import SafetensorError

from vitprune import data, masks, paths
from vitprune.context import Context
from vitprune.criteria import CRITERIA
from vitprune.criteria.random import random
from vitprune.files import replacing
from vitprune.paths import Gathered
from vitprune.types import Scores

SHARD = 64


def discover(context: Context) -> list[Path]:
    """One file per criterion and t; those that share nodes and images are found in one pass."""
    files = []
    for (criterion, nodes, per_class), ts in sorted(discoveries(context).items()):
        files += _discover_together(context, criterion, sorted(ts), nodes, per_class)
    return files


def discoveries(context: Context) -> dict[tuple[str, int, int], set[int]]:
    """(criterion, nodes, probe images per class) → every t: the run's own, its baselines', the paper protocol's."""
    recipe, c = context.recipe, context.recipe.criterion
    needed: dict[tuple[str, int, int], set[int]] = {}
    for name in {c.name, *recipe.baselines} - {"random"}:
        needed.setdefault((name, c.nodes, c.probe_per_class), set()).add(c.t)
    if recipe.paper_protocol:
        p = recipe.paper_protocol
        for name in ("jas", "activation"):
            needed.setdefault((name, p.nodes, p.probe_per_class), set()).update(p.t)
    for ts in needed.values():
        masks.check_t(max(ts), context.sites)
    return needed


def discovery_file(context: Context, criterion: str, t: int, nodes: int, per_class: int) -> Path:
    """Where one discovery's columns are."""
    return context.folder.stage_folder("discover") / f"{criterion}-t{t}-m{nodes}-p{per_class}.safetensors"


def _discover_together(context: Context, criterion: str, ts: list[int], nodes: int, per_class: int) -> list[Path]:
    """Every shard of one criterion, then the merged file of each t; shards of an interrupted run are taken as they are."""
    files = [discovery_file(context, criterion, t, nodes, per_class) for t in ts]
    shards = files[0].parent / context.stage_inputs[:16] / f"{criterion}-m{nodes}-p{per_class}"
    probe, labels = context.split.probe, context.images.labels
    probe = probe[np.isin(labels[probe], context.every_target())]
    index = data.first_per_class(probe, context.source.class_of, per_class)
    size = context.images_per_batch(nodes) if CRITERIA[criterion].path_dependent else context.batch
    step = math.ceil(SHARD / size) * size
    label = f"discover {criterion} t={','.join(map(str, ts))}"
    parts: dict[int, list[Gathered]] = {t: [] for t in ts}
    for start in context.reporter.track(range(0, len(index), step), label, len(index), step):
        names = {t: shards / f"t{t}-{start:07d}-of-{len(index)}-by-{size}.safetensors" for t in ts}
        for t, part in _shard(context, names, criterion, nodes, index[start : start + step], size).items():
            parts[t].append(part)
    for t, path in zip(ts, files, strict=True):
        with replacing(path) as temporary:
            temporary.write_bytes(paths.merge(parts[t]).to_bytes())
    return files


def _shard(
    context: Context, names: dict[int, Path], criterion: str, nodes: int, index: np.ndarray, size: int
) -> dict[int, Gathered]:
    """One shard for every t: read if it is whole, else made batch by batch."""
    found = {t: _read(path, index) for t, path in names.items()}
    if all(found.values()):
        return {t: part for t, part in found.items() if part}
    parts: dict[int, list[Gathered]] = {t: [] for t in names}
    for start, (x, y) in zip(range(0, len(index), size), context.images.batches(index, size), strict=True):
        x, y = x.to(context.device), y.to(context.device)
        scores = CRITERIA[criterion].score(context.loaded.model, context.sites, x, y, ts=list(names), nodes=nodes)
        for t in names:
            parts[t].append(Gathered.of(scores[t], y, index[start : start + size], t, context.loaded.outputs))
    made = {t: paths.merge(parts[t]) for t in names}
    for t, path in names.items():
        with replacing(path) as temporary:
            temporary.write_bytes(made[t].to_bytes())
    return made


def _read(path: Path, index: np.ndarray) -> Gathered | None:
    """A shard of exactly these images, or None when it is missing or damaged."""
    try:
        found = Gathered.from_file(str(path))
    except (SafetensorError, KeyError, OSError, ValueError):
        return None
    return found if np.array_equal(found.paths.image, index) else None


def scores_of(context: Context, criterion: str, seed: int = 0) -> Scores:
    """A criterion's scores at the recipe's own settings, from the discover stage."""
    if criterion == "random":
        return random(context.sites, seed=seed)
    c = context.recipe.criterion
    found = discovery_file(context, criterion, c.t, c.nodes, c.probe_per_class)
    return paths.to_scores(Gathered.from_file(str(found)), criterion)
