"""A record without the places of the machine it was made on; classes keep their names, whatever these look like."""

from __future__ import annotations

import re
from typing import Any

from vitprune.core.reading import Json

# Texts that may hold a path. Names of classes and groups are not among them: Open Images calls one /m/01g317.
_TEXTS = (
    "name", "command", "recipe", "recipe_yaml", "usage", "notes", "missing", "versions", "machine", "preprocessing", "choice",
    "checks", "files", "export", "stages",
)  # fmt: skip
_OF_SPLIT = ("given", "notes", "skipped")
# `/two/names` or `C:\\one` at the start of a word; not the rest of a relative path, an address or a fraction.
_PATH = re.compile(r"(?<![\w./~…\\-])(?:/(?:[\w.@+~-]{2,}/)+[\w.@+~-]*|[A-Za-z]:\\(?:[\w.@+~ -]+\\)*[\w.@+~-]*)")


def told(record: Json) -> Json:
    """The record with every absolute path in it told by its last name."""
    made = {key: _told(value) if key in _TEXTS else value for key, value in record.items()}
    split, model, worst = (record.get(key) for key in ("split", "model", "worst"))
    if isinstance(split, dict):
        made["split"] = {key: _told(value) if key in _OF_SPLIT else value for key, value in split.items()}
    if isinstance(model, dict):
        made["model"] = model | {"name": _told(model.get("name"))}
    if isinstance(worst, dict):
        made["worst"] = {group: _named(rows) for group, rows in worst.items()}
    return made


def _named(rows: Any) -> Any:
    if not isinstance(rows, list):
        return rows
    return [row | {"image": _told(row.get("image"))} if isinstance(row, dict) else row for row in rows]


def _told(value: Any) -> Any:
    if isinstance(value, str):
        return _PATH.sub(lambda found: re.split(r"[/\\]", found[0].rstrip("/\\"))[-1] or found[0], value)
    if isinstance(value, dict):
        return {key: _told(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_told(part) for part in value]
    return value
