"""Decode every image once; split per class into probe and test, or take both from the user."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from vitprune import data, decoding, labels, told
from vitprune.context import Context
from vitprune.errors import UserError
from vitprune.files import write_json
from vitprune.sources.pair import ProbeAndTest
from vitprune.types import Split


def split(context: Context) -> list[Path]:
    """Decode every image once, split per class, write split.json."""
    recipe, source = context.recipe, context.source
    context.every_target()  # a class that does not exist is said before any work
    given = isinstance(source, ProbeAndTest)
    count = len(source.names)
    seen = decoding.check(
        source, lambda items: context.reporter.track(items, "reading images", count), context.processes, contents=given
    )
    bad = seen.bad
    if bad and recipe.data.on_corrupt == "fail":
        raise UserError(bad[0][1] + (f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""))
    leave_out = {i for i, _ in bad} | data.beyond_limit(source, recipe.data.limit_per_class)
    if isinstance(source, ProbeAndTest):
        made = data.given_split(source, seen.contents, seed=recipe.split.seed, leave_out=leave_out)
    else:
        made = data.split_per_class(
            source.class_of, source.classes, seed=recipe.split.seed, probe=recipe.split.probe, leave_out=leave_out
        )
    probe, test = (
        np.bincount(source.class_of[part], minlength=len(source.classes)) for part in (made.probe, made.test)
    )
    if given:
        _every_target_can_be_served(context, probe, test)
    notes = data.remarks(source.classes, probe, test)
    if context.mapping is None and labels.by_order(source.classes, context.loaded.labels, source.numbers):
        notes.append(
            f"None of the images' classes ({source.classes[0]}, …) has a name of the model's: matched by order. "
            "data.labels can map them."
        )
    path = context.folder.stage_folder("split") / "split.json"
    write_json(path, _record(context, made, probe, test) | {"skipped": _skipped(context, bad), "notes": notes})
    for note in notes:
        context.reporter.say(note)
    return [path]


def _record(context: Context, made: Split, probe: np.ndarray, test: np.ndarray) -> dict[str, Any]:
    given, classes = context.recipe.data, context.source.classes
    rows = zip(classes, probe.tolist(), test.tolist(), strict=True)
    return {
        "seed": made.seed,
        "probe_share": made.probe_share,
        **(
            {"given": {"probe": told.place(given.probe), "test": told.place(given.test)}}
            if given.probe and given.test
            else {}
        ),
        "classes": classes,
        "per_class": [{"class": name, "probe": p, "test": t} for name, p, t in rows],
        "probe": made.probe.tolist(),
        "test": made.test.tolist(),
    }


def _skipped(context: Context, bad: list[tuple[int, str]]) -> list[dict[str, str]]:
    names = told.names(context.source.names) if bad else []
    return [{"path": names[i], "reason": "not readable"} for i, _ in bad]


def _every_target_can_be_served(context: Context, probe: np.ndarray, test: np.ndarray) -> None:
    """Every class that is pruned for has probe images [C], and every class set at least one test image."""
    outputs, given = context.images.output_of_class, context.recipe.data
    for group, targets in context.class_sets().items():
        wanted = np.isin(outputs, targets)
        for c in np.flatnonzero(wanted & (probe == 0)):
            raise UserError(
                f"data.probe {given.probe}: no readable image of class `{context.source.classes[int(c)]}`; add some, "
                "or name the other classes in `classes`"
            )
        if not test[wanted].any():
            called = f"group `{group}`" if group else "the classes"
            raise UserError(f"data.test {given.test}: no readable image of {called} that the model is pruned for")
