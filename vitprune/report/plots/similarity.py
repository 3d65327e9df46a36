"""Which classes share units: the record's similarity matrix [C, C] and its hierarchical clustering."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vitprune.core.reading import Json
from vitprune.report.reading.beside import Beside
from vitprune.report.reading.values import number, sequence
from vitprune.see import usage


@dataclass(frozen=True, slots=True)
class Clustering:
    """`order`: the leaves [C] from left to right; `joins`: per merge the x of its two branches, their heights, its own."""

    order: list[int]
    joins: list[tuple[float, float, float, float, float]]


def matrix_of(similarity: Json, beside: Beside) -> np.ndarray | None:
    """The matrix [C, C], NaN where a value is missing, from the record or the file it names; None if it fits no classes."""
    size = len(sequence(similarity.get("classes")))
    found = beside.arrays(similarity.get("file")).get("similarity")
    if found is None:
        rows = [sequence(row) for row in sequence(similarity.get("matrix"))]
        if any(len(row) != size for row in rows):
            return None
        values = [[np.nan if (v := number(value)) is None else v for value in row] for row in rows]
        found = np.array(values, np.float64)
    fits = size > 0 and found.shape == (size, size) and found.dtype.kind == "f"
    return np.where(np.isfinite(found), found, np.nan).astype(np.float64) if fits else None


def cluster(matrix: np.ndarray) -> Clustering:
    """Average linkage on 1 − similarity; a pair without a value counts as unlike. One class is its own order."""
    from scipy.cluster import hierarchy  # large, and not before it is wanted

    size = len(matrix)
    if size < 2:
        return Clustering(list(range(size)), [])
    merges = usage.tree(np.nan_to_num((matrix + matrix.T) / 2, nan=0.0).clip(None, 1.0))
    order = [int(leaf) for leaf in hierarchy.leaves_list(merges)]
    return Clustering(order, _joins(merges, order))


def _joins(merges: np.ndarray, order: list[int]) -> list[tuple[float, float, float, float, float]]:
    """Places and heights of every merge; without recursion, which a thousand classes in a chain would exhaust."""
    size = len(order)
    place = {leaf: float(x) for x, leaf in enumerate(order)}
    height = dict.fromkeys(range(size), 0.0)
    joins = []
    for index, (one, other, distance, _) in enumerate(merges):
        left, right = int(one), int(other)
        joins.append((place[left], place[right], height[left], height[right], float(distance)))
        place[size + index] = (place[left] + place[right]) / 2
        height[size + index] = float(distance)
    return joins
