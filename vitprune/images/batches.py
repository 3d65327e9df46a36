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
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vitprune.core.device import moved
from vitprune.core.errors import UserError
from vitprune.images import kept
from vitprune.images.decode import as_mode
from vitprune.images.decode_pool import Keep, Processes
from vitprune.images.kept import Kept
from vitprune.images.names import printable
from vitprune.images.preprocess import Preprocessing
from vitprune.images.sources.base import Source

CACHE_BYTES = 1 << 30
HERE = torch.device("cpu")


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
    """A source seen through a model's transform: tensors [B, C, H, W] float32 on a device, and output indices [B].

    Each image is decoded once, where its pixels find room: in memory, or in a file of `folder`; there at once where other
    processes share it (`shared`). `told` is given a line on such a file.
    """

    source: Source
    transform: Callable[[Image.Image], Tensor]
    channels: int
    output_of_class: np.ndarray
    processes: Processes | None = None
    device: torch.device = HERE
    folder: Path | None = None
    shared: bool = False
    told: Callable[[str], object] = str
    _cache: Kept | None = None
    _looked: bool = False

    @cached_property
    def labels(self) -> np.ndarray:
        """Output index of every image, [N] int64."""
        return self.output_of_class[self.source.class_of]

    def tensor(self, i: int) -> Tensor:
        """Image i, transformed, [C, H, W], on the processor."""
        return self.transform(self._in_mode(self.source.image(i)))

    def batches(self, indices: np.ndarray, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of (images on the device, labels on the processor) in the order of `indices`.

        Where decoding has processes of its own, or the model another device, the next batch is made meanwhile.
        """
        ahead = 1 if self.processes or self.device.type != "cpu" else 0
        waiting: deque[_Batch] = deque()
        try:
            for start in range(0, len(indices), size):
                waiting.append(self._ask(indices[start : start + size]))
                if len(waiting) > ahead:
                    yield self._made(waiting.popleft())
            while waiting:
                yield self._made(waiting.popleft())
        finally:
            for batch in waiting:
                for future in batch.futures:
                    future.cancel()

    def keep(self, wanted: np.ndarray) -> Keep | None:
        """What takes the `wanted` [N] images' pixels over from who decodes them all; None where there is no room."""
        found = self._room()
        return Keep(wanted, self._pixels, found.put) if found is not None and self._preprocessing is not None else None

    def _ask(self, part: np.ndarray) -> _Batch:
        cache = self._room()
        there = cache.has(part) if cache else np.zeros(len(part), bool)
        missing = np.unique(part[~there])
        batch = _Batch(part, missing, [self._decode(i) for i in missing])
        if self.device.type != "cpu":
            batch.whole = self._loader.submit(self._stacked, batch)
        return batch

    def _decode(self, i: int) -> Future[Any]:
        if self.processes:
            return self.processes.pixels(i)
        return self._threads.submit(lambda: self._pixels(self.source.image(int(i))))

    def _made(self, batch: _Batch) -> tuple[Tensor, Tensor]:
        found = batch.whole.result() if batch.whole else self._stacked(batch)
        return self._normalised(moved(torch.from_numpy(found), self.device)), torch.from_numpy(self.labels[batch.part])

    def _stacked(self, batch: _Batch) -> np.ndarray:
        """The pixels of a batch, [B, C, H, W]."""
        fresh = [np.asarray(future.result()) for future in batch.futures]
        cache = self._room(fresh[0]) if fresh else self._room()
        for i, pixels in zip(batch.missing.tolist(), fresh, strict=True):
            if cache is not None:
                cache.put(i, pixels)
        if cache is not None and (not fresh or cache.has(batch.part).all()):
            return cache.get(batch.part)
        own = dict(zip(batch.missing.tolist(), fresh, strict=True))
        return np.stack([own[i] if i in own else self._again(cache, i) for i in batch.part.tolist()])

    @staticmethod
    def _again(cache: Kept | None, i: int) -> np.ndarray:
        """An image that was there when the batch was asked for."""
        assert cache is not None
        return cache.get(np.array([i]))[0]

    def _room(self, like: np.ndarray | None = None) -> Kept | None:
        """Where the pixels of all images are kept, if they find room; it is looked for once, when it is known how many bytes
        an image has."""
        if like is None and self._preprocessing is not None:
            like = np.empty((self.channels, *self._preprocessing.size), np.uint8)
        if not self._looked and like is not None:
            count = len(self.source.names)
            nbytes, small = like.nbytes * count, like.nbytes * count <= CACHE_BYTES
            found = kept.on_disk(self.folder, count, like) if self.shared or not small else None
            if found is not None and not small:
                self.told(f"images are decoded once, into {found.where}: up to {nbytes / 1e9:.1f} GB until the end")
            self._cache = found if found is not None or not small else kept.InMemory(count, like)
            self._looked = True
        return self._cache

    def _in_mode(self, image: Image.Image) -> Image.Image:
        return as_mode(image, "L" if self.channels == 1 else "RGB")

    def _pixels(self, image: Image.Image) -> np.ndarray:
        """An image as it is kept: not normalised, where that is a step of its own."""
        if self._preprocessing is None:
            return self.transform(self._in_mode(image)).numpy()
        return self._preprocessing.pixels(self._in_mode(image))

    def _normalised(self, pixels: Tensor) -> Tensor:
        """What the model takes, on the pixels' device, to the bits of `Preprocessing`."""
        if self._preprocessing is None:
            return pixels
        full, mean, std = (
            torch.tensor(values, dtype=torch.float32)[:, None, None].to(pixels.device)
            for values in ([255.0] * self.channels, self._preprocessing.mean, self._preprocessing.std)
        )  # tensors, not numbers: CUDA would multiply by the reciprocal of a number
        return pixels.float().div_(full).sub_(mean).div_(std)

    @cached_property
    def _preprocessing(self) -> Preprocessing | None:
        found = self.processes.prepare if self.processes else getattr(self.transform, "preprocessing", None)
        return found if isinstance(found, Preprocessing) else None

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(os.cpu_count() or 1)

    @cached_property
    def _loader(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(1)


@dataclass(slots=True)
class _Batch:
    """Positions of a batch, and of those not decoded yet with what they will become; `whole`: the pixels of all of it."""

    part: np.ndarray
    missing: np.ndarray
    futures: list[Future[Any]]
    whole: Future[np.ndarray] | None = None
