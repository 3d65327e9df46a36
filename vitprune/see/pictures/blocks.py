"""The block plots' numbers, in one pass over the images: how a class's top units behave from block to block.

For every block the maps of the class's own top units, averaged over the class's images: on each map's own scale, 0 to 1, and
as they are. Standard errors leave out one tenth of the images at a time (a delete-a-group jackknife). The null band has the
labels permuted over the images: each image is then looked at through the units of a class that is mostly not its own.
Sums of any portions of the images add up to those of the whole.

Legend: n images, C classes, K top units per class, R permutations, G = 10 groups, P = g x g' patches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

GROUPS = 10
Figure = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, slots=True)
class Plan:
    """Who belongs where, for all images at once: `label` [N] the class's row, `group` [N] 0…G-1, `permuted` [R, N]."""

    label: np.ndarray
    group: np.ndarray
    permuted: np.ndarray
    classes: int

    @classmethod
    def of(cls, label: np.ndarray, classes: int, permutations: int = 20, seed: int = 0) -> Plan:
        """Groups go round within every class, so that each has its share of it."""
        group = np.zeros(len(label), np.int64)
        for c in range(classes):
            own = np.flatnonzero(label == c)
            group[own] = np.arange(len(own)) % GROUPS
        generator = np.random.default_rng(seed)
        permuted = np.array([generator.permutation(label) for _ in range(permutations)], np.int64)
        return cls(np.asarray(label, np.int64), group, permuted.reshape(permutations, len(label)), classes)


@dataclass(frozen=True, slots=True)
class Sums:
    """Sums of one block: `own` [G, C, P] of the maps, `null` [R, C, P], `count` [G, C], `null_count` [R, C] of the images."""

    own: np.ndarray
    null: np.ndarray
    count: np.ndarray
    null_count: np.ndarray

    @classmethod
    def of(cls, plan: Plan, at: np.ndarray, maps_nCP: np.ndarray) -> Sums:
        """Of the images at positions `at` [n]: `maps_nCP` holds, for every image, the map of every class's units."""
        rows, label, classes = np.arange(len(at)), plan.label[at], plan.classes
        size = maps_nCP.shape[2]
        own, count = np.zeros((GROUPS, classes, size)), np.zeros((GROUPS, classes), np.int64)
        np.add.at(own, (plan.group[at], label), maps_nCP[rows, label].astype(np.float64))
        np.add.at(count, (plan.group[at], label), 1)
        null = np.zeros((len(plan.permuted), classes, size))
        null_count = np.zeros((len(plan.permuted), classes), np.int64)
        for r, drawn in enumerate(plan.permuted[:, at]):
            np.add.at(null[r], drawn, maps_nCP[rows, drawn].astype(np.float64))
            np.add.at(null_count[r], drawn, 1)
        return cls(own, null, count, null_count)

    def __add__(self, other: Sums) -> Sums:
        return Sums(
            self.own + other.own,
            self.null + other.null,
            self.count + other.count,
            self.null_count + other.null_count,
        )

    def figure(self, of: Figure) -> Banded:
        """A figure of the class means [C, P], with its standard error and where it lies under permuted labels."""
        total, count = self.own.sum(0), self.count.sum(0)
        value = of(_means(total, count))
        without = np.stack([of(_means(total - s, count - n)) for s, n in zip(self.own, self.count, strict=True)])
        spread = without - without.mean(0)
        error = np.sqrt((GROUPS - 1) / GROUPS * (spread**2).sum(0))
        drawn = [of(_means(s, n)) for s, n in zip(self.null, self.null_count, strict=True)]
        low, high = np.percentile(np.stack(drawn), [2.5, 97.5], axis=0) if drawn else (np.full_like(value, np.nan),) * 2
        return Banded(value, error, low, high)


@dataclass(frozen=True, slots=True)
class Banded:
    """A figure with its standard error over images and the band of 95 % under permuted labels; all of one shape."""

    value: np.ndarray
    error: np.ndarray
    low: np.ndarray
    high: np.ndarray


