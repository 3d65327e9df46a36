"""Plots of hidden units: sorted frequencies, violins (the paper's Figure 4), the classes' similarity (after its Figure 5).

Legend: C classes, L blocks, n hidden units of a block.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from vitprune.report.page import numbers
from vitprune.report.page.svg import GRID, LOSS, MUTED, SERIES, drawing, render
from vitprune.report.plots.plots import WIDTH, new_figure, short
from vitprune.report.plots.similarity import Clustering

MAX_SQUARES = 30  # more classes than this are drawn as one picture
MAX_NAMES = 60
MAX_PIXELS = 400  # of the picture, across: what a page is wide
PLACES = 60  # points of one violin's outline
_HEAT = "#3f7fb8"  # on light and dark


def curves(key: str, classes: Sequence[tuple[str, Sequence[np.ndarray]]], title: str) -> str:
    """Per class its name and frequencies per block [L][n]: one line per block, the units sorted by frequency.

    Both axes are shares: of the block's units, on a logarithmic axis, and of the class's paths. Early blocks are pale.
    """
    if not classes:
        return ""
    across = min(2, len(classes))
    down = math.ceil(len(classes) / across)
    with drawing():
        figure = new_figure(0.6 + 1.25 * down)
        grid = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
        for axes, (name, blocks) in zip(grid.flat, classes, strict=False):
            for place, frequency in enumerate(blocks):
                y, n = np.sort(np.asarray(frequency, np.float64))[::-1], len(frequency)
                at = np.unique(np.geomspace(1, n, min(n, PLACES)).round().astype(int))
                strength = 0.35 + 0.65 * (place + 1) / len(blocks)
                axes.plot(100 * at / n, 100 * y[at - 1], color=SERIES[0], alpha=strength, linewidth=1.0)
            axes.set_title(short(name, 22), fontsize=8.5, fontweight="normal", pad=3)
            axes.set_xscale("log")
            axes.tick_params(labelsize=7.5)
        for axes in list(grid.flat)[len(classes) :]:
            axes.set_visible(False)
        ticks = [tick for tick in (0.1, 1, 10, 100) if tick >= 100 / max(len(b) for _, found in classes for b in found)]
        grid[0, 0].set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        grid[0, 0].xaxis.set_minor_locator(NullLocator())
        figure.supxlabel("units of the block, %, the most frequent first", fontsize=9)
        figure.supylabel("on the class's paths, %", fontsize=9)
        text = f"{numbers.plural(len(classes), 'class', 'classes')}, one line per block, strong lines are late blocks."
        return render(figure, key, title, f"{text} The most frequent units are in the table below.")


def violins(key: str, classes: Sequence[tuple[str, Sequence[np.ndarray], Sequence[int]]], title: str) -> str:
    """Per class its name, frequencies per block [L][n] and most frequent unit per block: one violin per block.

    Height is the unit's place in its block, width how often the units around it are on paths; the dotted line joins
    the most frequent units.
    """
    if not classes:
        return ""
    across = min(2, len(classes))
    down = math.ceil(len(classes) / across)
    with drawing():
        figure = new_figure(0.5 + 1.5 * down)
        grid = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
        for axes, (name, blocks, best) in zip(grid.flat, classes, strict=False):
            _violin_panel(axes, name, blocks, best)
        for axes in list(grid.flat)[len(classes) :]:
            axes.set_visible(False)
        figure.supxlabel("block", fontsize=9)
        figure.supylabel("hidden unit", fontsize=9)
        text = (
            f"{numbers.plural(len(classes), 'class', 'classes')}, one violin per block; dots: the most frequent units."
        )
        return render(figure, key, title, f"{text} The units are in the table below.")


def _violin_panel(axes: Axes, name: str, blocks: Sequence[np.ndarray], best: Sequence[int]) -> None:
    for place, frequency in enumerate(blocks):
        outline, units = _outline(frequency)
        axes.fill_betweenx(units, place - outline, place + outline, color=SERIES[0], alpha=0.45, linewidth=0)
    axes.plot(range(len(best)), best, color=LOSS, linestyle=":", marker="o", markersize=2.6, linewidth=1.1)
    axes.set_title(short(name, 22), fontsize=8.5, fontweight="normal", pad=3)
    axes.set_xlim(-0.6, len(blocks) - 0.4)
    axes.set_ylim(0, max(len(block) for block in blocks))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.grid(False, axis="x")
    axes.tick_params(labelsize=7.5)


def _outline(frequency: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Half widths (the widest 0.42) and unit places of a violin: frequencies [n] smoothed over neighbouring units."""
    from scipy.ndimage import gaussian_filter1d  # large, and not before it is wanted

    smooth = gaussian_filter1d(np.asarray(frequency, np.float64), max(1.0, len(frequency) / PLACES), mode="constant")
    units = np.linspace(0, len(frequency) - 1, min(PLACES, len(frequency)))
    widths = np.interp(units, np.arange(len(frequency)), smooth)
    highest = widths.max()
    return (0.42 * widths / highest if highest > 0 else widths), units


