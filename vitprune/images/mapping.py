"""A mapping file (`data.labels`): other names of the images' classes. Every name of an entry means the same class.

- `.json`: `{"name": "other name"}`, `{"name": ["other", "names"]}`, `{"name": 3}` (an output), `{"3": [names]}` or `[names]`
- `.csv`: the columns `name` and `label`, one name or output number per line; a name may have several lines
- any other: one class per line in the order of the outputs, `n01440764 tench, Tinca tinca` or names between tabs
"""

from __future__ import annotations

import csv
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitprune.core.errors import UserError
from vitprune.core.reading import digest, read_text
from vitprune.images.names import Spellings, number_of

SYNSET = re.compile(r"(n\d{8})\s+(\S.*)")
MAX_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Entry:
    """Names of one class; its output where the file says it, `stated` by a number or only by the order of its lines."""

    names: tuple[str, ...]
    output: int | None = None
    stated: bool = False


class Mapping:
    """A mapping file. Raises UserError for one that cannot be read."""

    def __init__(self, file: Path) -> None:
        self.where = f"data.labels {file}"
        text = read_text(file, MAX_BYTES, self.where, "utf-8-sig")
        kind = {".json": self._json, ".csv": self._csv}.get(file.suffix.lower(), self._lines)
        self.entries: list[Entry] = kind(text)
        if not self.entries:
            raise UserError(f"{self.where}: names no class")
        self._known = Spellings((name, i) for i, entry in enumerate(self.entries) for name in entry.names)

    def entry(self, name: str) -> Entry | None:
        """The entry of a class. Raises UserError where the name is in several."""
        found = self._known.find(name)
        if len(found) > 1:
            raise UserError(f"{self.where}: `{name}` is a name of more than one class; use another of its names")
        return self.entries[found.pop()] if found else None

    def fingerprint(self) -> str:
        """Digest of what the file says."""
        return digest([[e.names, e.output, e.stated] for e in self.entries])

    def _lines(self, text: str) -> list[Entry]:
        rows = [line.strip() for line in text.splitlines() if line.strip()]
        return [Entry(_spellings(row), position) for position, row in enumerate(rows)]

    def _csv(self, text: str) -> list[Entry]:
        reader = csv.DictReader(text.splitlines(), skipinitialspace=True)
        names: dict[str, list[str]] = {}
        outputs: dict[str, int] = {}
        try:
            for row in reader:
                name, label = ((row.get(column) or "").strip() for column in ("name", "label"))
                number = number_of(label)
                if not name or not label or (number is not None and name in outputs):
                    raise UserError(f"{self.where}, line {reader.line_num}: give a `name` and one `label`")
                names.setdefault(name, [name])
                if number is None:
                    names[name].append(label)
                else:
                    outputs[name] = number
        except csv.Error as error:
            raise UserError(f"{self.where}: cannot be read as CSV ({error})") from error
        return [Entry(tuple(every), outputs.get(name), name in outputs) for name, every in names.items()]

    def _json(self, text: str) -> list[Entry]:
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{self.where}: cannot be read as JSON ({str(error)[:80]})") from error
        if isinstance(content, list):
            return [Entry(self._names(value), position) for position, value in enumerate(content)]
        if not isinstance(content, dict):
            raise UserError(f"{self.where}: an object or a list of names is expected")
        numbers = {key: number_of(key) for key in content}
        if content and None not in numbers.values() and not any(type(v) is int for v in content.values()):
            return [Entry((key, *self._names(value)), numbers[key], True) for key, value in content.items()]
        return [
            Entry((key,), value, True) if type(value) is int else Entry((key, *self._names(value)))
            for key, value in content.items()
        ]

    def _names(self, value: Any) -> tuple[str, ...]:
        several = value if isinstance(value, list) else [value]
        if not several or not all(isinstance(name, str) and name.strip() for name in several):
            raise UserError(f"{self.where}: `{str(value)[:60]}` is no name, list of names or output number")
        return tuple(spelling for name in several for spelling in _spellings(name.strip()))


def _spellings(text: str) -> tuple[str, ...]:
    """`n01440764 tench, Tinca tinca` → the synset, the whole name, each synonym; tabs part spellings too."""
    match = SYNSET.fullmatch(text)
    parts = [match[1], match[2]] if match else text.split("\t")
    synonyms = [s.strip() for part in parts for s in part.split(",")]
    return tuple(dict.fromkeys(name for part in [*(p.strip() for p in parts), *synonyms] if (name := part)))
