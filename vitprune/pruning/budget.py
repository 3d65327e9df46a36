"""The budget `keep`: a share of the hidden units (a float up to 1.0, or `25%`) or a count per block (`25 units`).

A bare whole number from 2 to 100 may mean either, so it is refused with both spellings.
"""

from __future__ import annotations

import re
from decimal import Decimal
from numbers import Integral, Real
from typing import Any

PERCENT = re.compile(r"(\d{1,12}(?:\.\d{0,12})?|\.\d{1,12})\s*%", re.ASCII)
UNITS = re.compile(r"(\d{1,12})\s*units?", re.ASCII)
UNCLEAR = range(2, 101)
SCHEMA = {
    "anyOf": [
        {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
        {"type": "integer", "minimum": 1, "not": {"minimum": UNCLEAR[0], "maximum": UNCLEAR[-1]}},
        {"type": "string", "pattern": r"^\s*((\d+(\.\d*)?|\.\d+)\s*%|\d+\s*units?)\s*$"},
    ]
}


def parse(given: Any) -> int | float:
    """The budget: an int is a count per block, a float a share. Raises ValueError with the spellings that are right."""
    if isinstance(given, str):
        return _spelled(given.strip())
    if isinstance(given, bool) or not isinstance(given, Real):
        raise ValueError("is neither a share nor a count; write `0.25`, `25%` or `25 units`")
    if isinstance(given, Integral):
        count = int(given)
        if count in UNCLEAR:
            raise ValueError(
                f"{count} may mean a share or a count: write `keep: {count}%` for {count} % of the hidden units, "
                f"`keep: {count} units` for {count} units per block"
            )
        return _count(count)
    share = float(given)
    if 1 < share <= 100:
        raise ValueError(
            f"a ratio lies above 0 and at most at 1.0: write `keep: {share:g}%` for {share:g} % of the hidden units, "
            f"`keep: {round(share)} units` for units per block"
        )
    return _share(share)


def spelled(keep: int | float) -> int | float | str:
    """How a recipe writes it, so that it is read again as what it is."""
    if isinstance(keep, int) and keep in UNCLEAR:
        return f"{keep} units"
    return keep


def words(keep: int | float) -> str:
    """For a line of text: `25 %`, `25 units`."""
    return f"{keep} unit{'s' * (keep != 1)}" if isinstance(keep, int) else f"{100 * keep:g} %"


def _spelled(text: str) -> int | float:
    if found := PERCENT.fullmatch(text):
        return _share(float(Decimal(found[1]) / 100))
    if found := UNITS.fullmatch(text):
        return _count(int(found[1]))
    raise ValueError("is neither a share nor a count; write `0.25`, `25%` or `25 units`")


def _share(share: float) -> float:
    if not 0 < share <= 1:
        raise ValueError("a ratio lies above 0 and at most at 1.0, which is `100%`")
    return share


def _count(count: int) -> int:
    if count < 1:
        raise ValueError("a count of hidden units per block is at least 1")
    return count
