"""Image files to pixels: the one decoder, of every stage and of `predict`. Pillow and numpy, never torch.

- Upright by the EXIF orientation; of several frames the first; colour profiles are not applied.
- 16 bits per channel become 8 by their high byte (Pillow does so itself for colour, here for greys).
- Palettes, CMYK (Adobe's inverted one too), YCbCr and HSV become RGB by Pillow's own conversion.
- Alpha is composed onto nothing: it is dropped and the colours stay as stored. timm's and torchvision's readers do the
  same, so a model sees transparent pixels as in its training.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from vitprune.core.errors import UserError

EXTENSIONS = {
    ".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".j2k", ".jpx", ".png", ".apng", ".bmp", ".webp", ".avif", ".tif", ".tiff",
    ".ppm", ".pgm", ".pbm", ".pnm", ".gif",
}  # fmt: skip
# What Pillow knows by its first bytes and reads by itself: others would see an image in any text or run programs.
KNOWN = (
    "JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "ICO", "ICNS", "PSD", "DDS", "QOI", "SGI",
    "SUN",
)  # fmt: skip
MAX_PIXELS = 178_956_970  # where Pillow itself stops: twice its Image.MAX_IMAGE_PIXELS
MAX_ASPECT = 200  # a strip one pixel high, resized by its shorter side, would fill the memory
SIXTEEN = ("I", "I;16", "I;16B", "I;16L", "I;16N")
Mode = Literal["L", "RGB"]


def read(path: Path, advice: str = "mend or remove it") -> Image.Image:
    """The image in a file, upright, `L` or `RGB` as the file holds grey or colour.

    Raises UserError naming the file when it is missing, damaged, truncated, or larger than MAX_PIXELS.
    """

    def whole() -> Image.Image:
        if not path.is_file():
            raise ValueError("no such file")
        with Image.open(path) as image:
            return _loaded(image)

    return _named(whole, str(path), advice)


def read_bytes(content: Callable[[], bytes], name: str, advice: str = "mend or remove it") -> Image.Image:
    """The image in the bytes that `content` reads, as `read` does it; `name` says in errors which image it is."""

    def whole() -> Image.Image:
        with Image.open(BytesIO(content())) as image:
            return _loaded(image)

    return _named(whole, name, advice)


def is_image(file: BinaryIO) -> bool:
    """Whether Pillow takes an open file's content for an image, whatever its name; the pixels are not read."""
    try:
        with Image.open(file, formats=_known()):
            return True
    except Image.DecompressionBombError:
        return True  # one that reading will refuse by name
    except Exception:  # a damaged file drives a decoder to any of them
        return False


@cache
def _known() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in KNOWN if name in Image.OPEN)


def _loaded(image: Image.Image) -> Image.Image:
    _check_size(*image.size)
    image.load()
    made = flat(image)
    made.info.clear()  # turned once; damaged EXIF must not be read again
    return made


def _named(make: Callable[[], Image.Image], name: str, advice: str) -> Image.Image:
    try:
        return make()
    except MemoryError:  # the machine's, not the file's: it must not count as unreadable
        raise
    except Exception as error:  # a damaged file drives a decoder to any of them
        unknown = isinstance(error, UnidentifiedImageError)
        reason = "no format that Pillow knows" if unknown else str(error)[:80] or type(error).__name__
        raise UserError(f"{name}: not a readable image ({reason}); {advice}") from error


def flat(image: Image.Image) -> Image.Image:
    """Upright, 8 bits per channel, `L` for the grey modes and `RGB` for the others.

    Raises ValueError for pixels without an agreed white: floating point, or integers beyond 16 bits.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ValueError("floating-point pixels, which have no agreed white; save it with 8 or 16 bits")
    if image.mode in SIXTEEN:
        pixels = np.asarray(image).astype(np.int64)
        if pixels.min() < 0 or pixels.max() > 0xFFFF:
            raise ValueError("pixels beyond 16 bits; save it with 8 or 16 bits")
        return Image.fromarray((pixels >> 8).astype(np.uint8))
    mode = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
    return image if image.mode == mode else image.convert(mode)


def as_mode(image: Image.Image, mode: Mode) -> Image.Image:
    """`flat`, then as the model asks: `L` (Rec. 601 luma of a colour image) or `RGB` (three equal channels of a grey one)."""
    image = flat(image)
    return image if image.mode == mode else image.convert(mode)


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ValueError(f"{width:,} x {height:,} pixels; at most {MAX_PIXELS:,} are decoded")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ValueError(f"{width:,} x {height:,} pixels; one side is more than {MAX_ASPECT} times the other")
