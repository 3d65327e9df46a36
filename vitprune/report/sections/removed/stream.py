"""How well the classes can be read off the tokens from block to block, beside what chance gives."""

from __future__ import annotations

from vitprune.core.reading import Json
from vitprune.report.page import numbers
from vitprune.report.page.blocks import Block, Cell, Fold, Row, Text, table
from vitprune.report.reading.values import clean, mapping, mappings, number

SUMMARY = "From which block on can the classes be read off the tokens?"
COLUMNS = (
    "Block", ">Own class, class token", ">patches", ">Rises, class token", ">patches", ">Keys = values, class token",
    ">patches", ">by chance", ">Largest cosine", ">drawn anew", ">Wilcoxon's p",
)  # fmt: skip
ATTENTION = ("Block", *COLUMNS[5:])


def readout_blocks(readout: Json) -> list[Block]:
    """A row per block, for a run that did the part."""
    rows = mappings(readout.get("blocks"))
    if not rows:
        return []
    classes = numbers.count(number(readout.get("classes")))
    chance = number(mapping(rows[0].get("identifiability")).get("chance"))
    told = (
        f"Every token is read through the model's own last norm and head. Own class: 1 − rank/{classes} of the image's class "
        f"(by chance {numbers.fixed(chance, 3)}). Rises: the share of tokens at which its probability is higher after the "
        "block (by chance about a half). Keys = values: the share at which one of the "
        f"{numbers.count(number(readout.get('top')))} strongest units is one of as many that speak most for the class. "
        "Largest cosine: of a class to a unit, mean over classes, beside a block and a head drawn anew. Means over "
        f"{numbers.count(number(readout.get('images')))} images ± standard errors."
    )
    caption = "The classes in every block's tokens"
    found: list[Block] = [Text(told), table(caption, COLUMNS, map(_row, rows))]
    if any("attention_agrees" in row for row in rows):
        own = "The dimensions of attention's values: directions that a rotation within a head may change"
        found.append(table(own, ATTENTION, map(_attention, rows)))
    return [Fold(SUMMARY, tuple(found))]


def _row(row: Json) -> Row:
    return Row((*_cells(row, ("identifiability", "rises", "agrees")), *_beside(row, "agrees", "class_value")))


def _attention(row: Json) -> Row:
    return Row((*_cells(row, ("attention_agrees",)), *_beside(row, "attention_agrees", "attention_class_value")))


def _cells(row: Json, names: tuple[str, ...]) -> list[Cell]:
    """The block's number, and each figure at both places."""
    cells = [Cell(clean(row.get("block")), number(row.get("block")))]
    for name in names:
        cells += [_mean(mapping(mapping(row.get(name)).get(read))) for read in ("class", "patches")]
    return cells


def _beside(row: Json, name: str, cosine: str) -> list[Cell]:
    """What chance gives of one figure, and the block's largest cosine beside one drawn anew."""
    chance = number(mapping(row.get(name)).get("chance"))
    value = mapping(row.get(cosine))
    found, random, p = (number(value.get(key)) for key in ("found", "random", "p"))
    cells = [Cell(numbers.fixed(value, 3), value) for value in (chance, found, random)]
    return [*cells, Cell(numbers.probability(p), p)]


def _mean(found: Json) -> Cell:
    value, error = number(found.get("value")), number(found.get("standard_error"))
    if value is None:
        return Cell(numbers.NONE)
    return Cell(numbers.fixed(value, 3) + (f" ± {numbers.fixed(error, 3)}" if error is not None else ""), value)
