"""Datasets by their names in `timm.data.create_dataset`: `hfds/`, `hfids/`, `wds/`, `tfds/` (extras) and `torch/`.

Random access (`hfds/`, `torch/`) decodes an image when it is asked for. The others can only be read from front to back:
they are read once, in order, and kept in memory as PNG.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image
from timm.data import create_dataset

from vitprune.core.errors import UserError, one_line
from vitprune.images.decode import flat, read_bytes
from vitprune.images.names import numbers_of
from vitprune.images.sources.base import ADVICE, Source
from vitprune.images.sources.contents import Contents
from vitprune.images.sources.folder import grouped

NEEDS = {
    "hfds": "datasets",
    "hfids": "datasets",
    "wds": "webdataset",
    "tfds": "tensorflow_datasets",
    "torch": "torchvision",
}
KEPT_BYTES = 4 << 30
IN_ORDER = ("hfids", "wds", "tfds")


class Reader(Protocol):
    """How one image is read, and a digest of all."""

    def image(self, i: int, name: str) -> Image.Image: ...

    def digest(self, count: int, contents: Contents) -> str: ...


class TimmDataset:
    """A dataset's labelled images; classes by the dataset's own names, by number where it has none."""

    def __init__(self, name: str, reader: Reader, labels: list[int], vocabulary: list[str] | None) -> None:
        bound = len(vocabulary) if vocabulary is not None else 1 << 30
        for i, label in enumerate(labels):
            if not 0 <= label < bound:
                raise UserError(
                    f"data.dataset `{name}`: image {i} has the label {label}; choose a part that is labelled"
                )
        if vocabulary is None:
            self.classes, self.class_of, self.numbers = grouped([str(label) for label in labels])
        else:
            used = sorted(set(labels))
            self.classes = [vocabulary[label] for label in used]
            self.numbers = numbers_of(self.classes)
            self.class_of = np.searchsorted(used, labels).astype(np.int64)
        self.names = [f"{name}/{i:07d}" for i in range(len(labels))]
        self.left_out: Counter[str] = Counter()
        self._about, self._reader = name, reader

    def image(self, i: int) -> Image.Image:
        """Image i, upright, `L` or `RGB`. Raises UserError naming one that cannot be decoded."""
        return self._reader.image(i, self.names[i])

    def fingerprint(self, contents: Contents | None = None) -> str:
        """Digest of the dataset's name, labels and contents."""
        labels = "\0".join([*self.classes, *map(str, self.class_of.tolist())])
        found = self._reader.digest(len(self.names), contents or Contents())
        return hashlib.sha256(f"{self._about}\0{found}\0{labels}".encode()).hexdigest()


def open_dataset(name: str, root: Path | None, split: str) -> Source:
    """The named dataset below `root` (without: timm's own place, by the network). Raises UserError."""
    where = f"data.dataset `{name[:80]}`"
    prefix = name.split("/")[0].lower()
    if prefix not in NEEDS or name.endswith("/") or "/" not in name:
        raise UserError(f"{where}: starts with none of {', '.join(f'{p}/' for p in NEEDS)}; a folder is `data.path`")
    if importlib.util.find_spec(NEEDS[prefix]) is None:
        raise UserError(f"{where}: needs {NEEDS[prefix]}; pip install 'vitprune[{prefix.replace('hfids', 'hfds')}]'")
    mode = "RGB" if prefix == "tfds" else ""  # "": as stored; tfds decodes by itself
    try:
        made: Any = create_dataset(
            name, root=None if root is None else str(root), split=split, input_img_mode=mode, is_training=False
        )
        found = _random_access(name, made, prefix) if prefix not in IN_ORDER else _read_once(name, made, where)
    except UserError:
        raise
    except Exception as error:  # every kind of dataset raises its own
        if root is None and isinstance(error, TypeError):  # of torchvision, which joins paths to it
            raise UserError(
                f"{where}: lies in no folder; say data.path, as a recipe can, where its files are"
            ) from error
        raise UserError(
            f"{where}, split `{split[:80]}`: cannot be opened ({one_line(error)}); check the name, data.dataset_split and "
            "data.path, and where there is no local copy the network"
        ) from error
    if not found.names:
        raise UserError(f"{where}, split `{split[:80]}`: holds no images")
    return found


