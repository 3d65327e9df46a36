"""Directions of attention: the dimensions of the heads' values, where the run looked at them."""

from __future__ import annotations

from collections.abc import Callable

from vitprune.core.reading import Json
from vitprune.report.page import numbers
from vitprune.report.page.blocks import Block, Fold, Gallery, Heading, Picture, Row, Text, table
from vitprune.report.reading.beside import Beside
from vitprune.report.reading.values import clean, mapping, mappings, number, sequence

MOST = 24  # of a gallery


def direction_blocks(
    see: Json,
    beside: Beside,
    picture: Callable[[Json, Beside], Picture],
    columns: tuple[str, ...],
    row: Callable[[Json], Row],
) -> list[Block]:
    """What was seen of them, a drawn dozen, and the test against random heads, in the words that units have; nothing where the
    run did not look."""
    attention = mapping(see.get("attention"))
    if not attention:
        return []
    counts = [(number(h) or 0) * (number(d) or 0) for h, d in zip(*_sizes(attention), strict=False)]
    blocks = mappings(mapping(attention.get("alignment")).get("blocks"))
    told = (
        f"{numbers.count(sum(counts))} directions: the dimensions of the values of every head. A rotation of a head's values "
        "may change them, and their sign is nobody's choice: what is said is of their size, in the basis that the model was "
        "trained in."
    )
    found: list[Block] = [Heading("Directions of attention"), Text(f"{told} {_evidence(attention, blocks)}")]
    cards = mappings(attention.get("shown"))[:MOST]
    if cards:
        caption = (
            f"Directions: {len(cards)} by a seeded draw; the images that move each most, after the gap a random one"
        )
        heads = ("Direction", "Strongest image")
        found.append(Gallery(caption, tuple(picture(card, beside) for card in cards), wide=True, heads=heads))
    if blocks:
        caption = "The same test of what directions write; largest cosines are those of either sign"
        found.append(Fold("Do directions write classes at all?", (table(caption, columns, map(row, blocks)),)))
    if page := clean(mapping(see.get("atlas_of_attention")).get("file")):
        found.append(Text(f"Every direction is in {page} and attention.csv beside it.", "note"))
    return found


def _sizes(attention: Json) -> tuple[list[object], list[object]]:
    return sequence(attention.get("heads")), sequence(attention.get("dims"))


def _evidence(attention: Json, blocks: list[Json]) -> str:
    if why := clean(mapping(attention.get("alignment")).get("why_not")):
        return f"What they write cannot be said ({why})."
    if not blocks:
        return ""
    carrying = [clean(block.get("block")) for block in blocks if block.get("carries") is True]
    if not carrying:
        return (
            "No block's directions are closer to the classes than to random heads: nothing is said of what they write."
        )
    return f"Those of block{'s' if len(carrying) > 1 else ''} {', '.join(carrying)} write classes."
