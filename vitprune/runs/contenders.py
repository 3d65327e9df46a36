"""One pruned model of a table: pruned, repaired and examined on its context's test split."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from vitprune.exam import metrics
from vitprune.exam.logits import predictor, test_logits
from vitprune.runs.stages import score
from vitprune.runs.stages.exam import row
from vitprune.runs.stages.prune import mask_of, slimmed
from vitprune.runs.state.context import Context


@dataclass(frozen=True, slots=True)
class Cell:
    """What the model is, apart from the seed."""

    criterion: str
    keep: int | float
    recovery: str

    def name(self, seed: int) -> str:
        """File name of the cell's result."""
        kind = "n" if isinstance(self.keep, int) else "r"
        return f"{self.criterion}-{kind}{self.keep:g}-{self.recovery}-s{seed}.json"


def examine(context: Context, cell: Cell | None, seed: int) -> dict[str, Any]:
    """The row of one cell (None: the dense model), as in report.json, with the images it got right as hexadecimal bits."""
    targets = context.every_target()
    model, kept = context.loaded.model, 1.0
    if cell:
        mask = mask_of(context, score.scores_of(context, cell.criterion, seed), targets, cell.keep)
        dense = score.model_of(context, cell.criterion)
        model, kept = slimmed(context, mask, cell.recovery, None, targets, dense), mask.kept  # type: ignore[arg-type]
    predict = predictor(model)
    logits, labels = test_logits(predict, context.images, context.split, context.batch, np.array(targets))
    name, how, keep = (cell.criterion, cell.recovery, cell.keep) if cell else ("dense", "none", 1.0)
    made = row(context, name, how, metrics.metrics(logits, labels), model, targets, kept, keep) | {"seed": seed}
    made["hits"] = np.packbits(logits.argmax(1) == labels).tobytes().hex()
    if len(targets) < context.loaded.outputs:  # a specialist: the head's other outputs closed, for the dense model too
        closed = row(context, name, how, metrics.metrics(logits, labels, targets), model, targets, kept, keep)
        made["masked"] = closed | {"seed": seed, "head": "masked"}
    return made


def hits_of(cell: dict[str, Any]) -> np.ndarray:
    """Which test images the cell's model got right, bool [n]."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(cell["hits"]), np.uint8))[: cell["n"]].astype(bool)
