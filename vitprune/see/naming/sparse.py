"""Names from concepts: each unit's activation as a sum of a few of them, with weights that are not negative.

After Linear Explanations (Oikarinen & Weng, ICML 2024), with forward steps in place of a path of penalties: a step takes
the concept that explains most beside those that are there, all weights are fitted again, and it stays if the extended
Bayesian criterion of Chen & Chen (2008), which knows how many concepts there were to choose from, goes down.
Legend: N images, K concepts, H units.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np

MOST = 3  # concepts of a name
TINY = 1e-12
CHUNK = 1 << 22  # numbers of a step's table


@dataclass(frozen=True, slots=True)
class Sparse:
    """Per unit its concepts [H, 3] in the order they were taken (−1: none) and their weights [H, 3], 0 without one."""

    concepts: np.ndarray
    weights: np.ndarray

    def predicted(self, table_NK: np.ndarray) -> np.ndarray:
        """What the concepts say of images, up to a constant: [N, H]."""
        columns = table_NK.astype(np.float64)
        dense = np.zeros((columns.shape[1], len(self.concepts)))
        for place in range(MOST):
            there = np.flatnonzero(self.concepts[:, place] >= 0)
            dense[self.concepts[there, place], there] += self.weights[there, place]
        return columns @ dense


def fit(table_NK: np.ndarray, values_NH: np.ndarray) -> Sparse:
    """The names of units from images' concepts and the units' activations; none for a unit that never changes."""
    n, k = table_NK.shape
    units = values_NH.shape[1]
    made = Sparse(np.full((units, MOST), -1), np.zeros((units, MOST)))
    if n < 3 or not k:
        return made
    x = table_NK.astype(np.float64)
    x = x - x.mean(0)
    gram = x.T @ x
    step = max(1, CHUNK // (k * MOST))
    for at in range(0, units, step):
        y = values_NH[:, at : at + step].astype(np.float64)
        square = (y * y).sum(0)
        y = y - y.mean(0)
        total = (y * y).sum(0)
        moves = total > 1e-9 * np.maximum(square, 1e-30)
        found = _forward(gram, x.T @ y, np.where(moves, total, 0), n)
        made.concepts[at : at + step], made.weights[at : at + step] = found
    return made


def _forward(gram: np.ndarray, cross: np.ndarray, total: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Concepts and weights [h, 3] from centred sums: gram [K, K], cross [K, h], total [h]."""
    k, units = cross.shape
    chosen, weights = np.full((units, MOST), -1), np.zeros((units, MOST))
    left, going = total.copy(), total > 0
    price = np.log(n) + 2 * np.log(k)
    for place in range(MOST):
        rows = np.flatnonzero(going)
        if not len(rows):
            break
        best, gain = _best(gram, cross[:, rows], chosen[rows, :place])
        tried = np.concatenate([chosen[rows, :place], best[:, None]], 1)
        fitted, rest = _not_negative(gram, cross[:, rows], total[rows], tried)
        floor = TINY * total[rows]
        better = n * np.log(np.maximum(left[rows], floor) / np.maximum(rest, floor)) > price
        better &= (gain > 0) & (fitted[:, -1] > 0)
        taken = rows[better]
        chosen[taken, : place + 1], weights[taken, : place + 1] = tried[better], fitted[better]
        left[taken] = rest[better]
        going[rows[~better]] = False
    return _tidy(chosen, weights)


def _best(gram: np.ndarray, cross: np.ndarray, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Per unit the concept that explains most beside the `chosen` [h, s], and how much of the variance that is."""
    units, s = chosen.shape
    rest, own = cross.T.copy(), np.repeat(np.diagonal(gram)[None], units, 0).copy()
    if s:
        inside = gram[chosen[:, :, None], chosen[:, None, :]]  # h, s, s
        across = gram[chosen]  # h, s, K
        mine = np.take_along_axis(cross.T, chosen, 1)
        solved = np.linalg.pinv(inside, hermitian=True)
        rest -= np.einsum("hs,hst,htk->hk", mine, solved, across, optimize=True)
        own -= np.einsum("hsk,hst,htk->hk", across, solved, across, optimize=True)
    useful = own > 1e-9 * np.maximum(np.diagonal(gram), TINY)
    gain = np.where(useful & (rest > 0), rest * rest / np.where(useful, own, 1), 0)
    if s:
        np.put_along_axis(gain, chosen, 0, 1)
    best = gain.argmax(1)
    return best, gain[np.arange(units), best]


def _not_negative(
    gram: np.ndarray, cross: np.ndarray, total: np.ndarray, tried: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The least squares weights [h, s] of these concepts that are not negative, and what is left: the best of every
    subset's own solution that has none below zero, which of up to three concepts are seven."""
    units, s = tried.shape
    best, left = np.zeros((units, s)), total.copy()
    for size in range(1, s + 1):
        for subset in combinations(range(s), size):
            concepts = tried[:, subset]
            inside = gram[concepts[:, :, None], concepts[:, None, :]]
            mine = np.take_along_axis(cross.T, concepts, 1)
            solved = np.einsum("hst,ht->hs", np.linalg.pinv(inside, hermitian=True), mine)
            rest = np.maximum(total - (solved * mine).sum(1), 0)
            better = (solved >= 0).all(1) & (rest < left * (1 - 1e-9))
            wide = np.zeros((units, s))
            wide[:, subset] = solved
            best[better], left[better] = wide[better], rest[better]
    return best, left


def _tidy(chosen: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same without concepts whose weight came to nothing, those that are left in front."""
    chosen = np.where(weights > 0, chosen, -1)
    order = np.argsort(chosen < 0, axis=1, kind="stable")
    return np.take_along_axis(chosen, order, 1), np.take_along_axis(np.where(chosen < 0, 0, weights), order, 1)
