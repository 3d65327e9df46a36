"""Decode every image once; split per class into probe and test, or take both from the user.

split.json holds the split, contents.safetensors a digest of every image's pixels, by which nothing is in both parts.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import __version__ as VERSION
from safetensors.numpy import save

from vitprune.core import places
from vitprune.core.errors import UserError
from vitprune.core.files import replacing, write_json
from vitprune.images import batches, class_names, decode_pool
from vitprune.images.decode_pool import Checked
from vitprune.images.sources import found
from vitprune.images.sources.base import Source
from vitprune.images.sources.pair import ProbeAndTest
from vitprune.images.split import Split, given_split, remarks, split_per_class
from vitprune.recipe.recipe import Recipe
from vitprune.runs.engine.base import Columns, Job
from vitprune.runs.engine.parts import packed, unpacked
from vitprune.runs.stages.versions import version
from vitprune.runs.state.run import CONTENTS, Run
from vitprune.runs.state.workspace import PARTS

IMAGES = 500  # of one part, at least
PARTS_AT_MOST = 1000


def split(run: Run) -> list[Path]:
    """Decode every image once, split per class."""
    recipe, source = run.recipe, run.source
    run.classes.every()  # a class that does not exist is said before any work
    given = isinstance(source, ProbeAndTest)
    count = len(source.names)
    seen = _seen(run)
    bad = seen.bad
    if bad and recipe.data.on_corrupt == "fail":
        run.folder.clear(run.folder.stage_folder("split") / PARTS, set())  # what could not be read may be another time
        raise UserError(bad[0][1] + (f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""))
    leave_out = {i for i, _ in bad} | set(np.flatnonzero(~run.within_limit).tolist())
    made = _made(recipe, source, seen.contents, leave_out)
    probe, test = (
        np.bincount(source.class_of[part], minlength=len(source.classes)) for part in (made.probe, made.test)
    )
    if given:
        _every_target_can_be_served(run, probe, test)
    notes = remarks(_names(run), probe, test)
    notes += batches.copies(source, seen.contents, np.concatenate([made.probe, made.test]))
    more = (
        class_names.remark(run.classes.match, source.classes, run.classes.count, run.loaded.labels),
        found.note(source.left_out, "the image source"),
    )
    notes += [note for note in more if note]
    path = run.folder.stage_folder("split") / "split.json"
    write_json(path, _record(run, made, probe, test) | {"skipped": _skipped(run, bad), "notes": notes})
    with replacing(path.with_name(CONTENTS)) as temporary:
        temporary.write_bytes(save({"content": seen.packed(count)}))
    for note in notes:
        run.reporter.say(note)
    run.folder.clear(path.parent / PARTS, set())
    return [path, path.with_name(CONTENTS)]


def _seen(run: Run) -> Checked:
    """What looking at every image found, from a job of a few hundred images each; fewer and larger parts where there are
    very many. The pixels of those within the limit per class are kept for the passes that follow."""
    count = len(run.source.names)
    step = max(IMAGES, -(-count // PARTS_AT_MOST))
    items = [[start, min(start + step, count)] for start in range(0, count, step)]
    about = [run.data_digest, version("split"), VERSION]
    job = Job("split", items, functools.partial(_look, run), about)
    result = Checked()
    parts = run.executor.run(job, run.folder.stage_folder("split") / PARTS)
    tracked = run.reporter.track(parts, "reading images", count, step)
    for (start, _), columns in zip(items, tracked, strict=True):
        result.contents |= {start + i: found for i, found in decode_pool.unpacked(columns.pop("contents")).items()}
        result.bad += [(int(i), why) for i, why in unpacked(columns)["bad"]]
    return result


def _look(run: Run, item: list[int]) -> Columns:
    """Digests of the pixels of a few images, and which cannot be read."""
    start, stop = item
    keep = run.images.keep(run.within_limit)
    found = decode_pool.check(run.source, processes=run.processes, contents=True, only=range(start, stop), keep=keep)
    own = Checked(found.bad, {i - start: content for i, content in found.contents.items()})
    return packed({"bad": [[i, why] for i, why in found.bad]}) | {"contents": own.packed(stop - start)}


def _made(recipe: Recipe, source: Source, contents: Mapping[int, bytes], leave_out: set[int]) -> Split:
    """The two parts: those that were given, or drawn per class."""
    if isinstance(source, ProbeAndTest):
        return given_split(source, contents, seed=recipe.split.seed, leave_out=leave_out)
    return split_per_class(
        source.class_of,
        source.classes,
        seed=recipe.split.seed,
        probe=recipe.split.probe,
        leave_out=leave_out,
        contents=contents,
    )


def _names(run: Run) -> list[str]:
    """What the classes of the images are called in everything that is written."""
    return [run.classes.name(int(i)) for i in run.images.output_of_class]


def _record(run: Run, made: Split, probe: np.ndarray, test: np.ndarray) -> dict[str, Any]:
    given, classes = run.recipe.data, _names(run)
    rows = zip(classes, probe.tolist(), test.tolist(), strict=True)
    return {
        "seed": made.seed,
        "probe_share": made.probe_share,
        **(
            {"given": {"probe": places.place(given.probe), "test": places.place(given.test)}}
            if given.probe and given.test
            else {}
        ),
        "classes": classes,
        "per_class": [{"class": name, "probe": p, "test": t} for name, p, t in rows],
        "probe": made.probe.tolist(),
        "test": made.test.tolist(),
    }


def _skipped(run: Run, bad: list[tuple[int, str]]) -> list[dict[str, str]]:
    names = places.names(run.source.names) if bad else []
    return [{"path": names[i], "reason": "not readable"} for i, _ in bad]


def _every_target_can_be_served(run: Run, probe: np.ndarray, test: np.ndarray) -> None:
    """Every class that is pruned for has probe images [C], and every class set at least one test image."""
    outputs, given = run.images.output_of_class, run.recipe.data
    for group, targets in run.classes.sets().items():
        wanted = np.isin(outputs, targets)
        for c in np.flatnonzero(wanted & (probe == 0)):
            raise UserError(
                f"data.probe {given.probe}: no readable image of class `{run.source.classes[int(c)]}`; add some, "
                "or name the other classes in `classes`"
            )
        if not test[wanted].any():
            called = f"group `{group}`" if group else "the classes"
            raise UserError(f"data.test {given.test}: no readable image of {called} that the model is pruned for")
