"""The images that come with the package."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from vitprune.images.sources.contents import Contents
from vitprune.images.sources.idx import read_idx

CLASSES = ("tshirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")


class Bundled:
    """Fashion-MNIST's 10,000 test images (MIT, Zalando SE), which come with the package."""

    numbers: list[int] | None = None

    def __init__(self) -> None:
        folder = Path(__file__).parents[2] / "demo" / "images"
        self.pixels = read_idx(folder / "t10k-images-idx3-ubyte.gz")
        self.class_of = read_idx(folder / "t10k-labels-idx1-ubyte.gz").astype(np.int64)
        self.classes = list(CLASSES)
        self.left_out: Counter[str] = Counter()
        self.names = [f"fashion-mnist/{i:05d}" for i in range(len(self.class_of))]

    def image(self, i: int) -> Image.Image:
        """Image i, 28 x 28, greyscale."""
        return Image.fromarray(self.pixels[i])

    def fingerprint(self, contents: Contents | None = None) -> str:
        """Digest of all pixels and labels."""
        return hashlib.sha256(self.pixels.tobytes() + self.class_of.tobytes()).hexdigest()
