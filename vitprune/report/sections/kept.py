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
CURVES = "How often the units of a class are on its paths, the most frequent first"
VIOLINS = (
    "After Figure 4: width is frequency, height the unit's number, which has no order of its own; the dotted line joins the "
    "most frequent units"
)


def kept_section(record: Json, beside: Beside) -> Section:
    """Widths always; paths and similarity where the record has them."""
    papers = bool(mapping(mapping(record.get("recipe")).get("paper_protocol")))
    blocks = _widths(mapping(record.get("model")))
    blocks += _attention(mapping(mapping(record.get("model")).get("attention")))
    blocks += _paths(mapping(record.get("paths")), beside, papers)
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


def _paths(paths: Json, beside: Beside, papers: bool) -> list[Block]:
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
    svg = unit_plots.curves("frequency", [(name, rows) for name, rows, _ in classes], CURVES)
    blocks += figure(svg, f"{CURVES}, one line per block{tail}")
    if not svg:
        blocks.append(missing("the frequencies of units per class"))
    blocks += _most_frequent(units)
    if papers:
        violins = figure(unit_plots.violins("figure-4", classes, VIOLINS), f"{VIOLINS}{tail}")
        blocks += [Fold("The paper's Figure 4: units by their place in the block", violins)] if violins else []
    return blocks


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
    """The most frequent path of every class: from block to block the unit that most of its images' paths hold."""
    paths = {clean(name): [clean(unit) for unit in sequence(value)] for name, value in units.items()}
    if not any(paths.values()):
        return []
    rows = [Row((Cell(name), Cell(" → ".join(path) or numbers.NONE))) for name, path in paths.items()]
    caption = "The most frequent path of each class: its most frequent unit from the first block to the last"
    made = table(caption, ("Class", "Path"), rows)
    return [made] if len(rows) <= MAX_PANELS else [Fold(caption, (made,))]


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
