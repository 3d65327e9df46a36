"""Images through the model's own transform, split per class into probe and test, or taken from a folder for each.

Legend: N images of the source, B of a batch. Labels are the model's output indices.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vitprune.decode import as_mode
from vitprune.decoding import Processes
from vitprune.errors import UserError
from vitprune.names import printable
from vitprune.sources import Source
from vitprune.sources.pair import ProbeAndTest
from vitprune.types import Split

CACHE_BYTES = 1 << 30
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
    for c, name in enumerate(classes):
        alike: dict[Any, list[int]] = {}
        for i in np.flatnonzero((class_of == c) & usable).tolist():
            alike.setdefault(contents.get(i, i), []).append(i)
        keys = {images[0]: key for key, images in alike.items()}
        firsts = np.random.default_rng([seed, c]).permutation(np.array(list(keys), np.int64)).tolist()
        _divide(name, firsts, keys, sides, probe, sum(map(len, alike.values())))
        for part, side in ((probes, True), (tests, False)):
            own = [i for i in firsts if sides[keys[i]] is side]
            part.append(np.array(own + [copy for i in own for copy in alike[keys[i]][1:]], np.int64))
    return Split(seed, probe, np.concatenate(probes), np.concatenate(tests))


def _divide(
    name: str, pictures: list[int], keys: dict[int, Any], sides: dict[Any, bool], probe: float, images: int
) -> None:
    """Give each of a class's pictures a side; those that another class has too keep theirs."""
    if len(pictures) < 2:
        same = ", all the same picture" if images > 1 else ""
        raise UserError(f"class `{name}`: {images} usable image(s){same}; a probe/test split needs at least two")
    free = [i for i in pictures if keys[i] not in sides]
    chosen = sum(sides.get(keys[i], False) for i in pictures)
    judged = len(pictures) - len(free) - chosen
    cut = min(max(round(probe * len(pictures)), 1), len(pictures) - 1) - chosen
    cut = min(max(cut, 0 if chosen else 1), len(free) - (0 if judged else 1))
    if cut < 0 or not (chosen or cut):
        raise UserError(
            f"class `{name}`: its {len(pictures)} pictures are all in other classes too and fall to one side of the split; "
            "remove the copies, or give data.probe and data.test"
        )
    sides.update({keys[i]: place < cut for place, i in enumerate(free)})


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


def copies(source: Source, contents: Mapping[int, bytes], index: np.ndarray) -> list[str]:
    """What the report says of images among `index` that have the same pixels: how many, and which have several classes."""
    alike: dict[bytes, list[int]] = {}
    for i in sorted(index.tolist()):
        if i in contents:
            alike.setdefault(contents[i], []).append(i)
    several = [images for images in alike.values() if len(images) > 1]
    torn = [images for images in several if len(set(source.class_of[images].tolist())) > 1]

    def example(images: list[int], other: int) -> str:
        return f"`{printable(source.names[images[0]])}` and `{printable(source.names[other])}`"

    found = []
    if several:
        count = sum(len(images) - 1 for images in several)
        found.append(
            f"{count:,} of the images are copies of others by their pixels ({example(several[0], several[0][1])}"
            f"{', …' if count > 1 else ''}); copies stay on one side of the split and count as often as they are there."
        )
    if torn:
        first = torn[0]
        other = next(i for i in first if source.class_of[i] != source.class_of[first[0]])
        more = ", …" if len(torn) > 1 else ""
        found.append(
            f"{len(torn):,} picture(s) stand under more than one class ({example(first, other)}{more}): no model can be "
            "right on all of them; remove what is labelled wrongly."
        )
    return found


def beyond_limit(source: Source, limit: int | None) -> set[int]:
    """Positions after the first `limit` of each class; of probe and test each, where they are two sources."""
    probes = source.probes if isinstance(source, ProbeAndTest) else len(source.names)
    place = np.arange(len(source.names))
    parts = [place[:probes], place[probes:]] if limit else []
    return {i for part in parts for c in np.unique(source.class_of) for i in part[source.class_of[part] == c][limit:]}


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
    every = [indices[class_of[indices] == c][:count] for c in np.unique(class_of[indices])]
    return np.concatenate(every).astype(np.int64) if every else np.zeros(0, np.int64)


@dataclass
class Images:
    """A source seen through a model's transform: tensors [B, C, H, W] float32 and output indices [B]."""

    source: Source
    transform: Callable[[Image.Image], Tensor]
    channels: int
    output_of_class: np.ndarray
    processes: Processes | None = None
    _cache: Tensor | None = None

    @cached_property
    def labels(self) -> np.ndarray:
        """Output index of every image, [N] int64."""
        return self.output_of_class[self.source.class_of]

    def tensor(self, i: int) -> Tensor:
        """Image i, transformed, [C, H, W]."""
        return self.transform(as_mode(self.source.image(i), "L" if self.channels == 1 else "RGB"))

    def batches(self, indices: np.ndarray, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of (images, labels) in the order of `indices`; small sets are decoded once and kept.

        Where decoding has processes of its own, they work on the next batch meanwhile.
        """
        waiting: deque[_Batch] = deque()
        try:
            for start in range(0, len(indices), size):
                waiting.append(self._ask(indices[start : start + size]))
                if len(waiting) > (1 if self.processes else 0):
                    yield self._stack(waiting.popleft())
            while waiting:
                yield self._stack(waiting.popleft())
        finally:
            for batch in waiting:
                for future in batch.futures:
                    future.cancel()

    def _ask(self, part: np.ndarray) -> _Batch:
        missing = part[~self._filled[part]]
        return _Batch(part, missing, [self._decode(i) for i in missing])

    def _decode(self, i: int) -> Future[Any]:
        return self.processes.pixels(i) if self.processes else self._threads.submit(self.tensor, i)

    def _stack(self, batch: _Batch) -> tuple[Tensor, Tensor]:
        labels = torch.from_numpy(self.labels[batch.part])
        found = [torch.as_tensor(future.result()) for future in batch.futures]
        fresh = torch.stack(found) if found else None
        if self._cache is None and fresh is not None and fresh[0].nbytes * len(self._filled) <= CACHE_BYTES:
            self._cache = torch.empty(len(self._filled), *fresh.shape[1:])
        if self._cache is None:
            assert fresh is not None
            return fresh, labels
        if fresh is not None:
            self._cache[batch.missing] = fresh
            self._filled[batch.missing] = True
        return self._cache[batch.part], labels

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(os.cpu_count() or 1)

    @cached_property
    def _filled(self) -> np.ndarray:
        return np.zeros(len(self.source.names), bool)


@dataclass(frozen=True, slots=True)
class _Batch:
    """Positions of a batch, and of those not decoded yet with what they will become."""

    part: np.ndarray
    missing: np.ndarray
    futures: list[Future[Any]]
