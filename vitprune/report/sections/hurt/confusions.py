"""Which classes are taken for which: the whole matrix as a picture, and the pairs that changed as a table."""

from __future__ import annotations

from typing import Any

import numpy as np

from vitprune.core.reading import Json
from vitprune.report.page import numbers
from vitprune.report.page.blocks import Block, Cell, Fold, Heading, Row, Text, figure, missing, table
from vitprune.report.plots import matrices
from vitprune.report.reading.predictions import MAX_OUTPUTS, Predictions
from vitprune.report.reading.values import clean, mappings, number

OPEN = 5  # pairs that stand open


def confusion_blocks(key: str, found: Any, predictions: Predictions | None) -> list[Block]:
    """The picture where every answer is known; the table of pairs."""
    return [Heading("Which classes are confused"), *_matrix(key, predictions), *_pairs(found)]


def _matrix(key: str, predictions: Predictions | None) -> list[Block]:
    if predictions is None:
        return [missing("every answer of both models, so there is no confusion matrix")]
    if (whole := predictions.confusion()) is None:
        return [Text(f"More than {MAX_OUTPUTS:,} classes were true ones or answers: too many for a matrix.", "note")]
    outputs, dense, slim = whole
    names = [predictions.name(output) for output in outputs]
    caption = "Slim model: images of the class on the left taken for the class below"
    if len(outputs) <= matrices.MAX_WRITTEN:
        caption += "; small: the change from dense. Red squares are confusions that grew, blue ones that became fewer"
    else:
        caption += ", as a share of the class; the diagonal is what it gets right"
    made: list[Block] = [*figure(matrices.confusion(key, names, dense, slim, caption), caption)]
    if len(outputs) > matrices.MAX_WRITTEN:
        made.append(Fold(*_listed(outputs, predictions, dense, slim)))
    return made


def _listed(
    outputs: list[int], predictions: Predictions, dense: np.ndarray, slim: np.ndarray
) -> tuple[str, tuple[Block]]:
    """Every confusion of either model, the most frequent first, up to `MAX_LISTED`."""
    off = (dense + slim) * ~np.eye(len(outputs), dtype=bool)
    pairs = np.argwhere(off > 0)
    pairs = pairs[np.argsort(-off[tuple(pairs.T)], kind="stable")]
    rows = [
        _row(
            predictions.name(outputs[true]),
            predictions.name(outputs[other]),
            int(dense[true, other]),
            int(slim[true, other]),
        )
        for true, other in pairs[: matrices.MAX_LISTED].tolist()
    ]
    summary = f"{numbers.plural(len(pairs), 'confusion')} of either model"
    summary += f", the {len(rows):,} most frequent" if len(rows) < len(pairs) else ""
    return summary, (table("Confusions of either model, the most frequent first", COLUMNS, rows),)


COLUMNS = ("Class", "Taken for", ">Dense", ">Slim", ">Change")


def _pairs(found: Any) -> list[Block]:
    if not isinstance(found, list):
        return [missing("the confusions of the dense and the slim model")]
    rows = [_confusion(row) for row in mappings(found)]
    if not rows:
        return [Text("Both models confuse the same classes equally often.")]
    made: list[Block] = [
        table("Test images of a class taken for another, the largest changes first", COLUMNS, rows[:OPEN])
    ]
    if len(rows) > OPEN:
        rest = table("Test images of a class taken for another, further changes", COLUMNS, rows[OPEN:])
        made.append(Fold(f"{numbers.plural(len(rows) - OPEN, 'more pair')} that changed", (rest,)))
    return made


def _confusion(row: Json) -> Row:
    dense, slim, change = (number(row.get(key)) for key in ("dense", "slim", "change"))
    return _row(clean(row.get("class")), clean(row.get("taken_for")), dense, slim, change)


def _row(true: str, other: str, dense: float | None, slim: float | None, change: float | None = None) -> Row:
    if change is None and dense is not None and slim is not None:
        change = slim - dense
    sign = "+" if change is not None and change > 0 else ""
    figures = (
        Cell(numbers.count(dense), dense),
        Cell(numbers.count(slim), slim),
        Cell(sign + numbers.count(change), change),
    )
    return Row((Cell(true), Cell(other), *figures))
