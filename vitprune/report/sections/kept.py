"""What was kept? Widths per block, unit frequencies on neuron paths, class similarity."""

from __future__ import annotations

from itertools import zip_longest
from typing import Any

from vitprune.report import numbers, plots
from vitprune.report.blocks import Block, Cell, Fold, Heading, Row, Section, Text, figure, missing, table
from vitprune.report.values import clean, mapping, number, ratio, sequence


def kept_section(record: dict[str, Any]) -> Section:
    """Widths always; paths and similarity where the record has them."""
    blocks = [*_widths(mapping(record.get("model"))), *_paths(mapping(record.get("paths")))]
    return Section("kept", "What was kept?", (*blocks, *_similarity(mapping(record.get("class_similarity")))))


def _widths(model: dict[str, Any]) -> list[Block]:
    dense, slim = sequence(model.get("widths_dense")), sequence(model.get("widths_slim"))
    if not slim:
        return [missing("the widths per block")]
    caption = "FFN hidden units per block"
    values = [number(value) or 0.0 for value in dense], [number(value) or 0.0 for value in slim]
    rows = [_width(index, *pair) for index, pair in enumerate(zip_longest(dense, slim))]
    made = table(caption, ("Block", ">Dense", ">Slim", ">Kept"), rows)
    return [*figure(plots.widths("widths", *values, caption), caption), Fold("Widths as a table", (made,))]


def _width(index: int, dense: Any, slim: Any) -> Row:
    part = ratio(slim, dense)
    return Row(
        (
            Cell(str(index), index),
            Cell(numbers.count(number(dense)), number(dense)),
            Cell(numbers.count(number(slim)), number(slim)),
            Cell(numbers.share(part), part),
        )
    )


def _paths(paths: dict[str, Any]) -> list[Block]:
    if not paths:
        return []
    frequency = mapping(paths.get("frequency"))
    classes = [(clean(name), [_finite(block) for block in sequence(blocks)]) for name, blocks in frequency.items()]
    t = number(paths.get("t"))
    caption = "How often the most frequent units of each block lie on the paths of a class's images"
    caption += f" (t = {numbers.general(t)})" if t is not None else ""
    svg = plots.frequencies("frequency", classes, caption)
    tail = f"; the first {plots.MAX_PANELS} of {len(classes)} classes" if len(classes) > plots.MAX_PANELS else ""
    blocks: list[Block] = [Heading("Neuron paths")]
    blocks += figure(svg, f"{caption}; a faint line is an early block, a strong one a late block{tail}")
    if not svg:
        blocks.append(missing("unit frequencies"))
    return blocks + _most_frequent(mapping(paths.get("most_frequent")))


def _finite(values: Any) -> list[float]:
    return [value for item in sequence(values) if (value := number(item)) is not None]


def _most_frequent(units: dict[str, Any]) -> list[Block]:
    depth = max((len(sequence(value)) for value in units.values()), default=0)
    if not depth:
        return []
    rows = [_units_row(name, sequence(value), depth) for name, value in units.items()]
    caption = "The most frequent unit per class and block"
    made = table(caption, ("Class", *(f">Block {index}" for index in range(depth))), rows)
    return [Fold(caption, (made,))]


def _units_row(name: str, units: list[Any], depth: int) -> Row:
    cells = [Cell(clean(unit), number(unit)) for unit in units[:depth]]
    return Row((Cell(clean(name)), *cells, *[Cell(numbers.NONE)] * (depth - len(cells))))


def _similarity(similarity: dict[str, Any]) -> list[Block]:
    if not similarity:
        return []
    names = [clean(name) for name in sequence(similarity.get("classes"))]
    matrix = [[number(value) for value in sequence(row)] for row in sequence(similarity.get("matrix"))]
    heading = Heading("Which classes share units")
    if not names or len(matrix) != len(names) or any(len(row) != len(names) for row in matrix):
        return [heading, Text("The record's class similarity is not one row and column per class.", "missing")]
    caption = "Cosine similarity of the classes' unit use"
    if len(names) > plots.MAX_CELLS:
        caption += f": the first {plots.MAX_CELLS} of {len(names)} classes"
    return [heading, *figure(plots.similarity("similarity", names, matrix, caption), caption)]
