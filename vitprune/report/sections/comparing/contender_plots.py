"""The plots of the comparison: which rows share axes, and how each row is named on them."""

from __future__ import annotations

from vitprune.core.reading import Json
from vitprune.report.page import numbers
from vitprune.report.plots import plots
from vitprune.report.reading.rows import Line, dense_for, lines, setting
from vitprune.report.reading.values import budget_text, clean, mapping, number

Rows = list[Json]


def facets_of(rows: Rows) -> list[tuple[str, Rows]]:
    """Rows that share one dense line (same group, classes and head), named where there are several such sets."""
    found: dict[str, Rows] = {}
    for row in rows:
        found.setdefault(setting({key: row.get(key) for key in ("group", "classes", "head")}), []).append(row)
    return [(_facet_name(members[0]) if len(found) > 1 else "", members) for members in found.values()]


def captioned(text: str, facet: str) -> str:
    """A caption with the facet it is about."""
    return f"{text} ({facet})" if facet else text


def kept_text(line: Line) -> str:
    """The budget as asked: a share, a number of units or a budget of the whole model with the share it came to."""
    keep, kept = line.row.get("keep"), line.values["kept"]
    if asked := budget_text(line.row):
        return f"{asked} ({numbers.share(kept)} of the FFN units)" if kept is not None else asked
    if isinstance(keep, int) and not isinstance(keep, bool) and not line.dense:
        units = numbers.plural(keep, "unit")
        return f"{units} ({numbers.share(kept)})" if kept is not None else units
    return numbers.share(kept)


def honest_plot(key: str, facet: str, rows: Rows) -> str:
    """Dots per criterion and recovery; curves over the share kept where there are three budgets or more, over the MACs
    that are left where those are of the whole model."""
    drawn = _drawn(rows)
    title = captioned("Top-1 of every honest row, with error bars and the dense line", facet)
    budgets, allocations = {_budget(line) for line in drawn}, {line.text("allocation") for line in drawn}
    names = [line.text("criterion") + (f", {line.text('allocation')}" * (len(allocations) > 1)) for line in drawn]
    if len(budgets) > 2:
        whole, dense = any(line.text("budget") for line in drawn), _dense_macs(rows)
        left = [line.values["macs"] if whole else line.values["kept"] for line in drawn]
        points = [
            _point(
                line, line.text("recovery") or "none", name, None if x is None else 100 * x / (dense if whole else 1.0)
            )
            for line, name, x in zip(drawn, names, left, strict=True)
        ]
        return plots.accuracy_curves(
            key, points, _dense(rows, rows), title, "MACs left, %" if whole else "FFN units kept, %"
        )
    if len(budgets) > 1:
        names = [f"{name}, {line.text('budget') or kept_text(line)}" for line, name in zip(drawn, names, strict=True)]
    points = [_point(line, name, line.text("recovery") or "none") for line, name in zip(drawn, names, strict=True)]
    return plots.accuracy_dots(key, points, _dense(rows, rows), title)


def oracle_plot(key: str, facet: str, rows: Rows, honest: Rows) -> str:
    """Top-1 against t, one curve per criterion; the dense model needs no routing, so its honest row serves too."""
    drawn = _drawn(rows)
    several = len({line.text("recovery") for line in drawn}) > 1
    names = [line.text("criterion") + (f" + {line.text('recovery')}" if several else "") for line in drawn]
    points = [_point(line, "", name, number(line.row.get("t"))) for line, name in zip(drawn, names, strict=True)]
    title = captioned("Oracle-routed top-1 against t per criterion: not a deployable accuracy", facet)
    return plots.accuracy_curves(key, points, _dense(rows, [*rows, *honest]), title, "t, units kept per path and block")


def _drawn(rows: Rows) -> list[Line]:
    """The pruned lines with an accuracy, the criterion with the best one first."""
    drawn = [line for line in lines(rows) if not line.dense and line.values["top1"] is not None]
    best: dict[str, float] = {}
    for line in drawn:
        best[line.text("criterion")] = max(best.get(line.text("criterion"), 0.0), line.values["top1"] or 0.0)
    return sorted(drawn, key=lambda line: -best[line.text("criterion")])


def _facet_name(row: Json) -> str:
    group, head = clean(row.get("group")), clean(row.get("head"))
    return ", ".join(part for part in (group or "all classes", f"head: {head}" if head else "") if part)


def _point(line: Line, name: str, series: str, x: float | None = None) -> plots.Point:
    top1 = line.values["top1"]
    assert top1 is not None
    return plots.Point(name, series, top1, line.low, line.high, x)


def _budget(line: Line) -> str:
    return line.text("budget") or line.text("keep")


def _dense_macs(rows: Rows) -> float:
    """Multiply-adds of the dense model; of the largest one where there is no dense row."""
    known = [value for row in rows if (value := number(row.get("macs"))) is not None]
    dense = number(mapping(dense_for(rows, rows[0]) if rows else None).get("macs"))
    return dense or max(known, default=0.0) or 1.0


def _dense(rows: Rows, among: Rows) -> float | None:
    """The dense accuracy measured as `rows` were, else under another protocol on the same head and classes."""
    if not rows:
        return None
    found = dense_for(among, rows[0]) or next(
        (row for row in among if row.get("criterion") == "dense" and _alike(row, rows[0])), None
    )
    return number(mapping(found).get("top1"))


def _alike(row: Json, other: Json) -> bool:
    return all(row.get(key) == other.get(key) for key in ("head", "classes"))
