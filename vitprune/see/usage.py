"""How classes use hidden units: counts, the paper's utilisation matrix, cosine similarity, an order of the classes.

Wang et al., ICLR 2025, 4.3 and App. D.2: M_c [L, n] holds how often each unit is on the paths of class c's images,
divided by the selections of its block; two classes are as alike as the cosine of their flattened M. Plain functions on
arrays. Legend: C classes, L blocks, n hidden units of a block, N images, t units per image and block.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # the report is read and made without torch
    from vitprune.criteria.paths import PathSet

ORDERED = 256  # classes up to which the leaves are put in the best order, which takes time of the third power
Blocks = Sequence[np.ndarray]


def counts(paths: PathSet, classes: Sequence[int], widths: Sequence[int]) -> list[np.ndarray]:
    """How often each unit is on the paths of each class's images: per block int64 [C, n], in the order of `classes`."""
    row = np.full(max([-1, *classes, *paths.label.tolist()]) + 1, -1)
    row[list(classes)] = np.arange(len(classes))
    inside = row[paths.label] >= 0
    made = []
    for block, width in enumerate(widths):
        found = np.zeros((len(classes), width), np.int64)
        np.add.at(found, (row[paths.label[inside]][:, None], paths.units[inside, block]), 1)
        made.append(found)
    return made


def utilisation(selected: Blocks) -> list[np.ndarray]:
    """Counts or frequencies per block [C, n] → the classes' utilisation matrices: every row sums to 1, or is all zero."""
    return [np.divide(s, s.sum(1, keepdims=True).clip(1e-12), dtype=np.float64) for s in selected]


def similarity(used: Iterable[np.ndarray]) -> np.ndarray:
    """Cosine [C, C] of the classes' flattened matrices, float64; 0 for a class that uses nothing. One block is looked at
    after the other: no matrix of all of them is made."""
    products: np.ndarray | float = 0.0
    for block in used:
        wide = block.astype(np.float64, copy=False)
        products = products + wide @ wide.T
    assert isinstance(products, np.ndarray)
    length = np.sqrt(np.diagonal(products)).clip(1e-12)
    return (products / np.outer(length, length)).clip(0, 1)


def alike(selected: Iterable[np.ndarray]) -> np.ndarray:
    """Cosine [C, C] of the classes' utilisation matrices, from counts or frequencies per block [C, n]."""
    return similarity(utilisation([block])[0] for block in selected)


def tree(alike: np.ndarray) -> np.ndarray:
    """Average-linkage tree [C - 1, 4] over the distance 1 - similarity [C, C], as scipy.cluster.hierarchy writes it.

    Neighbouring leaves are as alike as the tree allows, up to 256 classes. Raises ValueError below two classes.
    """
    from scipy.cluster import hierarchy  # large, and not before it is wanted
    from scipy.spatial.distance import squareform

    apart = 1 - (alike + alike.T) / 2
    np.fill_diagonal(apart, 0)
    return hierarchy.linkage(squareform(apart, checks=False), "average", optimal_ordering=len(alike) <= ORDERED)


def order(alike: np.ndarray) -> list[int]:
    """Classes [C] such that alike ones stand side by side: the leaves of the tree."""
    if len(alike) < 2:
        return list(range(len(alike)))
    from scipy.cluster import hierarchy

    return [int(leaf) for leaf in hierarchy.leaves_list(tree(alike))]
