"""Where labelled images come from: one file per kind of source. numpy and Pillow; torch only where timm opens the data."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Protocol

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from vitprune.images.sources.contents import Contents

ADVICE = "mend or remove it, or set data.on_corrupt: skip"


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