def own_maps(maps_nUP: np.ndarray, rows_CK: np.ndarray, normalised: bool) -> np.ndarray:
    """For every image the mean map of every class's K units, [n, C, P]: `rows_CK` says which of the U maps are whose.

    `normalised`: each map from its own least to its own greatest value, so that its scale is lost; a flat one is 0.
    """
    maps = maps_nUP.astype(np.float64)
    if normalised:
        low, high = maps.min(2, keepdims=True), maps.max(2, keepdims=True)
        maps = np.divide(maps - low, high - low, out=np.zeros_like(maps), where=high > low)
    return np.asarray(maps[:, rows_CK].mean(2))


def distances(means_CP: np.ndarray) -> np.ndarray:
    """L2 between the maps of any two classes, [C, C]: symmetric, 0 on the diagonal, NaN for a class without images."""
    made = np.sqrt(np.maximum(((means_CP[:, None] - means_CP[None]) ** 2).sum(2), 0)) if len(means_CP) <= 64 else None
    return _row_by_row(means_CP) if made is None else np.asarray(made)


def mean_distance(means_CP: np.ndarray) -> np.ndarray:
    """The mean over the pairs of different classes, [1]."""
    found = distances(means_CP)[~np.eye(len(means_CP), dtype=bool)]
    known = found[np.isfinite(found)]
    return np.array([known.mean() if len(known) else np.nan])


def heights(means_CP: np.ndarray) -> np.ndarray:
    """The mean activation of each class's units on its own images, over the patches, [C]."""
    return np.asarray(means_CP.mean(1))


def running(means_bCP: Sequence[np.ndarray]) -> np.ndarray:
    """The class's mean maps averaged over blocks 0…b, [B, C, P]; the blocks share one grid."""
    return np.cumsum(np.stack(list(means_bCP)), 0) / np.arange(1, len(means_bCP) + 1)[:, None, None]


def block_counts(top_C: np.ndarray, blocks: int, null_RC: np.ndarray) -> Banded:
    """How many classes have their top unit in each block, [blocks], and how many with random heads.

    `null_RC` holds the top unit's block of every class under R random heads: labels play no part in it, so permuting them
    would say nothing. The error is the binomial one over classes.
    """
    value = np.bincount(top_C, minlength=blocks).astype(np.float64)
    share = value / max(len(top_C), 1)
    error = np.sqrt(len(top_C) * share * (1 - share))
    drawn = np.stack([np.bincount(one, minlength=blocks) for one in null_RC]) if len(null_RC) else None
    low, high = (np.full(blocks, np.nan),) * 2 if drawn is None else np.percentile(drawn, [2.5, 97.5], axis=0)
    return Banded(value, error, low, high)


@dataclass(frozen=True, slots=True)
class MostActive:
    """How often each unit of a block is the most active of an image, [H] whole numbers; and how often it is one of the
    image's own class's top units: `hits` of `images`, and `null_hits` [R] under permuted labels."""

    units: np.ndarray
    hits: int
    null_hits: np.ndarray
    images: int

    @classmethod
    def of(cls, plan: Plan, at: np.ndarray, pooled_nH: np.ndarray, top_CK: np.ndarray) -> MostActive:
        """Of the images at positions `at` [n], from every unit's value on each; ties go to the lower unit."""
        first = pooled_nH.argmax(1)
        hit = lambda label: int((top_CK[label] == first[:, None]).any(1).sum())  # noqa: E731
        null = np.array([hit(drawn) for drawn in plan.permuted[:, at]], np.int64)
        return cls(np.bincount(first, minlength=pooled_nH.shape[1]), hit(plan.label[at]), null, len(at))

    def __add__(self, other: MostActive) -> MostActive:
        return MostActive(
            self.units + other.units,
            self.hits + other.hits,
            self.null_hits + other.null_hits,
            self.images + other.images,
        )

    def share(self) -> Banded:
        """The share of images whose most active unit is one of its class's top units, [1]."""
        value = self.hits / max(self.images, 1)
        drawn = self.null_hits / max(self.images, 1)
        low, high = np.percentile(drawn, [2.5, 97.5]) if len(drawn) else (np.nan, np.nan)
        error = (value * (1 - value) / max(self.images, 1)) ** 0.5
        return Banded(*(np.array([v]) for v in (value, error, low, high)))


def _means(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    return np.divide(total, count[:, None], out=np.full(total.shape, np.nan), where=count[:, None] > 0)


def _row_by_row(means_CP: np.ndarray) -> np.ndarray:
    return np.stack([np.sqrt(((means_CP - one) ** 2).sum(1)) for one in means_CP])
