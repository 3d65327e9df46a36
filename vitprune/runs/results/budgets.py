"""Plans for a budget of the whole model, in whatever word it is given: counted, weighed, or measured here."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from vitprune.core.errors import UserError, one_line
from vitprune.core.files import scratch
from vitprune.criteria.scores import Scores
from vitprune.criteria.statistics.attention_curve import AttentionCurve
from vitprune.deploy.onnx import exporting
from vitprune.deploy.stopwatch import Stopwatch
from vitprune.model import classifier
from vitprune.pruning.plan import Plan
from vitprune.pruning.whole import allocation, reach, timed
from vitprune.pruning.whole.megabytes import Megabytes
from vitprune.pruning.whole.pricing import Pricing
from vitprune.pruning.whole.timed import Files, Timed
from vitprune.recipe.exports import of_file, timed_batch
from vitprune.recipe.parts import Whole
from vitprune.runs.results import shortcut
from vitprune.runs.stages.export import metadata
from vitprune.runs.state.run import Run

OPEN_SET = 256  # bytes of metadata that a specialist's file has beside those of the dense one's


def plan_of(run: Run, whole: Whole, scores: Scores, curves: Sequence[AttentionCurve], targets: list[int]) -> Plan:
    """What a class set's model keeps within a budget that is no frontier."""
    model, sizes = run.loaded.model, (targets, run.recipe.round_to, run.recipe.floor)
    free = run.recipe.attention_dims == "free"
    if whole.of == "latency":
        with scratch(run.folder.root) as folder:
            return timed.plan(_timed(run, folder), scores, curves, whole.amount, *sizes)
    return allocation.plan(
        model, scores, curves, whole.amount, _prices(run, whole, targets), *sizes, free, run.recipe.prunes_depth
    )


def _prices(run: Run, whole: Whole, targets: list[int]) -> Pricing:
    """What sizes cost in the budget's word; multiply-adds are those of the ONNX file where one is written."""
    if whole.of == "size_mb":
        return _megabytes(run, targets)
    found = reach.priced(whole.of, run.loaded.model, of_file(whole, run.recipe.export))
    if found is None:
        raise UserError(f"budget: {whole.of}: sites have no price in it before a search")
    return found


def _timed(run: Run, folder: Path) -> Timed:
    """What was measured of the run's model at the largest batch that its latency is told for; kept beside the run."""
    export = run.recipe.export
    clock = Files(Stopwatch(timed_batch(export)), folder, shortcut.used(export, run.loaded.model))
    return Timed(run.loaded.model, clock, run.folder.stage_folder("latency") / "table.json", run.reporter.say)


def _megabytes(run: Run, targets: list[int]) -> Megabytes:
    """The weight of the class set's files: with the outputs that it keeps, and in ONNX too where that is written."""
    model = run.loaded.model
    if not run.classes.keeps_head(targets):
        model = copy.deepcopy(model)
        classifier.narrow(model, targets)
    return Megabytes(model, (lambda dense: _onnx_bytes(run, dense, targets)) if run.recipe.export.onnx else None)


def _onnx_bytes(run: Run, model: nn.Module, targets: list[int]) -> int:
    """Bytes of the model's ONNX file with all that the export writes into it; 0 where it cannot be exported, for then the
    run goes on without."""
    run.reporter.say("prune: weighing the ONNX file of the dense model")
    outputs = list(range(run.loaded.outputs)) if run.classes.keeps_head(targets) else targets
    with scratch(run.folder.stage_folder("prune")) as folder:
        try:
            short, told = shortcut.of(run.recipe.export, model)
            about = metadata(run, targets, outputs)
            exporting.export(short, folder / "dense.onnx", about | told)
            return exporting.bytes_of(folder / "dense.onnx") + OPEN_SET
        except OSError:
            raise
        except Exception as error:  # classes of the exporter's own
            run.reporter.say(f"prune: no ONNX file can be made, so none counts: {one_line(error)}")
            return 0
