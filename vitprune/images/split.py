"""Probe and test split, per class or as given, and what the report says of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vitprune.core.errors import UserError
from vitprune.images.batches import _divide
from vitprune.images.sources.base import Source
from vitprune.images.sources.pair import ProbeAndTest

if TYPE_CHECKING:  # recipes are read, and checked, without either
    import numpy as np


UNBALANCED = 10  # times as many images of one class as of another, from which the report says so


def split_per_class(
    class_of: np.ndarray,
    classes: Sequence[str],
    *,
    seed: int,
    probe: float,
    leave_out: Iterable[int] = (),
    contents: Mapping[int, bytes] | None = None,
) -> Split:
    """Per class a seeded shuffle, the first `probe` share to the probe split, at least one image on either side.

    The shuffle is one of pictures: images with the same `contents` (digests of the pixels, by position) stay on one side,
    also where they are of several classes. Indices come class by class in shuffled order, copies after the others.
    Raises UserError for a class with fewer than two pictures.
    """
    usable = np.ones(len(class_of), bool)
    usable[list(leave_out)] = False
    contents, sides = contents or {}, dict[Any, bool]()  # which pictures are in the probe split, of classes done
    probes: list[np.ndarray] = []
    tests: list[np.ndarray] = []
    own = by_class(np.flatnonzero(usable), class_of)
    for c, name in enumerate(classes):
        alike: dict[Any, list[int]] = {}
        for i in own.get(c, usable[:0]).tolist():
            alike.setdefault(contents.get(i, i), []).append(i)
        keys = {images[0]: key for key, images in alike.items()}
        firsts = np.random.default_rng([seed, c]).permutation(np.array(list(keys), np.int64)).tolist()
        _divide(name, firsts, keys, sides, probe, sum(map(len, alike.values())))
        for part, side in ((probes, True), (tests, False)):
            here = [i for i in firsts if sides[keys[i]] is side]
            part.append(np.array(here + [copy for i in here for copy in alike[keys[i]][1:]], np.int64))
    return Split(seed, probe, np.concatenate(probes), np.concatenate(tests))


def given_split(
    source: ProbeAndTest, contents: Mapping[int, bytes], *, seed: int, leave_out: Iterable[int] = ()
) -> Split:
    """The user's own probe and test images. Raises UserError naming an image whose pixels are in both.

    `contents` are digests of the pixels, by position; an image without one is not looked for.
    """
    _refuse_overlap(source, contents)
    kept = np.setdiff1d(np.arange(len(source.names)), np.fromiter(leave_out, np.int64))
    return Split(seed, None, kept[kept < source.probes], kept[kept >= source.probes])


def _refuse_overlap(source: ProbeAndTest, contents: Mapping[int, bytes]) -> None:
    first: dict[bytes, int] = {}
    both = []
    for i, found in sorted(contents.items()):
        if i < source.probes:
            first.setdefault(found, i)
        elif found in first:
            both.append((first[found], i))
    if both:
        probe, test = both[0]
        more = f" (and {len(both) - 1} more pairs)" if len(both) > 1 else ""
        raise UserError(
            f"data.probe and data.test share an image: `{source.names[probe]}` and `{source.names[test]}` have the same "
            f"pixels{more}; what chooses may not judge, remove it from one of them"
        )


def beyond_limit(source: Source, limit: int | None) -> set[int]:
    """Positions after the first `limit` of each class; of probe and test each, where they are two sources."""
    probes = source.probes if isinstance(source, ProbeAndTest) else len(source.names)
    place = np.arange(len(source.names))
    parts = [place[:probes], place[probes:]] if limit else []
    return {i for part in parts for of in by_class(part, source.class_of).values() for i in of[limit:].tolist()}


def remarks(classes: Sequence[str], probe: np.ndarray, test: np.ndarray) -> list[str]:
    """What the report says of the images per class [C] of either part: classes without any, and imbalance."""
    found = []
    for name, without, outcome in (
        ("probe", probe == 0, "nothing is chosen for them, they only stand among the other classes of the exam"),
        ("test", test == 0, "their accuracy is not measured"),
    ):
        if without.any():
            missing = [c for c, none in zip(classes, without, strict=True) if none]
            shown = ", ".join(missing[:12]) + (", …" if len(missing) > 12 else "")
            found.append(f"{len(missing)} class(es) without {name} images: {shown}; {outcome}.")
    for name, counts in (("probe", probe), ("test", test)):
        there = np.flatnonzero(counts)
        if len(there) and counts.max() >= UNBALANCED * counts[there].min():
            least = there[counts[there].argmin()]
            found.append(
                f"The {name} images are unbalanced: {counts.max():,} of `{classes[int(counts.argmax())]}`, "
                f"{counts[least]:,} of `{classes[int(least)]}`. Top-1 counts images, not classes; see the table per class."
            )
    return found


def first_per_class(indices: np.ndarray, class_of: np.ndarray, count: int) -> np.ndarray:
    """The first `count` of each class among `indices`, class by class."""
    every = [of[:count] for of in by_class(indices, class_of).values()]
    return np.concatenate(every).astype(np.int64) if every else np.zeros(0, np.int64)


def by_class(indices: np.ndarray, class_of: np.ndarray) -> dict[int, np.ndarray]:
    """The images at `indices` by their class, each class's in the order given, classes in order; one pass for all."""
    order = np.argsort(class_of[indices], kind="stable")
    classes, starts = np.unique(class_of[indices][order], return_index=True)
    return dict(zip(classes.tolist(), np.split(indices[order], starts[1:]), strict=True)) if len(indices) else {}


def folds(
    indices: np.ndarray, class_of: np.ndarray, count: int, seed: int, contents: Mapping[int, bytes] | None = None
) -> np.ndarray:
    """Which of `count` folds each of the images is in, [N]: those of a class are shuffled and dealt out in turn.

    Images with the same `contents` are in one fold, also where they are of several classes.
    """
    contents, dealt, turn = contents or {}, dict[Any, int](), 0
    for c, own in by_class(indices, class_of).items():
        alike = list(dict.fromkeys(contents.get(i, i) for i in own.tolist()))
        for k in np.random.default_rng([seed, c, count]).permutation(len(alike)).tolist():
            if alike[k] not in dealt:
                dealt[alike[k]] = turn % count
                turn += 1
    return np.array([dealt[contents.get(i, i)] for i in indices.tolist()], np.int64)


@dataclass(frozen=True, slots=True)
class Split:
    """Probe and test indices into an image source, disjoint; per class `probe_share`, None where both were given."""

    seed: int
    probe_share: float | None
    probe: np.ndarray
    test: np.ndarray

    def __post_init__(self) -> None:
        if len(np.intersect1d(self.probe, self.test)):
            raise ValueError("probe and test share images")

    def shared(self, contents: np.ndarray) -> int:
        """How many pictures are in both parts, by the digests [N, bytes] of all pictures; one of zeros is of none."""
        kind = f"V{contents.shape[1]}"
        probe, test = (
            np.unique(np.ascontiguousarray(contents[part][contents[part].any(1)]).view(kind))
            for part in (self.probe, self.test)
        )
        return len(np.intersect1d(probe, test, assume_unique=True))
