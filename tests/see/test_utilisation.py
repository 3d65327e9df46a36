"""Utilisation, similarity and the order of classes, counted again by hand."""

from __future__ import annotations

from itertools import pairwise, permutations

import numpy as np
import pytest
from scipy.cluster import hierarchy

from vitprune.criteria.paths import PathSet
from vitprune.see import usage

WIDTHS, T = (6, 9), 3
LABELS = np.array([4, 0, 4, 7, 0, 4, 1, 7])


def made_paths() -> PathSet:
    generator = np.random.default_rng(0)
    units = np.stack([[generator.permutation(w)[:T] for w in WIDTHS] for _ in LABELS]).astype(np.int32)
    return PathSet(np.arange(len(LABELS)), LABELS, units, np.zeros(units.shape, np.float32))


def test_counts_and_utilisation_by_hand() -> None:
    """Rows in the order asked for, images of other classes left out, a class without images all zero."""
    paths, classes = made_paths(), [7, 4, 2]
    counts = usage.counts(paths, classes, WIDTHS)
    used = usage.utilisation(counts)
    for row, c in enumerate(classes):
        for block, width in enumerate(WIDTHS):
            picks = [int(u) for n in range(len(LABELS)) if LABELS[n] == c for u in paths.units[n, block]]
            assert counts[block][row].tolist() == [picks.count(j) for j in range(width)]
            expected = [picks.count(j) / max(len(picks), 1) for j in range(width)]
            np.testing.assert_allclose(used[block][row], expected, rtol=1e-12)
    np.testing.assert_allclose([block.sum(1) for block in used], [[1, 1, 0]] * 2)
    frequency = [block / 3 for block in counts]
    for one, other in zip(usage.utilisation(frequency), used, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)


def test_similarity_is_the_cosine() -> None:
    blocks = [
        np.array([[1.0, 0.5, 0, 0], [1.0, 0.5, 0, 0], [0, 0, 1.0, 1.0], [0.5, 0, 1.0, 0], [0, 0, 0, 0]]),
        np.array([[0, 1.0, 0], [0, 1.0, 0], [1.0, 0, 0], [0.2, 0.8, 1.0], [0, 0, 0]]),
    ]
    found = usage.similarity(usage.utilisation(blocks))
    rows = np.concatenate([b / np.maximum(b.sum(1, keepdims=True), 1e-12) for b in blocks], 1)
    for a in range(4):
        for b in range(4):
            dot = sum(x * y for x, y in zip(rows[a], rows[b], strict=True))
            cosine = dot / np.sqrt(sum(x * x for x in rows[a]) * sum(y * y for y in rows[b]))
            assert found[a, b] == pytest.approx(cosine, abs=1e-12)
    assert found[0, 1] == pytest.approx(1) and found[0, 2] == 0 and not found[4].any()


def test_the_order_puts_alike_classes_side_by_side() -> None:
    """Three pairs, shuffled: each pair is adjacent, and no order of the tree's leaves has closer neighbours."""
    alike = np.full((6, 6), 0.1)
    for a, b, s in ((0, 3, 0.9), (1, 5, 0.8), (2, 4, 0.7)):
        alike[a, b] = alike[b, a] = s
    alike[3, 5] = alike[5, 3] = 0.4
    np.fill_diagonal(alike, 1)
    order = usage.order(alike)
    assert sorted(order) == list(range(6))
    assert all(abs(order.index(a) - order.index(b)) == 1 for a, b in ((0, 3), (1, 5), (2, 4), (3, 5)))
    groups = hierarchy.fcluster(usage.tree(alike), 3, "maxclust")
    assert groups[0] == groups[3] != groups[1] == groups[5] != groups[2] == groups[4]

    def steps(o: tuple[int, ...]) -> float:
        return sum(1 - alike[a, b] for a, b in pairwise(o))

    assert steps(tuple(order)) == pytest.approx(min(steps(o) for o in permutations(range(6))))
    assert usage.order(np.ones((1, 1))) == [0] and usage.order(np.ones((0, 0))) == []
