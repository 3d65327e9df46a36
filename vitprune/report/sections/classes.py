"""Where did it hurt? The change per class, the worst first."""

from __future__ import annotations

from typing import Any

from vitprune.report import numbers, plots
from vitprune.report.blocks import Block, Cell, Fold, Row, Section, Text, figure, missing, table
from vitprune.report.values import clean, mappings, number

SHOWN = 30
COLUMNS = ("Class", ">Images", ">Dense top-1", ">Slim top-1", ">Change, points")


def classes_section(record: dict[str, Any]) -> Section:
    """A plot and a table sorted by change; long lists are folded."""
    rows = sorted(mappings(record.get("per_class")), key=_order)
    if not rows:
        return Section("classes", "Where did it hurt?", (missing("accuracies per class"),))
    changes = [
        (clean(row.get("class")), value) for row in rows if (value := number(row.get("change_points"))) is not None
    ]
    lower = sum(value < 0 for _, value in changes)
    higher = sum(value > 0 for _, value in changes)
    unknown = len(rows) - len(changes)
    summary = f"{lower} of {numbers.plural(len(rows), 'class', 'classes')} lost accuracy, {higher} gained"
    summary += f", {unknown} could not be compared" if unknown else ""
    blocks: list[Block] = [Text(f"{summary}.{_grain(rows)}")]
    shown = changes if len(changes) <= SHOWN else changes[:20] + changes[-10:]
    caption = "Change in top-1 per class" + ("" if len(shown) == len(changes) else ": the 20 worst and the 10 best")
    blocks += figure(plots.class_changes("classes", shown, caption), caption)
    caption = "Top-1 per class, sorted by change"
    if len(rows) <= SHOWN:
        blocks.append(table(caption, COLUMNS, map(_row, rows)))
    else:
        blocks.append(table(f"{caption}: the {SHOWN} worst", COLUMNS, map(_row, rows[:SHOWN])))
        blocks.append(Fold(f"All {len(rows):,} classes", (table(caption, COLUMNS, map(_row, rows)),)))
    return Section("classes", "Where did it hurt?", tuple(blocks))


def _grain(rows: list[dict[str, Any]]) -> str:
    """What one image weighs in the smallest class: differences near it mean nothing."""
    sizes = [value for row in rows if (value := number(row.get("n"))) is not None and value > 0]
    if not sizes:
        return ""
    step = numbers.points(100 / min(sizes)).removeprefix("+")
    return f" In the smallest class ({numbers.count(min(sizes))} images) one image alone is {step} points."


def _order(row: dict[str, Any]) -> tuple[bool, float]:
    change = number(row.get("change_points"))
    return (change is None, change or 0.0)


def _row(row: dict[str, Any]) -> Row:
    images, change = number(row.get("n")), number(row.get("change_points"))
    dense, slim = number(row.get("dense_top1")), number(row.get("slim_top1"))
    return Row(
        (
            Cell(clean(row.get("class"))),
            Cell(numbers.count(images), images),
            Cell(numbers.share(dense), dense),
            Cell(numbers.share(slim), slim),
            Cell(numbers.points(change), change),
        )
    )
