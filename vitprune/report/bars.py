"""Bars for a run's report, for CI: is the exported model accurate, fast and small enough, and did its checks hold?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vitprune.core import external
from vitprune.core.errors import UserError
from vitprune.core.reading import Json, read_json
from vitprune.report.reading.values import clean, mapping, mappings, number, ratio, sequence


@dataclass(frozen=True, slots=True)
class Bar:
    """A limit on one figure of `result`: `at_least` or at most `limit`."""

    name: str
    limit: float
    at_least: bool = False

    def passed(self, value: float) -> bool:
        """Whether the figure clears the bar; a figure equal to it does."""
        return value >= self.limit if self.at_least else value <= self.limit


def check(path: Path, bars: list[Bar]) -> list[Json]:
    """One row per bar, and per group where the run has groups: name, group, value, limit, passed, notes.

    A check of the run itself that did not hold (an fp16 file that is another model, say) is a missed row of its own.
    `path` is a report.json or its folder. Raises UserError where a bar cannot be judged: no such file, no bar, a run
    that did not finish, an oracle-routed figure, or a figure that was not measured.
    """
    path = path / "report.json" if path.is_dir() else path
    record = mapping(read_json(path))
    if not bars:
        raise UserError("check: give at least one bar, as --min-top1 0.87")
    for bar in bars:
        if not 0 <= bar.limit < float("inf") or (bar.at_least and bar.limit > 1):
            raise UserError(f"check: {bar.name} {bar.limit:g} is no bar; accuracies and ratios are fractions, as 0.87")
    exported = mapping(record.get("results")) or {"": record.get("result")}
    if record.get("complete") is not True or not all(mapping(result) for result in exported.values()):
        lacks = ", ".join(map(str, sequence(record.get("missing"))))
        raise UserError(
            f"{path}: not the report of a finished run{f' (missing: {lacks})' if lacks else ''}; use `vitprune run`"
        )
    _whole(path, record)
    rows = [_judge(path, record, group, mapping(result), bar) for group, result in exported.items() for bar in bars]
    return rows + [_failed(row) for row in mappings(record.get("checks")) if row.get("passed") is not True]


def _whole(path: Path, record: Json) -> None:
    """Raise UserError where an ONNX file that lies beside the report lacks the weights it keeps in another."""
    for file in mappings(mapping(record.get("export")).get("files")):
        name = file.get("path")
        beside = path.parent / name if isinstance(name, str) and not {"\0", ".."} & {*name, *name.split("/")} else path
        if beside.suffix == ".onnx" and beside.resolve().is_relative_to(path.parent.resolve()) and beside.is_file():
            external.check(beside)


def line(row: Json) -> str:
    """A row for people: `ok      top1 0.8865, at least 0.87`."""
    group = f" [{row['group']}]" if row["group"] else ""
    side = "at least" if row["at_least"] else "at most"
    outcome = "ok" if row["passed"] else "MISSED"
    doubt = "".join(f"; in doubt: {note}" for note in row["notes"])
    if row["value"] is None or row["limit"] is None:
        return f"{outcome:<8}{row['name']}{doubt}"
    return f"{outcome:<8}{row['name']}{group} {row['value']:.9g}, {side} {row['limit']:.9g}{doubt}"


def _failed(row: Json) -> Json:
    """A check of the run that did not hold."""
    value, limit = number(row.get("value")), number(row.get("limit"))
    name = f"check: {clean(row.get('name')) or 'unnamed'}"
    return {
        "name": name,
        "group": None,
        "value": value,
        "limit": limit,
        "at_least": False,
        "passed": False,
        "notes": [],
    }


def _judge(path: Path, record: Json, group: str, result: Json, bar: Bar) -> Json:
    if result.get("protocol") != "honest":
        raise UserError(f"{path}: its result is not an honest measurement, so no bar can be held against it")
    value = _seen(record, group, bar.name) if bar.name in SEEN else _figure(record, result, bar.name)
    if value is None:
        where = f" of group {group}" if group else ""
        raise UserError(
            f"{path}: holds no {bar.name}{where}; was it measured ({MEASURED.get(bar.name, MEASURED[''])})?"
        )
    judged = {"value": value, "limit": bar.limit, "at_least": bar.at_least, "passed": bar.passed(value)}
    notes = [clean(note) for note in sequence(result.get("latency_notes"))] if bar.name == "latency_ratio" else []
    return {"name": bar.name, "group": group or None, **judged, "notes": notes}


SEEN = {
    "simulator": "simulator",
    "removed_aligned": "alignment",
}  # bars of units, and the part of `see` that measures them
MEASURED = {
    name: f"the recipe's see.parts: {part}; a median or a share may also not be known" for name, part in SEEN.items()
}
MEASURED[""] = "export.onnx for the latency"


def _seen(record: Json, group: str, name: str) -> float | None:
    """A figure of `see`: the median correlation of the kept units with their classes' means on other images, or the share of
    the classes' direct evidence that went with the removed ones."""
    part = mapping(mapping(record.get("see")).get(SEEN[name]))
    if name == "simulator":
        sets = mapping(mapping(mapping(part.get("predictors")).get("labels")).get("sets"))
        return number(mapping(mapping(sets.get(group)).get("kept")).get("median"))
    return number(mapping(mapping(part.get("evidence")).get(group)).get("share"))


def _figure(record: Json, result: Json, name: str) -> float | None:
    if name in ("params_ratio", "macs_ratio") and number(result.get(name)) is None:
        key = name.removesuffix("_ratio")
        return ratio(result.get(key), mapping(record.get("model")).get(f"{key}_dense"))
    return number(result.get(name))
