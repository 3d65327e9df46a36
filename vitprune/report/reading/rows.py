"""The record's measurement rows as table lines: repeated draws merged, dense references found."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass

from vitprune.core.reading import Json
from vitprune.report.reading.values import budget_text, clean, interval, mappings, number

# What makes two rows the same setting; everything else is a measurement or the seed.
SETTING = ("criterion", "keep", "allocation", "recovery", "protocol", "t", "group", "classes", "head", "budget")
MEASURED = ("kept", "top1", "mean_true_probability", "params", "macs", "n", "top1_change_points")


@dataclass(frozen=True, slots=True)
class Line:
    """One table line: a row, or the mean of several draws that differ only in their seed.

    `values` holds MEASURED; `low`/`high` bound top-1: the 95 % interval, or mean ± sd of the draws. `p` and
    `dense_p`: of the test against the exported and the dense model on the same images, the largest of the draws.
    """

    row: Json
    values: dict[str, float | None]
    low: float | None
    high: float | None
    draws: int = 1
    sd: float | None = None
    p: float | None = None
    dense_p: float | None = None

    def text(self, key: str) -> str:
        """A setting as display text, empty where absent."""
        return budget_text(self.row) if key == "budget" else clean(self.row.get(key))

    @property
    def dense(self) -> bool:
        """Whether this is the unpruned model."""
        return self.row.get("criterion") == "dense"


def of_protocol(record: Json, protocol: str) -> list[Json]:
    """The record's rows measured under `protocol`."""
    return [row for row in mappings(record.get("rows")) if row.get("protocol") == protocol]


def without_protocol(record: Json) -> list[Json]:
    """Rows that are neither honest nor oracle: they belong in no comparison."""
    return [row for row in mappings(record.get("rows")) if row.get("protocol") not in ("honest", "oracle")]


def setting(row: Json) -> str:
    """A hashable name for the row's setting, the seed left out."""
    return json.dumps([row.get(key) for key in SETTING], sort_keys=True)


def lines(rows: list[Json]) -> list[Line]:
    """Rows merged over seeds where a setting was drawn more than once, in order of first appearance."""
    found: dict[str, list[Json]] = {}
    for row in rows:
        found.setdefault(setting(row), []).append(row)
    result: list[Line] = []
    for same in found.values():
        seeds = {json.dumps(row.get("seed")) for row in same}
        merged = len(same) > 1 and len(seeds) == len(same)
        result += [_merge(same)] if merged else [_single(row) for row in same]
    return result


def dense_for(rows: list[Json], like: Json) -> Json | None:
    """The dense row measured as `like` was: same protocol, head, group and classes; None if there is none."""
    keys = ("protocol", "head", "group", "classes")
    dense = [row for row in rows if row.get("criterion") == "dense"]
    return next((row for row in dense if all(row.get(key) == like.get(key) for key in keys)), None)


def _single(row: Json) -> Line:
    pair = interval(row.get("top1_ci95"))
    low, high = pair if pair else (None, None)
    p, dense_p = number(row.get("mcnemar_p")), number(row.get("dense_p"))
    return Line(row, {key: number(row.get(key)) for key in MEASURED}, low, high, p=p, dense_p=dense_p)


def _merge(same: list[Json]) -> Line:
    values = {key: _mean([number(row.get(key)) for row in same]) for key in MEASURED}
    top1 = [value for row in same if (value := number(row.get("top1"))) is not None]
    sd = statistics.stdev(top1) if len(top1) > 1 else None
    mean = values["top1"]
    low, high = (mean - sd, mean + sd) if mean is not None and sd is not None else (None, None)
    p, dense_p = (_most([number(row.get(key)) for row in same]) for key in ("mcnemar_p", "dense_p"))
    return Line(same[0], values, low, high, draws=len(top1), sd=sd, p=p, dense_p=dense_p)


def _most(values: list[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _mean(values: list[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return statistics.fmean(present) if present else None
