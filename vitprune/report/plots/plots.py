"""The report's plots as inline SVG. Each answers "" where there is nothing finite to draw.

Accuracies are fractions in, percentages on the axis. `key` names the figure on
its page and must be unique there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from vitprune.report.page import numbers
from vitprune.report.page.svg import GAIN, INK, LOSS, MUTED, SERIES, drawing, render

WIDTH = 4.5  # inches: readable both on a phone and in the page's column
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
ROOM = 0.1  # of an axis, between two of its labels


@dataclass(frozen=True, slots=True)
class Point:
    """A measured accuracy: `line` names its row or curve, `series` its colour, `x` its place on a curve."""

    line: str
    series: str
    top1: float
    low: float | None = None
    high: float | None = None
    x: float | None = None


def accuracy_dots(key: str, points: Sequence[Point], dense: float | None, title: str) -> str:
    """One line per `Point.line`, one marker per series, error bars, and the dense model as a vertical line."""
    if not points:
        return ""
    names, series = _unique(point.line for point in points), _unique(point.series for point in points)
    with drawing():
        figure = new_figure(0.8 + 0.2 * len(names) + 0.12 * len(names) * len(series))
        axes = figure.subplots()
        for point in points:
            index = series.index(point.series)
            offset = (index - (len(series) - 1) / 2) * min(0.24, 0.72 / len(series))
            _dot(axes, point, names.index(point.line) + offset, index)
        _dense_line(axes, dense, vertical=True)
        axes.set_yticks(range(len(names)), [short(name) for name in names])
        axes.set_ylim(len(names) - 0.45, -0.55)
        axes.grid(False, axis="y")
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("top-1, %")
        axes.xaxis.set_major_locator(MaxNLocator(6))
        _legend(figure, axes, len(series) + (dense is not None))
        text = f"{numbers.plural(len(points), 'measured accuracy', 'measured accuracies')}{_dense_words(dense)}"
        return render(figure, key, title, f"{text}. The numbers are in the table of this section.")


def accuracy_curves(key: str, points: Sequence[Point], dense: float | None, title: str, xlabel: str) -> str:
    """Top-1 against `Point.x`, one panel per `Point.line`, one curve per series."""
    drawable = [point for point in points if point.x is not None]
    if not drawable:
        return ""
    panels, series = _unique(point.line for point in drawable), _unique(point.series for point in drawable)
    with drawing():
        figure = new_figure(0.7 + 1.9 * len(panels))
        grid = figure.subplots(len(panels), 1, sharex=True, sharey=True, squeeze=False)
        for axes, panel in zip(grid[:, 0], panels, strict=True):
            for index, name in enumerate(series):
                _curve(axes, [p for p in drawable if p.line == panel and p.series == name], index)
            _dense_line(axes, dense, vertical=False)
            _x_ticks(axes, sorted({point.x for point in drawable if point.x is not None}))
            axes.set_title(short(panel) if len(panels) > 1 else "")
            axes.set_ylabel("top-1, %")
        grid[-1, 0].set_xlabel(xlabel)
        _legend(figure, grid[0, 0], len(series) + (dense is not None))
        text = f"{numbers.plural(len(series), 'curve')} in {numbers.plural(len(panels), 'panel')}{_dense_words(dense)}"
        return render(figure, key, title, f"{text}. The numbers are in the table of this section.")


def class_changes(key: str, changes: Sequence[tuple[str, float]], title: str) -> str:
    """One bar per class in percentage points, in the order given."""
    if not changes:
        return ""
    with drawing():
        figure = new_figure(0.6 + 0.23 * len(changes))
        axes = figure.subplots()
        values = [value for _, value in changes]
        axes.barh(range(len(values)), values, height=0.62, color=[LOSS if value < 0 else GAIN for value in values])
        axes.axvline(0, color=MUTED, linewidth=0.8)
        axes.set_yticks(range(len(values)), [short(name) for name, _ in changes])
        axes.set_ylim(len(values) - 0.4, -0.6)
        axes.grid(False, axis="y")
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("change in top-1 against dense, points")
        worst, best = min(changes, key=lambda item: item[1]), max(changes, key=lambda item: item[1])
        text = f"From {worst[0]} at {numbers.points(worst[1])} points to {best[0]} at {numbers.points(best[1])} points."
        return render(figure, key, title, text)


def widths(key: str, dense: Sequence[float], slim: Sequence[float], title: str) -> str:
    """FFN width per block [L]: the dense one as an outline, the kept one filled."""
    if not slim:
        return ""
    with drawing():
        figure = new_figure(2.0)
        axes = figure.subplots()
        if len(dense) == len(slim):
            axes.bar(range(len(dense)), dense, 0.7, facecolor="none", edgecolor=MUTED, linewidth=0.9, label="dense")
        axes.bar(range(len(slim)), slim, 0.7, color=SERIES[0], label="kept")
        step = max(1, math.ceil(len(slim) / 16))
        axes.set_xticks(range(0, len(slim), step), [str(index) for index in range(0, len(slim), step)])
        axes.grid(False, axis="x")
        axes.set_xlabel("block")
        axes.set_ylabel("hidden units")
        _legend(figure, axes, 2)
        kept = ", ".join(numbers.count(value) for value in slim)
        return render(figure, key, title, f"Hidden units kept from the first block to the last: {kept}.")


def new_figure(height: float) -> Figure:
    """A figure of the page's width, `height` inches."""
    return Figure(figsize=(WIDTH, height), layout="constrained")


