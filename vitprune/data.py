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
from vitprune.sources import Source
from vitprune.sources.pair import ProbeAndTest
from vitprune.types import Split

CACHE_BYTES = 1 << 30
UNBALANCED = 10  # times as many images of one class as of another, from which the report says so


def split_per_class(
    class_of: np.ndarray, classes: Sequence[str], *, seed: int, probe: float, leave_out: Iterable[int] = ()
) -> Split:
    """Per class a seeded shuffle, the first `probe` share to the probe split, at least one image on either side.

    Indices come class by class in shuffled order. Raises UserError for a class with fewer than two images.
    """
    usable = np.ones(len(class_of), bool)
    usable[list(leave_out)] = False
    probes, tests = [], []
    for c, name in enumerate(classes):
        members = np.flatnonzero((class_of == c) & usable)
        if len(members) < 2:
            raise UserError(f"class `{name}`: {len(members)} usable image(s); a probe/test split needs at least two")
        members = np.random.default_rng([seed, c]).permutation(members)
        cut = min(max(round(probe * len(members)), 1), len(members) - 1)
        probes.append(members[:cut])
        tests.append(members[cut:])
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
