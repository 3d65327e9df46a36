"""An ImageFolder, and what every source that is made of files shares."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from vitprune.decode import EXTENSIONS, read
from vitprune.errors import UserError
from vitprune.sources import ADVICE


class Folder:
    """An ImageFolder: one folder per class, images anywhere below it; order is by name."""

    numbers: list[int] | None = None

    def __init__(self, root: Path, key: str = "data.path") -> None:
        if not root.is_dir():
            raise UserError(f"{key} {root}: no such folder; it must hold one folder of images per class")
        self.root = root
        self.classes = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
        if not self.classes:
            raise UserError(f"{key} {root}: holds no class folders; put each class's images in a folder of its own")
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
        return read(self.files[i], ADVICE)

    def fingerprint(self) -> str:
        """Digest of names, sizes and modification times; the pixels themselves are not read."""
        return facts(zip(self.names, self.files, strict=True))


def facts(files: Iterable[tuple[str, Path]]) -> str:
    """Digest of (name, size, modification time) of files; one that is gone counts as empty."""
    found = hashlib.sha256()
    for name, path in files:
        try:
            stat = path.stat()
            size, changed = stat.st_size, stat.st_mtime_ns
        except OSError:
            size = changed = 0
        found.update(f"{name}\0{size}\0{changed}\n".encode("utf-8", "surrogateescape"))
    return found.hexdigest()


def number_of(label: str) -> int | None:
    """The number that a label is, written plainly (`7`, not `07`), else None."""
    return int(label) if label.isascii() and label.isdigit() and len(label) < 10 and str(int(label)) == label else None


def grouped(labels: list[str]) -> tuple[list[str], np.ndarray, list[int] | None]:
    """Classes in order, the class of each image, and the outputs where every label is a number (then in its order)."""
    found = sorted(set(labels))
    numbers = [number_of(label) for label in found]
    outputs = sorted(n for n in numbers if n is not None) if None not in numbers else None
    classes = [str(n) for n in outputs] if outputs is not None else found
    position = {name: c for c, name in enumerate(classes)}
    return classes, np.array([position[label] for label in labels], np.int64), outputs
