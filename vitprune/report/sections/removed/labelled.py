"""Which labelled pixels the units show, beside what chance would give."""

from __future__ import annotations

from vitprune.core.reading import Json
from vitprune.report.page import numbers
from vitprune.report.page.blocks import Block, Cell, Fold, Heading, Row, Text, table
from vitprune.report.reading.values import clean, mappings, number, sequence

LISTED = 20  # rows that stand open


def concept_blocks(concepts: Json) -> list[Block]:
    """A row per label, for a run that held its units against labelled pixels."""
    rows = mappings(concepts.get("labels"))
    if not concepts:
        return []
    if not rows:
        return [Heading("Which labelled pixels units show"), Text("No pixel of these images has a label.", "note")]
    units = sum(int(number(one) or 0) for one in sequence(concepts.get("units")))
    bar = numbers.general(number(concepts.get("bar")))
    told = (
        f"{numbers.plural(units, 'unit')} show a label, at an intersection over union (IoU) above {bar}: pixels where the "
        f"unit is above the {numbers.general(number(concepts.get('percentile')))}th percentile of its own values over "
        f"{numbers.count(number(concepts.get('images')))} images, against those with the label. By chance is what as many "
        "pixels anywhere would give; a label of many pixels is met by chance alone."
    )
    caption = "Labels, and the unit that shows each best"
    columns = ("Label", ">Pixels", ">Units above the bar", "Best unit", ">IoU", ">by chance")
    made = table(caption, columns, map(_row, sorted(rows, key=lambda row: -(number(row.get("iou")) or 0))))
    found: Block = Fold(caption, (made,)) if len(rows) > LISTED else made
    return [Heading("Which labelled pixels units show"), Text(told), found]


def _row(row: Json) -> Row:
    shown = sum(int(number(one) or 0) for one in sequence(row.get("shown_by")))
    share, iou, chance = (number(row.get(key)) for key in ("pixels", "iou", "chance"))
    cells = [Cell(clean(row.get("name"))), Cell(numbers.share(share), share), Cell(numbers.count(shown), shown)]
    cells += [Cell(clean(row.get("best"))), Cell(numbers.fixed(iou, 3), iou), Cell(numbers.fixed(chance, 3), chance)]
    return Row(tuple(cells))
