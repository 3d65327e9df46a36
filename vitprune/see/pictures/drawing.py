"""Pictures as PNG bytes: an image of the model's input, a map over it, a mask over it.

The colours go from dark to light as a map rises, so that they can be read in grey. Legend: H x W pixels.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image
from torch import Tensor

# Silent to loud; lightness rises all the way.
COLOURS = ((13, 8, 60), (60, 20, 120), (140, 41, 129), (205, 72, 94), (245, 135, 60), (252, 200, 70), (252, 253, 200))
MARK = (255, 170, 40)  # of a mask's pixels
BETWEEN = 128  # grey between pictures, on a light page as on a dark one
ALPHA = 0.6  # how much of the colour covers the image
LIMIT = 100_000  # bytes of a picture that a report embeds


def coloured(level_HW: np.ndarray) -> np.ndarray:
    """Levels 0 to 1 as colours, float [H, W, 3] in 0…255."""
    table = np.array(COLOURS, np.float64)
    at = np.clip(level_HW, 0, 1) * (len(table) - 1)
    low = np.minimum(at.astype(int), len(table) - 2)
    share = (at - low)[..., None]
    return np.asarray(table[low] * (1 - share) + table[low + 1] * share)


def pixels(image_CHW: Tensor, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """A model's input as it looks, uint8 [H, W, 3]; grey where it has one channel."""
    back = image_CHW.detach().double().cpu().numpy()
    back = back * np.array(std)[:, None, None] + np.array(mean)[:, None, None]
    whole = np.rint(255 * np.clip(back, 0, 1)).astype(np.uint8).transpose(1, 2, 0)
    return np.repeat(whole, 3, 2) if whole.shape[2] == 1 else whole


def overlay(under_HW3: np.ndarray, level_HW: np.ndarray, alpha: float = ALPHA) -> np.ndarray:
    """A map of levels 0 to 1 over an image, uint8 [H, W, 3]."""
    return np.rint((1 - alpha) * under_HW3 + alpha * coloured(level_HW)).astype(np.uint8)


def marked(under_HW3: np.ndarray, mask_HW: np.ndarray) -> np.ndarray:
    """An image with a mask on it, uint8 [H, W, 3]: half of the mark's colour inside, where a black pixel is seen too; half as
    bright outside."""
    share = np.where(np.asarray(mask_HW, bool)[..., None], 0.5 * np.array(MARK, np.float64), 0.0)
    return np.rint(0.5 * under_HW3 + share).astype(np.uint8)


def at_most(picture: np.ndarray, edge: int) -> np.ndarray:
    """The picture with its longer side at most `edge` pixels, at least as large as before where it is smaller."""
    height, width = picture.shape[:2]
    if max(height, width) <= edge:
        return np.repeat(np.repeat(picture, edge // max(height, width), 0), edge // max(height, width), 1)
    scale = edge / max(height, width)
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BOX))


def side_by_side(pictures: Sequence[np.ndarray], before: int = 0, gap: int = 0) -> np.ndarray:
    """Pictures of one size in a row, uint8 [H, ·, 3], grey between; a wider gap of `gap` pixels after the first `before`."""
    high = pictures[0].shape[0]
    made = []
    for k, picture in enumerate(pictures):
        if k:
            made.append(np.full((high, 2 + (gap if k == before else 0), 3), BETWEEN, np.uint8))
        made.append(picture)
    return np.concatenate(made, 1)


def png(picture: np.ndarray, limit: int = LIMIT) -> bytes:
    """PNG of uint8 [H, W, 3] or [H, W], the same bytes every time; with 256 colours, then smaller, where it is beyond
    `limit` bytes."""
    image = Image.fromarray(np.ascontiguousarray(picture))
    found = _bytes(image)
    if len(found) > limit and image.mode == "RGB":
        found = _bytes(image.quantize(256))
    while len(found) > limit and min(image.size) > 16:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
        found = _bytes(image)
    return found


def _bytes(image: Image.Image) -> bytes:
    into = io.BytesIO()
    image.save(into, "PNG", optimize=True)
    return into.getvalue()
