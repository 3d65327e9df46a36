"""Dense beside slim, file by file: top-1, time and size as bars, and accuracy against time as a picture."""

from __future__ import annotations

from dataclasses import dataclass

from vitprune.core.reading import Json
from vitprune.report.page import numbers
from vitprune.report.page.blocks import Block, Cell, Columns, Row, Text, figure, table
from vitprune.report.plots import plots
from vitprune.report.reading.rows import dense_for, of_protocol
from vitprune.report.reading.values import clean, interval, mapping, mappings, number

CHART = "Top-1 against the time of a batch: up and to the left is better"
PRECISIONS = ("fp32", "fp16", "int8")


@dataclass(frozen=True, slots=True)
class Model:
    """One bar of each kind: top-1 with its 95 % interval, milliseconds of a batch, bytes of the ONNX file."""

    name: str
    top1: float | None
    pair: tuple[float, float] | None = None
    ms: float | None = None
    size: float | None = None


def beside_blocks(record: Json, result: Json) -> list[Block]:
    """The table of bars and the picture beside it; nothing where there is one model to show."""
    models = models_of(record, result)
    if len(models) < 2:
        return []
    batch = clean(result.get("latency_batch"))
    timed = any(model.ms is not None for model in models)
    drawn: list[Block] = [_bars(models, batch)]
    if any(model.ms is None for model in models) and timed:
        drawn.append(Text("A dash: this file was not timed.", "note"))
    points = [
        plots.Point("", model.name, model.top1, low, high, float(f"{model.ms:.3g}"))
        for model in models
        for low, high in [model.pair or (None, None)]
        if model.top1 is not None and model.ms is not None
    ]
    if len(points) < 2 or mappings(record.get("frontier")):
        return drawn
    label = f"ms of a batch of {batch}" if batch else "ms of a batch"
    return [Columns(tuple(drawn), figure(plots.accuracy_curves("trade", points, None, CHART, label), CHART))]


def models_of(record: Json, result: Json) -> list[Model]:
    """Dense, then the exported model in every precision that it was written in."""
    dense = mapping(dense_for(of_protocol(record, "honest"), result | {"protocol": "honest"}))
    batch, folder = result.get("latency_batch"), folder_of(record, result)
    lead = result.get("group") == mapping(record.get("result")).get("group")  # whose times the record has
    rows = [row for row in mappings(record.get("latency")) if lead and row.get("batch") == batch and batch is not None]
    times = {clean(row.get("precision")) or "fp32": row for row in reversed(rows)}
    found = []
    if (top1 := number(dense.get("top1"))) is not None:
        size = number(mapping(record.get("model")).get("bytes_dense"))
        ms = number(mapping(times.get("fp32")).get("dense_ms"))
        found.append(Model("dense", top1, interval(dense.get("top1_ci95")), ms, size))
    files = [row for row in mappings(mapping(record.get("export")).get("files")) if _folder(row) == folder]
    made = {clean(row.get("precision")): row for row in files}
    for precision in PRECISIONS:
        file, ms = mapping(made.get(precision)), number(mapping(times.get(precision)).get("slim_ms"))
        own = result if precision == "fp32" else file
        if precision == "fp32" or file:
            name = "slim" if not made else f"slim {precision}"
            pair = interval(result.get("top1_ci95")) if precision == "fp32" else None
            found.append(Model(name, number(own.get("top1")), pair, ms, number(file.get("bytes"))))
    return found


def folder_of(record: Json, result: Json) -> str:
    """Where the files of an exported model are, from the record's folder: its budget's, its group's, or there."""
    for line in mappings(record.get("frontier")):
        if line.get("budget") == result.get("budget"):
            return clean(line.get("folder"))
    return clean(result.get("group"))


def _folder(row: Json) -> str:
    return clean(row.get("path")).rpartition("/")[0]


def _bars(models: list[Model], batch: str) -> Block:
    columns = ["Model", ">Top-1"]
    timed, sized = (any(getattr(model, key) is not None for model in models) for key in ("ms", "size"))
    columns += [f">Batch of {batch}" if batch else ">A batch"] * timed + [">ONNX file"] * sized
    most = {key: max((getattr(model, key) or 0.0 for model in models), default=0.0) for key in ("ms", "size")}
    rows = []
    for model in models:
        cells = [Cell(model.name), Cell(numbers.share(model.top1, 2), model.top1, bar=model.top1)]
        for key, told in (("ms", numbers.milliseconds), ("size", numbers.size)):
            value = getattr(model, key)
            cells += [Cell(told(value), value, bar=_part(value, most[key]))] * {"ms": timed, "size": sized}[key]
        rows.append(Row(tuple(cells)))
    return table("Dense beside slim", columns, rows)


def _part(value: float | None, most: float) -> float | None:
    return None if value is None or most <= 0 else value / most
