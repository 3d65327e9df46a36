"""What are a few of them like? Names with their scores, the images and tokens that move each, who was asked."""

from __future__ import annotations

from vitprune.core.reading import Json
from vitprune.report.page import numbers
from vitprune.report.page.blocks import Block, Cell, Facts, Fold, Gallery, Picture, Row, Section, Text, table
from vitprune.report.reading.beside import Beside
from vitprune.report.reading.values import clean, interval, mapping, mappings, number, sequence

HOW = (
    "One half of each type's units are those with the most evidence, the others are drawn. r: correlation of what the "
    "explanation says with the unit's strength, at all tokens of pairs that it was not made from; beside it what the other "
    "units' explanations reach. An explanation counts by its distance from that."
)
OF = {"words": "words and tokens", "server": "the server's names"}


def units_section(record: Json, beside: Beside) -> tuple[Section, ...]:
    """Nothing where no unit was asked for."""
    found = mapping(record.get("units"))
    rows = mappings(found.get("units"))
    if not rows:
        return ()
    blocks: list[Block] = [*_medians(found), _table(found, rows), Text(HOW, "note")]
    pictures = tuple(_picture(row, beside) for row in rows if row.get("picture"))
    if pictures:
        told = "Images that move them most, a contour where each is active, then two drawn at random"
        blocks.append(Gallery(told, pictures, wide=True, heads=("Unit", "Explanation")))
    tokens = [row for row in rows if sequence(row.get("tokens"))]
    if tokens:
        blocks.append(Fold("Tokens that they fire for", (_tokens(tokens),)))
    if server := mapping(found.get("server")):
        blocks.append(_server(server))
    return (Section("units", "What are a few of them like?", tuple(blocks)),)


def _medians(found: Json) -> list[Block]:
    said = []
    for by, parts in mapping(found.get("simulator")).items():
        for kind, what in (("image", "images"), ("text", "texts")):
            told = mapping(mapping(parts).get(kind))
            score, control, n = (number(told.get(key)) for key in ("median", "control", "n"))
            if score is not None and n:
                beside = f", other units' explanations {numbers.fixed(control, 2)}" if control is not None else ""
                said.append(
                    f"{OF.get(clean(by), clean(by))} on {what}: median r {numbers.fixed(score, 2)}{beside} ({n:.0f} units)"
                )
    return [Text(f"{'; '.join(said)[0].upper()}{'; '.join(said)[1:]}.")] if said else []


def _scores(found: Json) -> dict[tuple[str, str], Json]:
    """By kind of token and unit the score of the name that is shown: the server's where it was asked."""
    every = mapping(found.get("simulator"))
    parts = mapping(every.get("server") or every.get("words"))
    return {
        (kind, clean(row.get("unit"))): row
        for kind in ("image", "text")
        for row in mappings(mapping(parts.get(kind)).get("units"))
    }


def _table(found: Json, rows: list[Json]) -> Block:
    scores, made = _scores(found), []
    for row in rows:
        unit = clean(row.get("unit"))
        cells = [Cell(unit), Cell(clean(row.get("type"))), Cell(clean(row.get("chosen")))]
        cells.append(Cell(clean(row.get("name")) or "none found"))
        for kind in ("image", "text"):
            told = mapping(scores.get((kind, unit)))
            score, control = number(told.get("score")), number(told.get("control"))
            pair = interval(told.get("ci95"))
            ends = f" ({numbers.fixed(pair[0], 2)} to {numbers.fixed(pair[1], 2)})" if pair else ""
            against = f", others {numbers.fixed(control, 2)}" if control is not None else ""
            cells.append(
                Cell(f"{numbers.fixed(score, 2)}{ends}{against}" if score is not None else numbers.NONE, score)
            )
        made.append(Row(tuple(cells)))
    columns = ("Unit", "Type", "Chosen", "Explanation", ">r on images", ">r on texts")
    return table(f"Units explained by {clean(found.get('by'))}", columns, made)


def _picture(row: Json, beside: Beside) -> Picture:
    lines = (("type", clean(row.get("type"))), ("chosen", clean(row.get("chosen"))))
    return Picture(
        beside.picture(row.get("picture")), clean(row.get("unit")), clean(row.get("name")) or "none found", lines
    )


def _tokens(rows: list[Json]) -> Block:
    made = []
    for row in rows:
        known = [one for one in sequence(row.get("tokens")) if isinstance(one, list) and len(one) == 3]
        told = ", ".join(
            f"{clean(word)} {numbers.fixed(number(mean), 1)} ({numbers.count(number(n))}×)" for word, mean, n in known
        )
        made.append(Row((Cell(clean(row.get("unit"))), Cell(clean(row.get("type"))), Cell(told))))
    return table(
        "Mean strength at each token, in tenths of the unit's greatest, and how often it was seen",
        ("Unit", "Type", "Tokens"),
        made,
    )


def _server(server: Json) -> Block:
    items = [
        (key, clean(server.get(key)))
        for key in ("url", "model", "calls", "cached", "tokens")
        if server.get(key) is not None
    ]
    items += [(clean(one.get("file")), clean(one.get("sha256"))[:16]) for one in mappings(server.get("prompts"))]
    return Fold("Who was asked, and with which prompts", (Facts(tuple(items)),))
