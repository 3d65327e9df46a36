"""The images' class names against the model's outputs, with a mapping file where the two are named differently.

A mapping file (`data.labels`) is one of these; every name of an entry means the same class:

- `.json`: `{"name": "other name"}`, `{"name": ["other", "names"]}`, `{"name": 3}` (an output), `{"3": [names]}` or `[names]`
- `.csv`: the columns `name` and `label`, one name or output number per line; a name may have several lines
- any other: one class per line in the order of the outputs, `n01440764 tench, Tinca tinca` or names between tabs
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vitprune.errors import UserError
from vitprune.files import digest, read_text
from vitprune.sources.folder import number_of

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
        self.found: dict[str, list[Entry]] = {}
        for entry in self.entries:
            for name in dict.fromkeys(entry.names):
                self.found.setdefault(name, []).append(entry)

    def entry(self, name: str) -> Entry | None:
        """The entry of a class. Raises UserError where the name is in several."""
        found = self.found.get(name, [])
        if len(found) > 1:
            raise UserError(f"{self.where}: `{name}` is a name of more than one class; use another of its names")
        return found[0] if found else None

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


def output_indices(
    classes: Sequence[str],
    outputs: int,
    names: Sequence[str] | None,
    where: str,
    numbers: Sequence[int] | None = None,
    mapping: Mapping | None = None,
) -> np.ndarray:
    """For each of the images' classes, the model's output index [C]: by name where the model has names, else by order.

    `names` may hold two spellings per output separated by a tab (ImageNet's synset and plain name). `numbers` are the
    outputs themselves, where the images' labels are numbers. A class that the `mapping` knows goes by it.
    """
    known, shared = spellings(names or ())
    if mapping is not None:
        found = [_mapped(c, mapping, known, shared, bool(names)) for c in classes]
        if numbers is not None:
            found = [n if f is None else f for f, n in zip(found, numbers, strict=True)]
        missing = [c for c, f in zip(classes, found, strict=True) if f is None]
        if missing:
            raise UserError(
                f"{where}: class `{missing[0]}` is neither the model's nor, as one of them, in {mapping.where}"
            )
        return _one_each(classes, _in_range(classes, [f for f in found if f is not None], outputs, where), names, where)
    if numbers is not None:
        return np.array(_in_range(classes, list(numbers), outputs, where), np.int64)
    if names:
        if both := shared & set(classes):
            raise UserError(f"{where}: `{min(both)}` names more than one of the model's outputs; use its other name")
        missing = [c for c in classes if c not in known]
        if not missing:
            return _one_each(classes, [known[c] for c in classes], names, where)
        if len(missing) < len(classes) or len(classes) != outputs:
            raise UserError(
                f"{where}: class folder `{missing[0]}` is not among the model's labels ({_some(names)}); "
                "data.labels can map it"
            )
    if len(classes) != outputs:
        raise UserError(
            f"{where}: {len(classes)} class folders, but the model has {outputs} outputs and no label names; "
            "data.labels can map them"
        )
    return np.arange(outputs, dtype=np.int64)


def by_order(classes: Sequence[str], names: Sequence[str] | None, numbers: Sequence[int] | None) -> bool:
    """Whether classes without a mapping were matched by order though the model has names."""
    return bool(names) and numbers is None and not set(classes) & spellings(names or ())[0].keys()


def spellings(names: Sequence[str]) -> tuple[dict[str, int], set[str]]:
    """Every spelling of the model's labels → its output, and those that more than one output has."""
    known: dict[str, int] = {}
    shared: set[str] = set()
    for i, name in enumerate(names):
        for spelling in set(name.split("\t")):
            shared |= {spelling} & known.keys()
            known[spelling] = i
    return known, shared


def _mapped(name: str, mapping: Mapping, known: dict[str, int], shared: set[str], named: bool) -> int | None:
    """The output of one class; its own name counts before the mapping's. None where nothing leads to an output."""
    if name in known and name not in shared:
        return known[name]
    entry = mapping.entry(name)
    if entry is None:
        return None
    if entry.output is not None and (entry.stated or not named):
        return entry.output
    reached = {known[other] for other in entry.names if other in known and other not in shared}
    if len(reached) > 1:
        raise UserError(f"{mapping.where}: the names of `{name}` lead to {len(reached)} of the model's outputs")
    return reached.pop() if reached else None


def _in_range(classes: Sequence[str], found: list[int], outputs: int, where: str) -> list[int]:
    for name, output in zip(classes, found, strict=True):
        if not 0 <= output < outputs:
            raise UserError(
                f"{where}: class `{name}` is output {output}, but the model's {outputs} outputs are 0 to {outputs - 1}"
            )
    return found


def _one_each(classes: Sequence[str], outputs: list[int], names: Sequence[str] | None, where: str) -> np.ndarray:
    for i, output in enumerate(outputs):
        if output in outputs[:i]:
            first = classes[outputs.index(output)]
            called = _some([names[output]]) if names else str(output)
            raise UserError(f"{where}: class folders `{first}` and `{classes[i]}` are one output ({called})")
    return np.array(outputs, np.int64)


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(n.replace("\t", " / ") for n in names[:12])
    return shown + (", …" if len(names) > 12 else "")
