"""units.csv: a row for every unit of the dense model, in its numbering, with a column for each thing that was found."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np

from vitprune.core.files import write_text
from vitprune.recipe.seeing import Site
from vitprune.runs.seeing.looking import Looking


def begin(looking: Looking) -> None:
    """Nothing; the columns that every unit has: block, unit, and per class set its number in the slim model (`slim`, empty
    where it was removed)."""
    looking.column("block", [[i] * site.size for i, site in enumerate(looking.sites)])
    looking.column("unit", [list(range(site.size)) for site in looking.sites])
    for group, kept in looking.kept.items():
        end = f"_{group}" if group else ""
        looking.column(f"kept{end}", [["yes" if one else "no" for one in mask.tolist()] for mask in kept])
        looking.column(f"slim{end}", [_slim(mask) for mask in kept])


def _slim(mask: np.ndarray) -> list[int | None]:
    place = np.cumsum(mask) - 1
    return [int(at) if there else None for at, there in zip(place, mask, strict=True)]


def write(looking: Looking, of: Site = "ffn") -> Path:
    """The table as a file: units.csv, or attention.csv."""
    path = looking.folder / ("units.csv" if of == "ffn" else "attention.csv")
    columns = looking.columns if of == "ffn" else looking.of_attention
    text = io.StringIO()
    made = csv.writer(text, lineterminator="\n")
    made.writerow(columns)
    for row in zip(*columns.values(), strict=True):
        made.writerow([_cell(value) for value in row])
    write_text(path, text.getvalue())
    return path


def _cell(value: Any) -> str:
    """A value as text; what a spreadsheet would take for a formula is quoted as it asks."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(value)
    return f"'{text}" if isinstance(value, str) and text[:1] in ("=", "+", "-", "@", "\t", "\r") else text