@dataclass(frozen=True)
class _Bytes:
    """A timm reader that hands out encoded images by position."""

    reader: Any

    def image(self, i: int, name: str) -> Image.Image:
        def content() -> bytes:
            with self.reader[i][0] as file:
                return bytes(file.read())

        return read_bytes(content, name, ADVICE)

    def digest(self, count: int, contents: Contents) -> str:
        made = hashlib.sha256()
        for i in range(count):
            with self.reader[i][0] as file:
                made.update(hashlib.sha256(file.read()).digest())
        return made.hexdigest()


@dataclass(frozen=True)
class _Pictures:
    """A torchvision dataset, which hands out decoded images by position."""

    dataset: Any

    def image(self, i: int, name: str) -> Image.Image:
        try:
            return flat(self.dataset[i][0])
        except Exception as error:  # a damaged file drives a decoder to any of them
            raise UserError(f"{name}: not a readable image ({one_line(error)}); {ADVICE}") from error

    def digest(self, count: int, contents: Contents) -> str:
        pixels = getattr(self.dataset, "data", None)
        if pixels is not None:
            return hashlib.sha256(np.ascontiguousarray(np.asarray(pixels)).tobytes()).hexdigest()
        files = [Path(str(row[0])) for row in getattr(self.dataset, "samples", ())]
        if len(files) == count and all(path.is_file() for path in files):
            return contents.digest([str(i) for i in range(count)], files)
        made = hashlib.sha256()
        for i in range(count):
            try:
                made.update(np.asarray(self.image(i, str(i))).tobytes())
            except UserError:  # reading it for the run will name it
                made.update(b"unreadable")
        return made.hexdigest()


@dataclass(frozen=True)
class _Kept:
    """Images kept in memory as PNG."""

    images: list[bytes]

    def image(self, i: int, name: str) -> Image.Image:
        return read_bytes(lambda: self.images[i], name, ADVICE)

    def digest(self, count: int, contents: Contents) -> str:
        return hashlib.sha256(b"".join(hashlib.sha256(image).digest() for image in self.images)).hexdigest()


def _random_access(name: str, made: Any, prefix: str) -> TimmDataset:
    if prefix == "hfds":
        labels = [int(label) for label in made.reader.iter_targets()]
        return TimmDataset(name, _Bytes(made.reader), labels, _names(made.reader.class_to_idx))
    targets = next((getattr(made, key) for key in ("targets", "labels", "_labels") if hasattr(made, key)), None)
    labels = [int(label) for label in (targets if targets is not None else (row[1] for row in made.samples))]
    classes = getattr(made, "classes", None)
    return TimmDataset(name, _Pictures(made), labels, None if classes is None else list(map(str, classes)))


def _read_once(name: str, made: Any, where: str) -> TimmDataset:
    images: list[bytes] = []
    labels: list[int] = []
    size = 0
    with _complaints() as complaints:
        for image, label in made:
            file = BytesIO()
            flat(image if isinstance(image, Image.Image) else Image.fromarray(image)).save(
                file, "PNG", compress_level=1
            )
            images.append(file.getvalue())
            labels.append(int(label))
            size += len(images[-1])
            if size > KEPT_BYTES:
                raise UserError(f"{where}: more than {KEPT_BYTES >> 30} GiB; unpack it to a folder, or use hfds/")
    if complaints:  # timm's reader leaves such a sample out without a word to us
        raise UserError(
            f"{where}: {len(complaints)} sample(s) cannot be read ({complaints[0][:80]}); "
            "data.path: FOLDER_OF_TARS reads webdataset's shards too and names each"
        )
    return TimmDataset(name, _Kept(images), labels, _names(getattr(made.reader, "class_to_idx", {})))


@contextmanager
def _complaints() -> Iterator[list[str]]:
    """What timm's readers say about samples that they leave out."""
    found: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "Handling webdataset error" in record.getMessage():
                found.append(record.getMessage())

    listener, logger = Listener(), logging.getLogger("timm")
    logger.addHandler(listener)
    try:
        yield found
    finally:
        logger.removeHandler(listener)


def _names(index_of: dict[str, int]) -> list[str] | None:
    """The dataset's class names in the order of their numbers, where it has them."""
    return [str(name) for name, _ in sorted(index_of.items(), key=lambda pair: pair[1])] if index_of else None
