"""Reading an untrusted record: every helper accepts anything and answers with something safe to show.

A record may come from a failed run, an older version or a stranger, so nothing here raises on a wrong type, except
`plain`, which refuses objects that JSON cannot hold.
"""

from __future__ import annotations

import math
import os
import unicodedata
from typing import TYPE_CHECKING, Any

from vitprune.core.reading import Json

if TYPE_CHECKING:  # recipes are read, and checked, without either
    pass

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
# Marks that reorder the text around them: a class name must not be able to rewrite its own row.
_REORDERING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def plain(value: Any, where: str = "record") -> Any:
    """`value` as pure JSON types; non-finite floats become None, paths strings, arrays lists.

    Raises TypeError, with the place inside the record, for anything JSON cannot hold.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):
        return plain(value.tolist(), where)
    raise TypeError(f"{where} is a {type(value).__name__}, which JSON cannot hold; convert it before reporting")


def clean(value: Any, lines: bool = False) -> str:
    """Any value as display text: control, surrogate and reordering characters replaced; one line unless `lines`."""
    text = "" if value is None else str(value)
    if lines:
        return "\n".join(clean(line) for line in text.splitlines())
    return "".join(_clean_character(character) for character in text)


def _clean_character(character: str) -> str:
    if character in "\n\r\t\u2028\u2029":
        return " "
    hidden = unicodedata.category(character) in ("Cc", "Cs") or character in _REORDERING
    return REPLACEMENT if hidden else character


def number(value: Any) -> float | None:
    """A finite float, or None for everything else (booleans included)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        result = float(value)
    except OverflowError:
        return None
    return result if math.isfinite(result) else None


def mapping(value: Any) -> Json:
    """`value` if it is a dict, else an empty one."""
    return value if isinstance(value, dict) else {}


def sequence(value: Any) -> list[Any]:
    """`value` if it is a list, else an empty one."""
    return value if isinstance(value, list) else []


def mappings(value: Any) -> list[Json]:
    """The dicts of a list, in order."""
    return [item for item in sequence(value) if isinstance(item, dict)]


def interval(value: Any) -> tuple[float, float] | None:
    """A [low, high] pair of finite numbers in order, or None."""
    if not isinstance(value, list) or len(value) != 2:
        return None
    low, high = number(value[0]), number(value[1])
    return (low, high) if low is not None and high is not None and low <= high else None


def ratio(part: Any, whole: Any) -> float | None:
    """`part / whole`, or None where either is missing or the whole is not positive."""
    top, bottom = number(part), number(whole)
    return top / bottom if top is not None and bottom is not None and bottom > 0 else None


def budget_text(row: Json) -> str:
    """A row's budget of the whole model, as `macs 0.25`; nothing where it goes by `keep`."""
    return ", ".join(f"{clean(word)} {clean(amount)}" for word, amount in mapping(row.get("budget")).items())
