"""The ONNX files of a run, and a job with a part for each: one that cannot be made is left out, and the others go on."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vitprune.core.errors import UserError
from vitprune.core.reading import Json
from vitprune.deploy.onnx import exporting
from vitprune.runs.engine.base import Columns, Job
from vitprune.runs.engine.parts import packed, unpacked
from vitprune.runs.state.run import Run
from vitprune.runs.state.workspace import PARTS

DENSE, DENSE_FILE = "dense", "dense.onnx"
EXAM = "exam"  # the work on files that are written already
FILES = {"fp32": "model.onnx", "fp16": "model.fp16.onnx", "int8": "model.int8.onnx"}
File = tuple[str | None, str]  # the class set and the precision; `DENSE`: of the model as it was


def path_of(run: Run, group: str | None, precision: str) -> Path:
    """Where a file of a class set is, or that of the dense model."""
    if precision == DENSE:
        return run.folder.stage_folder("export") / DENSE_FILE
    return run.folder.root / (group or "") / FILES[precision]


def dense_bytes(run: Run) -> int | None:
    """Bytes of the dense model's ONNX file with its weights, None where there is none."""
    path = path_of(run, None, DENSE)
    return exporting.bytes_of(path) if path.is_file() else None


def outputs_of(run: Run, targets: list[int]) -> list[int]:
    """The dense model's outputs that a class set's exported model has, in its order."""
    return list(range(run.loaded.outputs)) if run.classes.keeps_head(targets) else targets


def attempted(
    run: Run, name: str, which: Sequence[File], work: Callable[[Run, File, Any], Json], given: Any
) -> dict[File, Json]:
    """What `work` tells of every file; `failed` where it could not be done."""
    folder = run.folder.stage_folder("export") / PARTS / name
    run.folder.clear(folder, set())
    job = Job(f"export-{name}", which, functools.partial(_attempt, run, name, work, given), None, kept=False)
    parts = run.reporter.track(run.executor.run(job, folder), f"export, {name}", len(which))
    found = dict(zip(which, map(unpacked, parts), strict=True))
    for one, told in found.items():
        if "failed" in told:
            run.reporter.say(f"export: {path_of(run, *one).name} is left out: {told['failed']}")
    return found


def _attempt(run: Run, name: str, work: Callable[[Run, File, Any], Json], given: Any, which: File) -> Columns:
    """`work`; where it fails, no file is left and the reason is told.

    A disk that is full or may not be written is no fault of the file: that still ends the run, which can go on later.
    """
    path = path_of(run, *which)
    run.reporter.say(f"export: {path}" if name != EXAM else f"export, exam of {path}")
    try:
        return packed(work(run, which, given))
    except Exception as error:
        causes: list[BaseException | None] = [error, error.__cause__, error.__context__]
        if any(isinstance(cause, OSError) for cause in causes):
            raise
        path.unlink(missing_ok=True)
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        return packed({"failed": f"{kind}{' '.join(str(error).split())[:300]}"})
