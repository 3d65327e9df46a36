"""Plots of a vision-language model: the exam by modality, and types by layer."""

from __future__ import annotations

import math
from collections.abc import Sequence

from vitprune.report.page import numbers
from vitprune.report.page.svg import MUTED, SERIES, drawing, render
from vitprune.report.plots.plots import MARKERS, new_figure, short

COLOURS = (*SERIES[:3], MUTED)


def exam(key: str, series: Sequence[tuple[str, Sequence[float | None]]], ways: Sequence[tuple[str, str]]) -> str:
    """A line of the page per way, a marker per model; "" where nothing is known."""
    drawable = [(name, values) for name, values in series if any(v is not None for v in values)]
    if not drawable:
        return ""
    with drawing():
        figure = new_figure(0.9 + 0.3 * len(ways) + 0.06 * len(ways) * len(drawable))
        axes = figure.subplots()
        for k, (name, values) in enumerate(drawable):
            y = [i + (k - (len(drawable) - 1) / 2) * min(0.2, 0.7 / len(drawable)) for i in range(len(values))]
            known = [(v, at) for v, at in zip(values, y, strict=True) if v is not None]
            colour, marker = SERIES[k % len(SERIES)], MARKERS[k % len(MARKERS)]
            axes.plot([v for v, _ in known], [at for _, at in known], marker, color=colour, label=short(name))
        axes.set_yticks(range(len(ways)), [name for _, name in ways])
        axes.set_ylim(len(ways) - 0.45, -0.55)
        axes.grid(False, axis="y")
        axes.set_xlim(0, 1.05 * max(v for _, values in drawable for v in values if v is not None) or 1)
        axes.set_xlabel("nats per text token")
        figure.legend(loc="outside upper left", ncols=3)
        told = "; ".join(f"{name}: {', '.join(numbers.fixed(v, 3) for v in values)}" for name, values in drawable)
        return render(figure, key, "Nats per text token", f"By {', '.join(name for _, name in ways)}: {told}.")


def layers(key: str, words: Sequence[str], shares: Sequence[Sequence[float]], title: str) -> str:
    """A bar per layer of the shares of each type, one above the other; "" without a layer."""
    if not shares:
        return ""
    with drawing():
        figure = new_figure(2.4)
        axes = figure.subplots()
        x, bottom = range(len(shares)), [0.0] * len(shares)
        for k, word in enumerate(words):
            height = [100 * own[k] for own in shares]
            axes.bar(x, height, 0.82, bottom=bottom, color=COLOURS[k], label=word)
            bottom = [b + h for b, h in zip(bottom, height, strict=True)]
        step = max(1, math.ceil(len(shares) / 16))
        axes.set_xticks(range(0, len(shares), step), [str(i) for i in range(0, len(shares), step)])
        axes.set_ylim(0, 100)
        axes.grid(False, axis="x")
        axes.set_xlabel("language block")
        axes.set_ylabel("units, %")
        figure.legend(loc="outside upper left", ncols=4)
        mean = [sum(own[k] for own in shares) / len(shares) for k in range(len(words))]
        told = ", ".join(f"{word} {numbers.share(m)}" for word, m in zip(words, mean, strict=True))
        return render(figure, key, title, f"Mean over {numbers.plural(len(shares), 'block')}: {told}.")