def heat_map(key: str, names: Sequence[str], matrix: np.ndarray, found: Clustering, title: str) -> str:
    """The matrix [C, C] in the order of the clustering, its dendrogram above; NaN stays empty."""
    if not np.isfinite(matrix).any():
        return ""
    order, size = found.order, len(names)
    sorted_matrix = matrix[np.ix_(order, order)]
    low, high = _range(sorted_matrix)
    strength = 0.04 + 0.46 * np.clip(
        (sorted_matrix - low) / (high - low) if high > low else sorted_matrix * 0 + 1, 0, 1
    )
    with drawing():
        figure = Figure(figsize=(WIDTH, 1.7 + min(0.36, 4.2 / size) * size), layout="constrained")
        tree, axes = figure.subplots(2, 1, sharex=True, height_ratios=(1, 5))
        _dendrogram(tree, found)
        if size <= MAX_SQUARES:
            _squares(axes, sorted_matrix, strength, written=size <= 10)
        else:
            _picture(axes, strength)
        shown = [short(names[leaf], 14) for leaf in order] if size <= MAX_NAMES else []
        small = 9.5 if size <= MAX_SQUARES else 5.5
        axes.set_xticks(range(len(shown)), shown, rotation=90, fontsize=small)
        axes.set_yticks(range(len(shown)), shown, fontsize=small)
        axes.set_xlim(-0.5, size - 0.5)
        axes.set_ylim(size - 0.5, -0.5)
        axes.grid(False)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        text = f"Cosine similarity of {numbers.count(size)} classes, from {low:.2f} (palest) to {high:.2f} (strongest)"
        return render(figure, key, title, f"{text}; similar ones stand together.")


def _range(matrix: np.ndarray) -> tuple[float, float]:
    """Least and greatest similarity of two different classes; of all where that says nothing."""
    off = matrix[~np.eye(len(matrix), dtype=bool) & np.isfinite(matrix)]
    values = off if off.size and off.min() < off.max() else matrix[np.isfinite(matrix)]
    return float(values.min()), float(values.max())


def _dendrogram(axes: Axes, found: Clustering) -> None:
    """The tree of the merges; its height is 1 − similarity."""
    across = [x for left, right, *_ in found.joins for x in (left, left, right, right, np.nan)]
    up = [y for _, _, low, other, high in found.joins for y in (low, high, high, other, np.nan)]
    axes.plot(across, up, color=MUTED, linewidth=0.9)  # one line with gaps: a thousand classes have as many joins
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(3))
    axes.tick_params(axis="x", length=0, labelbottom=False)
    axes.tick_params(axis="y", labelsize=7.5)
    axes.grid(False, axis="x")
    axes.spines["bottom"].set_visible(False)
    axes.spines["left"].set_color(GRID)


def _squares(axes: Axes, matrix: np.ndarray, strength: np.ndarray, written: bool) -> None:
    """One square per pair; never so strong that the number on it loses contrast, on light or dark."""
    for (row, column), value in np.ndenumerate(matrix):
        if np.isfinite(value):
            alpha = float(strength[row, column])
            axes.bar([column], [0.96], width=0.96, bottom=row - 0.48, color=SERIES[0], alpha=alpha, linewidth=0)
            if written:
                text = f"{value:.2f}".lstrip("0") or "0"
                axes.text(column, row, text, ha="center", va="center", fontsize=7.5)


def _picture(axes: Axes, strength: np.ndarray) -> None:
    """One PNG inside the SVG, see-through where the page should show: a pixel per pair, or the mean of neighbouring pairs
    where there would be more than `MAX_PIXELS` across."""
    size = len(strength)
    means = pooled(np.nan_to_num(2 * strength, nan=0.0).clip(0, 1), MAX_PIXELS)
    pixels = np.zeros((*means.shape, 4))
    pixels[..., :3] = to_rgb(_HEAT)
    pixels[..., 3] = means
    axes.imshow(pixels, interpolation="none", aspect="auto", extent=(-0.5, size - 0.5, size - 0.5, -0.5))


def pooled(matrix: np.ndarray, most: int) -> np.ndarray:
    """The matrix [C, C] itself, or the means of equal runs of its rows and columns, `most` of them at most."""
    size = len(matrix)
    starts = np.unique(np.arange(min(size, most)) * size // min(size, most))
    lengths = np.diff([*starts.tolist(), size])
    sums = np.add.reduceat(np.add.reduceat(matrix, starts, 0), starts, 1)
    return np.asarray(sums / np.outer(lengths, lengths))
