"""Labels of pixels: one PNG of whole numbers per image, in a folder that mirrors the images' names. 0 is no label.

`square/03.jpg` of the images has its labels in FOLDER/square/03.png, as large as the image as it stands upright. They go
through the model's resizing and cropping with it, each pixel the nearest one's. FOLDER/names.json may name them:
{"7": "sleeve"}.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from vitprune.core.errors import UserError
from vitprune.core.reading import digest, read_json, sha256
from vitprune.images.names import printable
from vitprune.images.preprocess import Preprocessing

MODES = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L")
LARGEST = 0xFFFF
NAMES = "names.json"
ADVICE = "a mask is a PNG of whole numbers, as large as its image"


@dataclass(frozen=True, slots=True)
class PixelLabels:
    """The folder of `data.masks`."""

    folder: Path

    def require(self, names: Sequence[str]) -> None:
        """Raises UserError, naming the first, where an image has no mask."""
        for name in names:
            path = self._path(name)
            if not path.is_file():
                raise UserError(
                    f"data.masks {self.folder}: no mask for `{printable(name)}`: {path} is not there; {ADVICE}"
                )

    def of(self, name: str, image: Image.Image, prepare: Preprocessing) -> np.ndarray:
        """Labels of the model's input, [height, width] int64: those of the image's mask, resized and cropped with it; 0 where
        it is padded. Raises UserError for a mask that is missing, is no PNG of numbers, or is not as large as the image."""
        self.require([name])
        labels = self._read(self._path(name), image.size)
        nearest = replace(prepare, channels=1, interpolation="nearest", mean=(0.0,), std=(1.0,))
        low, high = (
            nearest.pixels(Image.fromarray(part.astype(np.uint8)))[0].astype(np.int64)
            for part in (labels & 0xFF, labels >> 8)
        )
        made: np.ndarray = low + (high << 8)
        return made

    def names(self) -> dict[int, str]:
        """Label → its name, of those that FOLDER/names.json has. Raises UserError for a file that is no such table."""
        path = self.folder / NAMES
        if not path.is_file():
            return {}
        found = read_json(path)
        if not isinstance(found, dict) or not all(k.isdecimal() and isinstance(v, str) for k, v in found.items()):
            raise UserError(f'{path}: is no table of labels; write {{"7": "sleeve"}}, a name for each number')
        return {int(label): name for label, name in found.items()}

    def fingerprint(self) -> str:
        """Digest of names and contents of the folder's masks."""
        files = sorted(path for path in self.folder.rglob("*.png") if path.is_file())
        known = [(path.relative_to(self.folder).as_posix(), sha256(path)) for path in files]
        return digest(known, sorted(self.names().items()))

    def _path(self, name: str) -> Path:
        inside = Path(name)
        if inside.is_absolute() or ".." in inside.parts:
            raise UserError(
                f"data.masks: the image `{printable(name)}` is not below the images' folder; name it from there"
            )
        return self.folder / inside.with_suffix(".png")

    def _read(self, path: Path, size: tuple[int, int]) -> np.ndarray:
        try:
            with Image.open(path, formats=("PNG",)) as found:
                mode, own = found.mode, found.size
                if own == size and mode in MODES:
                    made = np.asarray(found).astype(np.int64)
        except Exception as error:  # a damaged file drives a decoder to any of them
            raise UserError(
                f"{path}: not a readable PNG ({str(error)[:80] or type(error).__name__}); {ADVICE}"
            ) from error
        if own != size:
            raise UserError(f"{path}: is {own[0]} x {own[1]} pixels, its image {size[0]} x {size[1]}; {ADVICE}")
        if mode not in MODES:
            raise UserError(f"{path}: holds colours ({mode}), no labels; {ADVICE}")
        if made.max(initial=0) > LARGEST:
            raise UserError(f"{path}: holds a label beyond {LARGEST:,}; number them from 1")
        return made


def told(folder: Path | None) -> list[str]:
    """What a result depends on: nothing without masks, else their digest."""
    return [] if folder is None else [PixelLabels(folder).fingerprint()]
