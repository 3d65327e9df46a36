"""Plots of what both models answered, as SVG: the confusion matrix, and how often a model is right when it is so sure.

Legend: C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from vitprune.report.page import numbers
from vitprune.report.page.svg import GAIN, LOSS, MUTED, SERIES, drawing, render
from vitprune.report.plots.plots import MARKERS, WIDTH, new_figure, short
from vitprune.report.plots.unit_plots import MAX_NAMES, MAX_PIXELS, pooled
from vitprune.report.reading.predictions import Reliability

MAX_WRITTEN = 16  # more classes than this are drawn as one picture
MAX_LISTED = 500
_HEAT = "#3f7fb8"  # on light and dark


def confusion(key: str, names: Sequence[str], dense: np.ndarray, slim: np.ndarray, title: str) -> str:
    """The slim model's counts [C, C], true classes from above, answers from left; "" without classes."""
    size = len(names)
    if not size:
        return ""
    with drawing():
        figure = Figure(figsize=(WIDTH, 0.9 + min(0.36, 4.2 / size) * size), layout="constrained")
        axes = figure.subplots()
        if size <= MAX_WRITTEN:
            _written(axes, dense, slim)
        else:
            _pictured(axes, slim)
        shown = [short(name, 14) for name in names] if size <= MAX_NAMES else []
        small = 8.5 if size <= MAX_WRITTEN else 5.5
        axes.set_xticks(range(len(shown)), shown, rotation=90, fontsize=small)
        axes.set_yticks(range(len(shown)), shown, fontsize=small)
        axes.set_xlim(-0.5, size - 0.5)
        axes.set_ylim(size - 0.5, -0.5)
        axes.grid(False)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        right = [int(np.trace(counts)) for counts in (dense, slim)]
        text = f"{numbers.count(size)} classes; on the diagonal, right: dense {right[0]:,}, slim {right[1]:,} images."
        return render(figure, key, title, text)


def _written(axes: Axes, dense: np.ndarray, slim: np.ndarray) -> None:
    """One square per pair with its count and the change; never so strong that the numbers on it lose contrast."""
    size, change = len(slim), slim - dense
    off = ~np.eye(size, dtype=bool)
    most = max(1, int(np.abs(change[off]).max()) if off.any() else 1)
    for (row, column), count in np.ndenumerate(slim):
        moved = int(change[row, column])
        right = row == column
        worse = moved < 0 if right else moved > 0
        colour = SERIES[0] if right else LOSS if worse else GAIN
        alpha = 0.16 if right else 0.34 * min(1.0, abs(moved) / most)
        if alpha:
            axes.bar([column], [0.96], width=0.96, bottom=row - 0.48, color=colour, alpha=alpha, linewidth=0)
        if count:
            axes.text(column, row - (0.12 if moved else 0), f"{count:,}", ha="center", va="center", fontsize=7.5)
        if moved:
            told = f"{moved:+,}".replace("-", "−")
            low = row + (0.27 if count else 0)
            axes.text(column, low, told, ha="center", va="center", fontsize=5.5)


def _pictured(axes: Axes, slim: np.ndarray) -> None:
    """One PNG inside the SVG: a pixel per pair, or the mean of neighbouring ones, darker with the share of the class."""
    size = len(slim)
    share = slim / np.maximum(slim.sum(1, keepdims=True), 1)
    means = pooled(np.sqrt(share), MAX_PIXELS)  # the root lets rare confusions be seen
    pixels = np.zeros((*means.shape, 4))
    pixels[..., :3] = to_rgb(_HEAT)
    pixels[..., 3] = means.clip(0, 1)
    axes.imshow(pixels, interpolation="none", aspect="auto", extent=(-0.5, size - 0.5, size - 0.5, -0.5))


def reliability(key: str, found: Mapping[str, Reliability], title: str) -> str:
    """A curve per model over its bins of confidence, and the diagonal."""
    with drawing():
        figure = new_figure(2.8)
        axes = figure.subplots()
        axes.plot([0, 100], [0, 100], color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)), label="as sure as right")
        for index, (name, made) in enumerate(found.items()):
            x, y = 100 * made.confidence, 100 * made.right
            axes.plot(x, y, marker=MARKERS[index], color=SERIES[index], label=name)
        axes.set_xlabel("probability of the answer, %")
        axes.set_ylabel("right, %")
        axes.set_xlim(0, 101)
        axes.set_ylim(0, 101)
        figure.legend(loc="outside upper left", ncols=3)
        told = "; ".join(f"{name}: error {made.ece:.3f}" for name, made in found.items())
        return render(figure, key, title, f"{told}. The numbers are in the table of this section.")
