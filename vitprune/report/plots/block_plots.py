"""Plots of units over the blocks, as SVG: where the classes' top units are, and how far their maps lie apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes

from vitprune.report.page import numbers
from vitprune.report.page.svg import MUTED, SERIES, drawing, render
from vitprune.report.plots.plots import MARKERS, new_figure


@dataclass(frozen=True, slots=True)
class Band:
    """One line over the blocks: values, standard errors, and the band of 95 % where nothing but chance is at work."""

    name: str
    value: Sequence[float | None]
    error: Sequence[float | None]
    low: Sequence[float | None]
    high: Sequence[float | None]


def histogram(key: str, blocks: Sequence[int], band: Band, title: str, ylabel: str) -> str:
    """A bar per block with its error, the null band as an outline; "" where no bar is known."""
    known = [(b, i) for i, b in enumerate(blocks) if band.value[i] is not None]
    if not known:
        return ""
    with drawing():
        figure = new_figure(2.0)
        axes = figure.subplots()
        x, at = [b for b, _ in known], [i for _, i in known]
        axes.bar(x, [band.value[i] or 0.0 for i in at], 0.7, color=SERIES[0], yerr=[band.error[i] or 0.0 for i in at])
        low, high = [band.low[i] for i in at], [band.high[i] for i in at]
        if all(v is not None for v in (*low, *high)):
            height = [(h or 0.0) - (b or 0.0) for b, h in zip(low, high, strict=True)]
            bottom = [v or 0.0 for v in low]
            axes.bar(x, height, 0.86, bottom=bottom, color=MUTED, alpha=0.35, label="random heads, 95 %")
            figure.legend(loc="outside upper left")
        _blocks(axes, x)
        axes.set_ylabel(ylabel)
        told = ", ".join(f"{b}: {numbers.general(band.value[i])}" for b, i in known)
        return render(figure, key, title, f"By block: {told}.")


def lines(key: str, blocks: Sequence[int], bands: Sequence[Band], title: str, ylabel: str) -> str:
    """A line per band with its errors over its own null band; "" where no point is known."""
    drawable = [band for band in bands if any(v is not None for v in band.value)]
    if not drawable:
        return ""
    with drawing():
        figure = new_figure(2.4)
        axes = figure.subplots()
        for k, band in enumerate(drawable):
            at = [i for i, v in enumerate(band.value) if v is not None]
            x, colour = [blocks[i] for i in at], SERIES[k % len(SERIES)]
            y, error = [band.value[i] or 0.0 for i in at], [band.error[i] or 0.0 for i in at]
            axes.errorbar(x, y, error, marker=MARKERS[k % len(MARKERS)], color=colour, label=band.name)
            if all(band.low[i] is not None and band.high[i] is not None for i in at):
                low, high = ([edge[i] or 0.0 for i in at] for edge in (band.low, band.high))
                wide = [(b - 0.3, b + 0.3) for b in x]
                for (left, right), bottom, top in zip(wide, low, high, strict=True):
                    axes.fill_between([left, right], bottom, top, color=colour, alpha=0.25, linewidth=0)
        _blocks(axes, sorted(set(blocks)))
        axes.set_ylabel(ylabel)
        figure.legend(loc="outside upper left", ncols=2)
        words = "; ".join(f"{b.name}: {', '.join(numbers.general(v) for v in b.value)}" for b in drawable)
        return render(figure, key, title, f"By block {', '.join(map(str, blocks))}: {words}.")


def _blocks(axes: Axes, x: Sequence[int]) -> None:
    axes.set_xticks(x, [str(b) for b in x])
    axes.set_xlabel("block")
    axes.grid(False, axis="x")
