"""Images: the bundled set or an ImageFolder, through the model's own transform, split per class into probe and test.

Legend: N images of the source, B of a batch. Labels are the model's output indices.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vitprune.decode import EXTENSIONS, as_mode, read
from vitprune.demo.idx import read_idx
from vitprune.errors import UserError
from vitprune.types import Split

CLASSES = ("tshirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")
CACHE_BYTES = 1 << 30


class Source(Protocol):
    """Labelled images: `classes` in order, `class_of` [N] indices into it, one name per image."""

    classes: list[str]
    class_of: np.ndarray
    names: list[str]

    def image(self, i: int) -> Image.Image: ...

    def fingerprint(self) -> str: ...


class Bundled:
    """Fashion-MNIST's 10,000 test images (MIT, Zalando SE), which come with the package."""

    def __init__(self) -> None:
        folder = Path(__file__).parent / "demo" / "images"
        self.pixels = read_idx(folder / "t10k-images-idx3-ubyte.gz")
        self.class_of = read_idx(folder / "t10k-labels-idx1-ubyte.gz").astype(np.int64)
        self.classes = list(CLASSES)
        self.names = [f"fashion-mnist/{i:05d}" for i in range(len(self.class_of))]

    def image(self, i: int) -> Image.Image:
        """Image i, 28 x 28, greyscale."""
        return Image.fromarray(self.pixels[i])

    def fingerprint(self) -> str:
        """Digest of all pixels and labels."""
        return hashlib.sha256(self.pixels.tobytes() + self.class_of.tobytes()).hexdigest()


class Folder:
    """An ImageFolder: one folder per class, images anywhere below it; order is by name."""

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise UserError(f"data.path {root}: no such folder; it must hold one folder of images per class")
        self.root = root
        self.classes = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
        if not self.classes:
            raise UserError(f"data.path {root}: holds no class folders; put each class's images in a folder of its own")
        self.files: list[Path] = []
        class_of: list[int] = []
        for c, name in enumerate(self.classes):
            found = sorted(p for p in (root / name).rglob("*") if p.suffix.lower() in EXTENSIONS and p.is_file())
            if not found:
                raise UserError(f"{root / name}: the class folder holds no images; remove it or fill it")
            self.files += found
            class_of += [c] * len(found)
        self.class_of = np.array(class_of, np.int64)
        self.names = [p.relative_to(root).as_posix() for p in self.files]

    def image(self, i: int) -> Image.Image:
        """Image i, upright, `L` or `RGB`. Raises UserError naming a file that cannot be decoded."""
        return read(self.files[i], "mend or remove it, or set data.on_corrupt: skip")

    def fingerprint(self) -> str:
        """Digest of names, sizes and modification times; the pixels themselves are not read."""
        facts = "".join(
            f"{n}\0{s.st_size}\0{s.st_mtime_ns}\n" for n, s in zip(self.names, map(Path.stat, self.files), strict=True)
        )
        return hashlib.sha256(facts.encode()).hexdigest()


def open_source(source: str | None, path: Path | None) -> Source:
    """The bundled images or a folder."""
    return Folder(path) if path is not None else Bundled()


def unreadable(source: Source, progress: Callable[[Iterable[int]], Iterable[int]] = iter) -> list[tuple[int, str]]:
    """Decode every image once, in threads; positions and reasons of those that fail."""

    def attempt(i: int) -> tuple[int, str] | None:
        try:
            source.image(i)
        except UserError as error:
            return i, str(error)
        return None

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        results = pool.map(attempt, range(len(source.names)))
        return [bad for _, bad in zip(progress(range(len(source.names))), results, strict=True) if bad]


def output_indices(classes: Sequence[str], outputs: int, names: Sequence[str] | None, where: str) -> np.ndarray:
    """For each of the images' classes, the model's output index: by name where the model has names, else by order.

    `names` may hold two spellings per output separated by a tab (ImageNet's synset and plain name).
    """
    if names:
        known: dict[str, int] = {}
        shared: set[str] = set()
        for i, name in enumerate(names):
            for spelling in set(name.split("\t")):
                shared |= {spelling} & known.keys()
                known[spelling] = i
        if both := shared & set(classes):
            raise UserError(f"{where}: `{min(both)}` names more than one of the model's outputs; use its other name")
        missing = [c for c in classes if c not in known]
        if not missing:
            return _one_each(classes, [known[c] for c in classes], names, where)
        if len(missing) < len(classes) or len(classes) != outputs:
            raise UserError(f"{where}: class folder `{missing[0]}` is not among the model's labels ({_some(names)})")
    if len(classes) != outputs:
        raise UserError(
            f"{where}: {len(classes)} class folders, but the model has {outputs} outputs and no label names"
        )
    return np.arange(outputs, dtype=np.int64)


def _one_each(classes: Sequence[str], outputs: list[int], names: Sequence[str], where: str) -> np.ndarray:
    for i, output in enumerate(outputs):
        if output in outputs[:i]:
            first = classes[outputs.index(output)]
            raise UserError(
                f"{where}: class folders `{first}` and `{classes[i]}` are one output ({_some([names[output]])})"
            )
    return np.array(outputs, np.int64)


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(n.replace("\t", " / ") for n in names[:12])
    return shown + (", …" if len(names) > 12 else "")


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
    _cache: Tensor | None = None

    @cached_property
    def labels(self) -> np.ndarray:
        """Output index of every image, [N] int64."""
        return self.output_of_class[self.source.class_of]

    def tensor(self, i: int) -> Tensor:
        """Image i, transformed, [C, H, W]."""
        return self.transform(as_mode(self.source.image(i), "L" if self.channels == 1 else "RGB"))

    def batches(self, indices: np.ndarray, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of (images, labels) in the order of `indices`; small sets are decoded once and kept."""
        for start in range(0, len(indices), size):
            part = indices[start : start + size]
            yield self._stack(part), torch.from_numpy(self.labels[part])

    def _stack(self, part: np.ndarray) -> Tensor:
        missing = part[~self._filled[part]]
        fresh = torch.stack(list(self._pool.map(self.tensor, missing))) if len(missing) else None
        if self._cache is None and fresh is not None and fresh[0].nbytes * len(self._filled) <= CACHE_BYTES:
            self._cache = torch.empty(len(self._filled), *fresh.shape[1:])
        if self._cache is None:
            assert fresh is not None
            return fresh
        if fresh is not None:
            self._cache[missing] = fresh
            self._filled[missing] = True
        return self._cache[part]

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(os.cpu_count() or 1)

    @cached_property
    def _filled(self) -> np.ndarray:
        return np.zeros(len(self.source.names), bool)
