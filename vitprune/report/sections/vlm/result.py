"""What did I get? The verdict, three numbers, and the exam by modality of every model beside the others."""

from __future__ import annotations

from vitprune.core.reading import Json
from vitprune.report.page import numbers
from vitprune.report.page.blocks import Block, Cell, Number, Numbers, Row, Section, Text, figure, missing, table
from vitprune.report.reading.values import clean, mapping, mappings, number, ratio
from vitprune.report.sections.vlm import plots

WAYS = (
    ("right", "right image"), ("shuffled", "another image"), ("none", "no image"), ("alone", "text alone"),
)  # fmt: skip
MEANS = (
    "Nats per text token of pairs that nothing was chosen on; lower is better. Another image: of another text. No image: its "
    "tokens left out. Text alone: neither image nor prompt. Reliance: what another image costs; a model that names what it "
    "sees by habit has none."
)


def result_section(record: Json) -> Section:
    """The headline."""
    rows = mappings(record.get("exam"))
    if not rows:
        return Section("result", "What did I get?", (missing("the exam (`exam`): only types were asked for"),))
    blocks: list[Block] = [Text(_verdict(record, rows), "lead")]
    if len(rows) > 1:
        blocks += [Numbers((_texts(rows), _reliance(rows), _size(rows)))]
        if len(rows) < 3:
            said = "No random control was asked for, so what the choice of units is worth is not known (controls: 1)."
            blocks.append(Text(said, "warning"))
    pairs = record.get("pairs")
    count = number(pairs[1]) if isinstance(pairs, list) and len(pairs) == 2 else None
    blocks += [
        _table(rows, count),
        Text(MEANS, "note"),
        *figure(plots.exam("nll", _series(rows), WAYS), "The same as a plot"),
    ]
    return Section("result", "What did I get?", tuple(blocks))


def _verdict(record: Json, rows: list[Json]) -> str:
    said = clean(record.get("said")) or "The record has no verdict"
    if len(rows) < 2:
        return "Nothing was removed: the figures are those of the model as it is."
    before, after = _nats(rows[0], "right"), _nats(rows[1], "right")
    left = ratio(rows[1].get("parameters"), rows[0].get("parameters"))
    first = f"With {numbers.share(left)} of its parameters a text token costs {numbers.fixed(after, 3)} nats"
    return f"{first}, where the whole model needs {numbers.fixed(before, 3)}; {said}."


def _nats(row: Json, way: str) -> float | None:
    return number(mapping(row.get("nll")).get(way))


def _texts(rows: list[Json]) -> Number:
    own, before = _nats(rows[1], "right"), _nats(rows[0], "right")
    drawn = [x for row in rows[2:] if (x := _nats(row, "right")) is not None]
    beside = f"; random units {numbers.fixed(min(drawn), 3)} at best" if drawn else ""
    detail = f"the whole model {numbers.fixed(before, 3)}{beside}"
    return Number(
        numbers.fixed(own, 3), "nats per text token, right image", detail, "" if own is not None else "missing"
    )


def _reliance(rows: list[Json]) -> Number:
    own, before = _nats(rows[1], "reliance"), _nats(rows[0], "reliance")
    detail = f"nats that another image costs; the whole model {numbers.fixed(before, 3)}"
    return Number(numbers.fixed(own, 3), "reliance on the image", detail, "" if own is not None else "missing")


def _size(rows: list[Json]) -> Number:
    left = ratio(rows[1].get("parameters"), rows[0].get("parameters"))
    pair = [numbers.compact(number(row.get("parameters"))) for row in rows[:2]]
    return Number(numbers.share(left, 0), "of the parameters left", f"{pair[0]} → {pair[1]}")


def _table(rows: list[Json], pairs: float | None) -> Block:
    columns = ("Model", *(f">{name[0].upper()}{name[1:]}" for _, name in WAYS), ">Reliance", ">Parameters")
    told = f"Exam by modality, over {numbers.count(pairs)} pairs" if pairs is not None else "Exam by modality"
    return table(told, columns, [_row(row, n) for n, row in enumerate(rows)])


def _row(row: Json, place: int) -> Row:
    values = [_nats(row, way) for way in (*(way for way, _ in WAYS), "reliance")]
    cells = [Cell(numbers.fixed(value, 3), value) for value in values]
    size = number(row.get("parameters"))
    tag = ("whole", "this one")[place] if place < 2 else "control"
    return Row((Cell(clean(row.get("model")) or numbers.NONE), *cells, Cell(numbers.count(size), size)), tag)


def _series(rows: list[Json]) -> list[tuple[str, list[float | None]]]:
    return [(clean(row.get("model")), [_nats(row, way) for way, _ in WAYS]) for row in rows]
