"""What was kept? Widths per block, unit frequencies on neuron paths, class similarity."""

from __future__ import annotations

from itertools import zip_longest
from typing import Any

import numpy as np

from vitprune.core.reading import Json
from vitprune.report.page import numbers
from vitprune.report.page.blocks import Block, Cell, Fold, Heading, Row, Section, Text, figure, missing, table
from vitprune.report.plots import plots, unit_plots
from vitprune.report.plots.similarity import cluster, matrix_of
from vitprune.report.reading.beside import Beside
from vitprune.report.reading.values import clean, mapping, number, ratio, sequence

MAX_PANELS = 12


def kept_section(record: Json, beside: Beside) -> Section:
    """Widths always; paths and similarity where the record has them."""
    blocks = _widths(mapping(record.get("model")))
    blocks += _attention(mapping(mapping(record.get("model")).get("attention")))
    blocks += _paths(mapping(record.get("paths")), beside)
    blocks += _similarity(mapping(record.get("class_similarity")), beside)
    return Section("kept", "What was kept?", tuple(blocks))


def _widths(model: Json) -> list[Block]:
    dense, slim = sequence(model.get("widths_dense")), sequence(model.get("widths_slim"))
    if not slim:
        return [missing("the widths per block")]
    caption = "FFN hidden units per block"
    values = [number(value) or 0.0 for value in dense], [number(value) or 0.0 for value in slim]
    rows = [_width(index, *pair) for index, pair in enumerate(zip_longest(dense, slim))]
    made = table(caption, ("Block", ">Dense", ">Slim", ">Kept"), rows)
    return [*figure(plots.widths("widths", *values, caption), caption), Fold("Widths as a table", (made,))]


def _attention(sizes: Json) -> list[Block]:
    """Heads and their dimensions, of the attentions that are smaller than they were."""
    rows = []
    for name, size in sizes.items():
        before, after = (sequence(mapping(size).get(key)) for key in ("dense", "slim"))
        if {len(before), len(after)} <= {2, 3}:
            shown = [" × ".join(numbers.count(number(size)) for size in state) for state in (before, after)]
            rows.append(Row((Cell(str(name)), *(Cell(text) for text in shown))))
    return (
        [
            table(
                "Attention: heads × dimensions of a head (of queries × of values, where they differ)",
                ("Attention", ">Dense", ">Slim"),
                rows,
            )
        ]
        if rows
        else []
    )


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


def _paths(paths: Json, beside: Beside) -> list[Block]:
    if not paths:
        return []
    units = mapping(paths.get("most_frequent"))
    t, images = number(paths.get("t")), number(paths.get("images"))
    asked = f"t = {numbers.general(t)}, " if t is not None else ""
    text = f"A path holds the units that carry one image to its class ({asked}{numbers.count(images)} probe images)."
    blocks: list[Block] = [Heading("Neuron paths"), *([Text(text)] if images is not None else [])]
    classes = _frequencies(paths, units, beside)
    tail = f"; {len(classes)} of {numbers.count(len(units))} classes, those that lost the most" * (
        len(classes) < len(units)
    )
    caption = "How often the units of each block are on the paths of a class's images"
    svg = unit_plots.violins("frequency", classes, caption)
    blocks += figure(svg, f"{caption}: width is frequency, the dotted line joins the most frequent units{tail}")
    if not svg:
        blocks.append(missing("the frequencies of units per class"))
    return blocks + _most_frequent(units)


def _frequencies(paths: Json, units: Json, beside: Beside) -> list[tuple[str, list[np.ndarray], list[int]]]:
    """Name, frequency per block [n] and most frequent units [L] of the classes that the record's file holds."""
    arrays = beside.arrays(paths.get("file"))
    blocks = [arrays[name] for name in (f"frequency.{i}" for i in range(len(arrays))) if name in arrays]
    names = sequence(paths.get("shown"))
    if not blocks or any(b.ndim != 2 or len(b) != len(names) or not b.shape[1] or b.dtype.kind != "f" for b in blocks):
        return []
    found = []
    for index, name in list(enumerate(names))[:MAX_PANELS]:
        best = [int(unit) for unit in sequence(units.get(str(name))) if number(unit) is not None]
        rows = [np.nan_to_num(block[index], posinf=0.0, neginf=0.0).clip(0, 1) for block in blocks]
        found.append((clean(name), rows, best if len(best) == len(blocks) else []))
    return found


def _most_frequent(units: Json) -> list[Block]:
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


def _similarity(similarity: Json, beside: Beside) -> list[Block]:
    if not similarity:
        return []
    heading = Heading("Which classes share units")
    names = [clean(name) for name in sequence(similarity.get("classes"))]
    matrix = matrix_of(similarity, beside)
    if matrix is None:
        if isinstance(name := similarity.get("file"), str):
            return [heading, missing(f"the class similarity: {clean(name)} is not there or does not fit the classes")]
        return [heading, Text("The record's class similarity is not one row and column per class.", "missing")]
    found = cluster(matrix)
    caption = "Cosine similarity of the classes' unit use; the tree above joins similar ones (average linkage)"
    blocks = [heading, *figure(unit_plots.heat_map("similarity", names, matrix, found, caption), caption)]
    if len(names) > unit_plots.MAX_NAMES:
        text = ", ".join(names[leaf] for leaf in found.order)
        blocks.append(Fold(f"The {numbers.count(len(names))} classes in the order of the picture", (Text(text),)))
    return blocks
