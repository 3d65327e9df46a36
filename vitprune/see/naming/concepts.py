"""What a unit may be called: the classes, and attributes of images that a user wrote down.

Legend: N images, K concepts.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vitprune.core.errors import UserError
from vitprune.core.reading import read_text

MOST = 1 << 28  # bytes of a table of attributes
COLUMNS = 10_000
FIRST = ("image", "path")  # what the first column is called
LONGEST = 120  # characters of a name


@dataclass(frozen=True, slots=True)
class Concepts:
    """Their names, and which image has which, `table` [N, K] of 0 and 1."""

    names: tuple[str, ...]
    table: np.ndarray

    def beside(self, other: Concepts) -> Concepts:
        """Both, of the same images."""
        return Concepts((*self.names, *other.names), np.concatenate([self.table, other.table], 1))


def of_classes(labels_N: np.ndarray, names: dict[int, str]) -> Concepts:
    """Each class that has images, as a concept; `names` by the label."""
    found = np.unique(labels_N)
    return Concepts(tuple(names[int(c)] for c in found), (labels_N[:, None] == found).astype(np.float32))


def attributes(path: Path, images: Sequence[str]) -> Concepts:
    """The attributes of these images, from a CSV whose first column (`image`) has the names of images as the source has
    them, and whose others are attributes, 0 or 1.

    Raises UserError, naming the line, for a table that is none, and for an image without a row.
    """
    where = f"data.attributes {path}"
    rows = csv.reader(read_text(path, MOST, where, "utf-8-sig").splitlines())
    try:
        names = [cell.strip() for cell in next(rows, [])]
        _refuse_head(names, where)
        found: dict[str, np.ndarray] = {}
        for line, row in enumerate(rows, 2):
            if row:
                _take(found, row, len(names), f"{where}, line {line}")
    except csv.Error as error:
        raise UserError(f"{where}: cannot be read as CSV ({error})") from error
    missing = next((name for name in images if name not in found), None)
    if missing is not None:
        raise UserError(f"{where}: has no row for the image {missing[:LONGEST]}; names are those of the source")
    table = np.stack([found[name] for name in images]) if images else np.zeros((0, len(names) - 1), np.float32)
    return Concepts(tuple(names[1:]), table)


def _refuse_head(names: list[str], where: str) -> None:
    if len(names) < 2 or names[0].lower() not in FIRST:
        raise UserError(f"{where}: its first line is `image` and then the attributes' names")
    if len(names) - 1 > COLUMNS:
        raise UserError(f"{where}: has {len(names) - 1:,} attributes; at most {COLUMNS:,} are read")
    bad = next((name for name in names[1:] if not 0 < len(name) <= LONGEST or names.count(name) > 1), None)
    if bad is not None:
        raise UserError(f"{where}: attribute `{bad[:40]}` is empty, there twice or longer than {LONGEST} characters")


def _take(found: dict[str, np.ndarray], row: list[str], columns: int, where: str) -> None:
    if len(row) != columns:
        raise UserError(f"{where}: has {len(row)} cells, its first line {columns}")
    bad = next((cell for cell in row[1:] if cell.strip() not in ("0", "1")), None)
    if bad is not None:
        raise UserError(f"{where}: `{bad[:40]}` is neither 0 nor 1")
    if row[0] in found:
        raise UserError(f"{where}: image {row[0][:LONGEST]} is there twice")
    found[row[0]] = np.array([cell.strip() == "1" for cell in row[1:]], np.float32)


def listed(path: Path, most: int = 100_000) -> list[str]:
    """The concepts of a text file, one a line. Raises UserError for an empty one, or for more than `most`."""
    where = f"see.names.concepts {path}"
    found = [line.strip() for line in read_text(path, MOST, where).splitlines()]
    found = [line for line in found if line]
    long = next((line for line in found if len(line) > LONGEST), None)
    if not 0 < len(found) <= most or long is not None:
        why = "has none" if not found else f"`{long[:40]}…` is too long" if long else f"has {len(found):,} of them"
        raise UserError(f"{where}: {why}; one concept a line, up to {most:,} of up to {LONGEST} characters")
    return found