def _dot(axes: Axes, point: Point, y: float, index: int) -> None:
    color, marker = SERIES[index % len(SERIES)], MARKERS[(index + index // len(SERIES)) % len(MARKERS)]
    if point.low is not None and point.high is not None:
        axes.plot([100 * point.low, 100 * point.high], [y, y], color=color, linewidth=1.1)
    label = "" if point.series in axes.get_legend_handles_labels()[1] else point.series
    axes.plot([100 * point.top1], [y], marker, color=color, label=label)


def _curve(axes: Axes, points: Sequence[Point], index: int) -> None:
    if not points:
        return
    color, marker = SERIES[index % len(SERIES)], MARKERS[(index + index // len(SERIES)) % len(MARKERS)]
    ordered = sorted(points, key=lambda point: point.x or 0.0)
    x = [point.x or 0.0 for point in ordered]
    axes.plot(x, [100 * point.top1 for point in ordered], marker=marker, color=color, label=ordered[0].series)
    for place, point in zip(x, ordered, strict=True):
        if point.low is not None and point.high is not None:
            axes.plot([place, place], [100 * point.low, 100 * point.high], color=color, linewidth=0.9, alpha=0.7)


def _x_ticks(axes: Axes, values: Sequence[float]) -> None:
    """Ticks at the measured values, on a logarithmic axis where they span a wide range; of two that are close one is named."""
    wide = values[0] > 0 and values[-1] / values[0] >= 8
    if wide:
        axes.set_xscale("log")
    if len(values) <= 10:
        named = _apart([math.log(value) for value in values] if wide else values)
        axes.set_xticks(values, [numbers.general(value) if n in named else "" for n, value in enumerate(values)])
        axes.xaxis.set_minor_locator(NullLocator())


def _apart(places: Sequence[float]) -> set[int]:
    """Which of the rising places have room for a label: the last, and from the first those that are far enough from others."""
    least = ROOM * (places[-1] - places[0])
    kept: list[int] = []
    for n, place in enumerate(places):
        if not kept or place - places[kept[-1]] >= least:
            kept.append(n)
        elif n == len(places) - 1:
            kept[-1] = n
    return {*kept}


def _dense_line(axes: Axes, dense: float | None, vertical: bool) -> None:
    if dense is None:
        return
    draw = axes.axvline if vertical else axes.axhline
    draw(100 * dense, color=INK, linewidth=1.0, linestyle=(0, (4, 3)), label="dense", zorder=1)


def _legend(figure: Figure, axes: Axes, entries: int) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, [short(label) for label in labels], loc="outside upper left", ncols=min(4, max(1, entries)))


def _dense_words(dense: float | None) -> str:
    return "" if dense is None else f"; the dense model is at {numbers.share(dense)}"


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def short(name: str, limit: int = 24) -> str:
    """The name within `limit` characters, its middle left out: names often differ at their end."""
    tail = limit // 3
    return name if len(name) <= limit else f"{name[: limit - tail - 1]}…{name[-tail:]}"
