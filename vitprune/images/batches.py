"""Images through the model's own transform, split per class into probe and test, or taken from a folder for each.

Legend: N images of the source, B of a batch. Labels are the model's output indices.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vitprune.core.errors import UserError
from vitprune.images.decode import as_mode
from vitprune.images.decode_pool import Processes
from vitprune.images.names import printable
from vitprune.images.sources.base import Source

CACHE_BYTES = 1 << 30


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
