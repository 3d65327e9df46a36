"""Decode every image once, split per class into probe and test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vitprune import data
from vitprune.context import Context
from vitprune.errors import UserError
from vitprune.files import write_json


def split(context: Context) -> list[Path]:
    """Decode every image once, split per class, write split.json."""
    recipe, source = context.recipe, context.source
    context.every_target()  # a class that does not exist is said before any work
    count = len(source.names)
    bad = data.unreadable(source, lambda items: context.reporter.track(items, "reading images", count))
    if bad and recipe.data.on_corrupt == "fail":
        raise UserError(bad[0][1] + (f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""))
    leave_out = {i for i, _ in bad} | set(_beyond_limit(source.class_of, recipe.data.limit_per_class))
    made = data.split_per_class(
        source.class_of, source.classes, seed=recipe.split.seed, probe=recipe.split.probe, leave_out=leave_out
    )
    path = context.folder.stage_folder("split") / "split.json"
    record = {
        "seed": made.seed,
        "probe_share": made.probe_share,
        "classes": source.classes,
        "per_class": [
            {"class": name, "probe": _count(made.probe, c, source), "test": _count(made.test, c, source)}
            for c, name in enumerate(source.classes)
        ],
        "skipped": [{"path": source.names[i], "reason": "not readable"} for i, _ in bad],
        "probe": made.probe.tolist(),
        "test": made.test.tolist(),
    }
    write_json(path, record)
    return [path]


def _count(part: np.ndarray, c: int, source: data.Source) -> int:
    return int((source.class_of[part] == c).sum())


def _beyond_limit(class_of: np.ndarray, limit: int | None) -> Iterator[int]:
    for c in np.unique(class_of) if limit else ():
        yield from np.flatnonzero(class_of == c)[limit:].tolist()
