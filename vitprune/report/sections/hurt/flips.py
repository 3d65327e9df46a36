"""The images whose answer changed: how many, and the worst of them with both answers side by side."""

from __future__ import annotations

from typing import Any

from vitprune.core.reading import Json
from vitprune.report.page import numbers
from vitprune.report.page.blocks import Block, Gallery, Heading, Picture, Text, missing
from vitprune.report.reading.beside import Beside
from vitprune.report.reading.predictions import Predictions
from vitprune.report.reading.values import clean, mappings, number

CAPTION = (
    "Images that only the dense model gets right come first, then others whose true class lost the most probability"
)


def flips_blocks(found: Any, predictions: Predictions | None, beside: Beside) -> list[Block]:
    """The sentence of counts where every answer is known, and the pictures."""
    heading = Heading("Images whose answer changed")
    told: list[Block] = [] if predictions is None else [Text(_sentence(predictions))]
    if not isinstance(found, list):
        return [heading, *told, missing("the worst test images")]
    pictures = tuple(_picture(row, beside) for row in mappings(found))
    if not pictures:
        return [heading, *told, Text("On no test image did the true class lose probability.")]
    lost = sum(not picture.source for picture in pictures)
    absent = missing(f"{numbers.plural(lost, 'thumbnail')}, gone from report-data")
    return [heading, *told, Gallery(CAPTION, pictures, heads=("True class", "Image")), *([absent] if lost else [])]


def _sentence(predictions: Predictions) -> str:
    only, gained, both, neither = predictions.flips()
    return (
        f"{numbers.plural(only, 'test image')} went from right to wrong and {numbers.count(gained)} from wrong to right; "
        f"both models are right on {numbers.count(both)} and both wrong on {numbers.count(neither)}."
    )


def _picture(row: Json, beside: Beside) -> Picture:
    true = clean(row.get("class"))
    lines = tuple((name, _answer(row, name, true)) for name in ("dense", "slim"))
    return Picture(beside.picture(row.get("thumbnail")), true, clean(row.get("image")), lines, pair=True)


def _answer(row: Json, name: str, true: str) -> str:
    """The answer with its probability, and that of the true class where it is another one."""
    answer, of_true = clean(row.get(f"{name}_class")), number(row.get(f"{name}_true_probability"))
    sure = of_true if answer == true else number(row.get(f"{name}_confidence"))
    text = f"{'✓' if answer == true else '✗'} {answer}" + ("" if sure is None else f" {sure:.2f}")
    return text if answer == true or of_true is None else f"{text}, {true} {of_true:.2f}"
