"""Where did it hurt? The change per class, the confusions that changed, and the worst images; per group."""

from __future__ import annotations

from vitprune.core.reading import Json
from vitprune.report.page import numbers
from vitprune.report.page.blocks import Block, Cell, Columns, Fold, Heading, Row, Section, Text, figure, missing, table
from vitprune.report.plots import plots
from vitprune.report.reading import predictions
from vitprune.report.reading.beside import Beside
from vitprune.report.reading.values import clean, interval, mapping, mappings, number
from vitprune.report.sections.hurt.calibration import calibration_blocks
from vitprune.report.sections.hurt.confusions import confusion_blocks
from vitprune.report.sections.hurt.flips import flips_blocks

SHOWN = 30
MAX_GROUPS = 12
COLUMNS = ("Class", ">Images", ">Dense top-1", ">Slim top-1", ">95 % interval", ">Change, points")


def classes_section(record: Json, beside: Beside) -> Section:
    """For every group, or once without groups: images first, classes sorted by change, confusions, calibration."""
    groups = mapping(record.get("per_class_of_group")) or {"": record.get("per_class")}
    blocks: list[Block] = []
    for index, (group, rows) in enumerate(list(groups.items())[:MAX_GROUPS]):
        every = predictions.read(record, group, beside)
        inside = [
            *flips_blocks(mapping(record.get("worst")).get(group), every, beside),
            Heading("Class by class"),
            *_classes(f"classes-{index}", mappings(rows)),
            *confusion_blocks(f"confusion-{index}", mapping(record.get("confusions")).get(group), every),
            *calibration_blocks(f"calibration-{index}", every),
        ]
        name = f"Group {clean(group)}"
        blocks += inside if not group else [Heading(name), *inside] if index == 0 else [Fold(name, tuple(inside))]
    if len(groups) > MAX_GROUPS:
        text = f"The first {MAX_GROUPS} of {numbers.count(len(groups))} groups; report.json has all of them."
        blocks.append(Text(text, "note"))
    return Section("classes", "Where did it hurt?", tuple(blocks))


def _classes(key: str, rows: list[Json]) -> list[Block]:
    """A plot and a table sorted by change; long lists are folded."""
    rows = sorted(rows, key=_order)
    if not rows:
        return [missing("accuracies per class")]
    changes = [
        (clean(row.get("class")), value) for row in rows if (value := number(row.get("change_points"))) is not None
    ]
    lower = sum(value < 0 for _, value in changes)
    higher = sum(value > 0 for _, value in changes)
    unknown = len(rows) - len(changes)
    summary = f"{lower} of {numbers.plural(len(rows), 'class', 'classes')} lost accuracy, {higher} gained"
    summary += f", {unknown} could not be compared" if unknown else ""
    shown = changes if len(changes) <= SHOWN else changes[:20] + changes[-10:]
    caption = "Change in top-1 per class" + ("" if len(shown) == len(changes) else ": the 20 worst and the 10 best")
    plot = figure(plots.class_changes(key, shown, caption), caption)
    caption = "Top-1 per class, sorted by change"
    title = caption if len(rows) <= SHOWN else f"{caption}: the {SHOWN} worst"
    blocks: list[Block] = [Text(f"{summary}.{_grain(rows)}")]
    blocks.append(Columns(plot, (table(title, COLUMNS, map(_row, rows[:SHOWN])),)))
    if len(rows) > SHOWN:
        blocks.append(Fold(f"All {len(rows):,} classes", (table(caption, COLUMNS, map(_row, rows)),)))
    return blocks


def _grain(rows: list[Json]) -> str:
    """What one image weighs in the smallest class: differences near it mean nothing."""
    sizes = [value for row in rows if (value := number(row.get("n"))) is not None and value > 0]
    if not sizes:
        return ""
    step = numbers.points(100 / min(sizes)).removeprefix("+")
    return f" In the smallest class ({numbers.count(min(sizes))} images) one image alone is {step} points."


def _order(row: Json) -> tuple[bool, float]:
    change = number(row.get("change_points"))
    return (change is None, change or 0.0)


def _row(row: Json) -> Row:
    images, change = number(row.get("n")), number(row.get("change_points"))
    dense, slim, pair = number(row.get("dense_top1")), number(row.get("slim_top1")), interval(row.get("slim_ci95"))
    return Row(
        (
            Cell(clean(row.get("class"))),
            Cell(numbers.count(images), images),
            Cell(numbers.share(dense), dense),
            Cell(numbers.share(slim), slim),
            Cell(numbers.span(pair), pair[0] if pair else None),
            Cell(numbers.points(change), change),
        )
    )
