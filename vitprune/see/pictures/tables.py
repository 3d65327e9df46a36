"""The block plots' CSV text: one row per figure, with its standard error and its null band.

Missing values are empty. Legend: C classes.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence

import numpy as np

from vitprune.see.pictures.blocks import Banded

FIGURE = ("value", "standard_error", "null_low", "null_high")


def text(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """CSV with a header; floats to six digits, NaN as nothing. A cell that a table would take for a formula is quoted."""
    into = io.StringIO()
    writer = csv.writer(into, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([_cell(value) for value in row] for row in rows)
    return into.getvalue()


def by_name(what: str, names: Sequence[str], found: Banded) -> str:
    """A figure per name: class, block or unit."""
    return text((what, *FIGURE), ((name, *at(found, i)) for i, name in enumerate(names)))


def by_block(what: str, names: Sequence[str], blocks: Sequence[Banded]) -> str:
    """A figure per block and name, block by block from 0."""
    rows = ((b, name, *at(found, i)) for b, found in enumerate(blocks) for i, name in enumerate(names))
    return text(("block", what, *FIGURE), rows)


def pairs(names: Sequence[str], blocks: Sequence[Banded]) -> str:
    """A distance per block and pair of classes, every pair once."""
    rows = (
        (b, names[i], names[j], *at(found, (i, j)))
        for b, found in enumerate(blocks)
        for i in range(len(names))
        for j in range(i + 1, len(names))
    )
    return text(("block", "class", "other", *FIGURE), rows)


def at(found: Banded, place: int | tuple[int, int]) -> list[float]:
    """The figure at one place: value, standard error, null band."""
    return [float(values[place]) for values in (found.value, found.error, found.low, found.high)]


def _cell(value: object) -> object:
    if isinstance(value, float | np.floating):
        return "" if not math.isfinite(value) else f"{value:.6g}"
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@") else value
