"""An ImageFolder, and what every source that is made of files shares."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from vitprune.core.errors import UserError
from vitprune.images.decode import read
from vitprune.images.names import in_order, numbers_of
from vitprune.images.sources.base import ADVICE
from vitprune.images.sources.contents import Contents
from vitprune.images.sources.found import below, folders, loose, note


class Folder:
    """An ImageFolder: one folder per class, images anywhere below it; order is by name, numbers by their size."""

    def __init__(self, root: Path, key: str = "data.path") -> None:
        if not root.is_dir():
            raise UserError(f"{key} {root}: no such folder; it must hold one folder of images per class")
        self.root = root
        self.classes = in_order(folders(root))
        if not self.classes:
            bare = ", or take the model without its head (model.head: none)" if key == "data.path" else ""
            raise UserError(
                f"{key} {root}: holds no class folders; put each class's images in a folder of its own{bare}"
            )
        self.numbers = numbers_of(self.classes)
        self.left_out = loose(root)
        self.files: list[Path] = []
        class_of: list[int] = []
        for c, name in enumerate(self.classes):
            found = below(root / name)
            if not found.files:
                held = note(found.others, "it")
                raise UserError(
                    f"{root / name}: the class folder holds no images; remove it or fill it"
                    + (f". {held}" if held else "")
                )
            self.files += found.files
            self.left_out += found.others
            class_of += [c] * len(found.files)
        self.class_of = np.array(class_of, np.int64)
        self.names = [p.relative_to(root).as_posix() for p in self.files]

    def image(self, i: int) -> Image.Image:
        """Image i, upright, `L` or `RGB`. Raises UserError naming a file that cannot be decoded."""
        return read(self.files[i], ADVICE)

    def fingerprint(self, contents: Contents | None = None) -> str:
        """Digest of names and contents."""
        return (contents or Contents()).digest(self.names, self.files)


ONE_CLASS = "images"  # what the class of a flat folder is called


def is_flat(root: Path) -> bool:
    """Whether a folder holds no folders, and so no classes."""
    return root.is_dir() and not folders(root)


class Flat(Folder):
    """A folder of images without class folders: one class of all of them, in the order of their names."""

    def __init__(self, root: Path, key: str = "data.path") -> None:
        self.root, self.classes, self.numbers = root, [ONE_CLASS], None
        found = below(root)
        if not found.files:
            raise UserError(f"{key} {root}: holds no images")
        self.files, self.left_out = found.files, found.others
        self.class_of = np.zeros(len(self.files), np.int64)
        self.names = [p.relative_to(root).as_posix() for p in self.files]


def grouped(labels: list[str]) -> tuple[list[str], np.ndarray, list[int] | None]:
    """Classes in order, the class of each image, and the outputs where every label is a number (then in its order).

    A number that a table wrote as `7.0` is `7`.
    """
    if numbers_of(set(labels)) is not None:
        labels = [label.split(".")[0] for label in labels]
    classes = in_order(labels)
    position = {name: c for c, name in enumerate(classes)}
    return classes, np.array([position[label] for label in labels], np.int64), numbers_of(classes)
