"""Where labelled images come from: one file per kind of source. numpy and Pillow; torch only where timm opens the data."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from PIL import Image

from vitprune.errors import UserError
from vitprune.files import kind

if TYPE_CHECKING:
    from vitprune.recipe import Data
    from vitprune.sources.contents import Contents

ADVICE = "mend or remove it, or set data.on_corrupt: skip"
MANIFESTS = {".csv", ".parquet"}


class Source(Protocol):
    """Labelled images: `classes` in order, `class_of` [N] indices into it, one name per image.

    `numbers` are the classes' names as numbers, where they all are such. `left_out` counts files that are no images of a
    class, by their kind.
    """

    classes: list[str]
    class_of: np.ndarray
    names: list[str]
    numbers: list[int] | None
    left_out: Counter[str]

    def image(self, i: int) -> Image.Image:
        """Image i, upright, `L` or `RGB`. Raises UserError naming one that cannot be decoded."""

    def fingerprint(self, contents: Contents | None = None) -> str:
        """Digest that changes when the images or their labels do, and with nothing else; `contents` reads the files."""


def open_source(data: Data) -> Source:
    """The images that a recipe's `data` names. Raises UserError."""
    if data.probe is not None and data.test is not None:
        from vitprune.sources.pair import ProbeAndTest

        return ProbeAndTest(open_path(data.probe, "data.probe"), open_path(data.test, "data.test"))
    if data.dataset is not None:
        from vitprune.sources.timm_dataset import open_dataset

        return open_dataset(data.dataset, data.path, data.dataset_split)
    if data.path is not None:
        return open_path(data.path, "data.path")
    from vitprune.sources.bundled import Bundled

    return Bundled()


def open_path(path: Path, key: str) -> Source:
    """A folder of class folders, a folder of tar files, one tar file, or a manifest; `key` names it in errors."""
    from vitprune.sources.folder import Folder
    from vitprune.sources.manifest import Manifest
    from vitprune.sources.tar import Tar, tars_in

    if path.is_file():
        if path.suffix.lower() in MANIFESTS:
            return Manifest(path, key)
        if path.suffix.lower() == ".tar":
            return Tar([path], key)
        known = ", ".join([*sorted(MANIFESTS), ".tar"])
        raise UserError(
            f"{key} {path}: no such folder; a file of images is one of {known} (a packed tar: unpack it once)"
        )
    if path.exists() and not path.is_dir():
        raise UserError(f"{key} {path}: is {kind(path)}, no file or folder of images")
    tars = tars_in(path)
    return Tar(tars, key) if tars else Folder(path, key)
