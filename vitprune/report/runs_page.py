"""Several runs on one page: headline figures, whether they may be compared, and what differs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vitprune.core import places
from vitprune.core.reading import Json
from vitprune.report.page import numbers
from vitprune.report.page.blocks import Block, Cell, Document, Row, Section, Text, figure, missing, table
from vitprune.report.plots import plots
from vitprune.report.reading.rows import dense_for
from vitprune.report.reading.values import clean, interval, mapping, mappings, number, ratio, sequence
from vitprune.report.sections.trust import failed_checks

Run = tuple[str, str, Json]  # name (unique on the page), path, record
MAX_CLASSES = 100
SOURCE = "Every number on this page comes from the runs' records, listed in the first table."


def comparison(records: list[tuple[Path, Json]]) -> Document:
    """The comparison page; every record holds pure JSON types."""
    runs = _named(records)
    if not runs:
        empty = Section("runs", "What are the figures?", (missing("any run to compare"),))
        return Document("vitprune comparison", "no runs", (empty,), (), SOURCE)
    sections = (
        Section("runs", "What are the figures?", tuple(_figures(runs))),
        Section("fair", "May they be compared?", tuple(_fair(runs))),
        Section("classes", "Which classes differ?", tuple(_classes(runs))),
        Section("recipes", "What was done differently?", tuple(_differences(runs))),
    )
    return Document("vitprune comparison", " · ".join(name for name, _, _ in runs), sections, _warnings(runs), SOURCE)


def _named(records: list[tuple[Path, Json]]) -> list[Run]:
    """Runs with their names, numbered where two share one."""
    names = [clean(record.get("name")) or "unnamed run" for _, record in records]
    unique = [name if names.count(name) == 1 else f"{name} ({index})" for index, name in enumerate(names, 1)]
    return [(name, clean(places.place(path)), record) for name, (path, record) in zip(unique, records, strict=True)]


def _warnings(runs: list[Run]) -> tuple[Text, ...]:
    found = []
    for name, _, record in runs:
        if record.get("complete") is not True:
            absent = ", ".join(clean(item) for item in sequence(record.get("missing")) if clean(item))
            found.append(f"{name} is not complete{f'; it lacks: {absent}' if absent else ''}.")
        if failed := failed_checks(record):
            found.append(f"{name} failed: {'; '.join(failed)}.")
        for note in sequence(mapping(record.get("result")).get("latency_notes")):
            found.append(f"{name}: its latency is in doubt, {clean(note)}.")
        if mapping(record.get("result")).get("protocol") == "oracle":
            found.append(f"{name} is oracle-routed: its accuracy is not a deployable one.")
    return tuple(Text(text, "warning") for text in found)


def _figures(runs: list[Run]) -> list[Block]:
    columns = ["Run", ">Top-1", ">95 % interval", ">Change, points", ">Kept", ">Parameters left", ">MACs left"]
    columns += [">Latency ratio", "Criterion", "Recovery", ">Images", "Record"]
    blocks: list[Block] = [table("Exported models", columns, map(_figures_row, runs))]
    caption = "Top-1 of every run's slim model with its 95 % interval, and of its dense model"
    return [*blocks, *figure(plots.accuracy_dots("runs", _points(runs), None, caption), caption)]


def _figures_row(run: Run) -> Row:
    name, path, record = run
    result, model = mapping(record.get("result")), mapping(record.get("model"))
    pair = interval(result.get("top1_ci95"))
    top1, kept, change = (number(result.get(key)) for key in ("top1", "kept", "top1_change_points"))
    params, macs = (ratio(model.get(f"{key}_slim"), model.get(f"{key}_dense")) for key in ("params", "macs"))
    latency, images = number(result.get("latency_ratio")), number(result.get("n"))
    doubt = " in doubt" if sequence(result.get("latency_notes")) else ""
    cells = (
        Cell(name),
        Cell(numbers.share(top1, 2), top1),
        Cell(numbers.span(pair), pair[0] if pair else None),
        Cell(numbers.points(change), change),
        Cell(numbers.share(kept), kept),
        Cell(numbers.share(params), params),
        Cell(numbers.share(macs), macs),
        Cell(numbers.times(latency) + doubt, latency, "warning" if doubt else ""),
        Cell(clean(result.get("criterion")) or numbers.NONE),
        Cell(clean(result.get("recovery")) or numbers.NONE),
        Cell(numbers.count(images), images),
        Cell(path),
    )
    return Row(cells, "oracle-routed" if result.get("protocol") == "oracle" else "")


def _points(runs: list[Run]) -> list[plots.Point]:
    points = []
    for name, _, record in runs:
        result = mapping(record.get("result"))
        dense = mapping(dense_for(mappings(record.get("rows")), result))
        for series, row in (("slim", result), ("dense", dense)):
            if (top1 := number(row.get("top1"))) is not None:
                low, high = interval(row.get("top1_ci95")) or (None, None)
                points.append(plots.Point(name, series, top1, low, high))
    return points


def _fair(runs: list[Run]) -> list[Block]:
    """The same data, split, dense model, head, protocol and classes, or not."""
    facts = {
        **{
            f"hash of the {key}": [mapping(r.get("hashes")).get(key) for _, _, r in runs]
            for key in ("data", "split", "model")
        },
        **{key: [mapping(r.get("result")).get(key) for _, _, r in runs] for key in ("head", "protocol")},
        "target classes": [r.get("target_classes") for _, _, r in runs],
        "machine": [r.get("machine") for _, _, r in runs],
    }
    rows = [Row((Cell(name), _agreement(values))) for name, values in facts.items()]
    differ = [row.cells[0].text for row in rows if row.cells[1].tone == "warning" and row.cells[0].text != "machine"]
    verdict = "All were measured on the same images under the same protocol: the figures may be compared."
    if differ:
        verdict = f"Not the same, or not recorded: {', '.join(differ)}. Compare each run with its own dense model only."
    if len(runs) < 2:
        verdict = "There is only one run, so there is nothing to compare."
    return [
        Text(verdict, "warning" if differ else "good"),
        table("What the runs share", ("What", "Over all runs"), rows),
    ]


def _agreement(values: list[Any]) -> Cell:
    if any(value is None for value in values):
        return Cell("not recorded in every run", tone="warning")
    same = len({json.dumps(value, sort_keys=True) for value in values}) == 1
    return Cell("✓ same") if same else Cell("✗ different", tone="warning")


def _classes(runs: list[Run]) -> list[Block]:
    tops = [
        {clean(row.get("class")): number(row.get("slim_top1")) for row in mappings(r.get("per_class"))}
        for _, _, r in runs
    ]
    shared = [name for name in tops[0] if all(name in top for top in tops[1:])]
    if not shared:
        return [missing("accuracies per class that all runs share")]
    rows = sorted((_class_row(name, [top[name] for top in tops]) for name in shared), key=_spread_order)
    caption = "Slim top-1 per class, the widest spread first"
    if len(rows) > MAX_CLASSES:
        caption += f": {MAX_CLASSES} of {len(rows):,} shared classes"
    columns = ("Class", *(f">{name}" for name, _, _ in runs), ">Spread, points")
    return [table(caption, columns, rows[:MAX_CLASSES])]


def _class_row(name: str, values: list[float | None]) -> Row:
    present = [value for value in values if value is not None]
    spread = 100 * (max(present) - min(present)) if len(present) > 1 else None
    shown = numbers.points(spread).removeprefix("+")
    return Row((Cell(name), *(Cell(numbers.share(value), value) for value in values), Cell(shown, spread)))


def _spread_order(row: Row) -> tuple[float, str]:
    spread = row.cells[-1].sort
    return (1.0 if spread is None else -spread, row.cells[0].text)


def _differences(runs: list[Run]) -> list[Block]:
    blocks: list[Block] = []
    for key, title in (("recipe", "Recipe settings that differ"), ("versions", "Versions that differ")):
        flat = [_flatten(mapping(record.get(key))) for _, _, record in runs]
        names = list(dict.fromkeys(name for values in flat for name in values))
        rows = [_difference(name, [values.get(name, numbers.NONE) for values in flat]) for name in names]
        rows = [row for row in rows if len({cell.text for cell in row.cells[1:]}) > 1]
        if not all(flat):
            blocks.append(missing(f"the {key} of every run"))
        elif not rows:
            blocks.append(Text(f"The runs have the same {key}."))
        if rows:
            blocks.append(table(title, ("Setting", *(name for name, _, _ in runs)), rows))
    return blocks


def _flatten(value: Json, prefix: str = "") -> dict[str, str]:
    """Nested settings as dotted names."""
    flat: dict[str, str] = {}
    for key, item in value.items():
        name = f"{prefix}{clean(key)}"
        flat |= _flatten(item, f"{name}.") if isinstance(item, dict) and item else {name: clean(json.dumps(item))}
    return flat


def _difference(name: str, values: list[str]) -> Row:
    return Row((Cell(name), *(Cell(value) for value in values)))
