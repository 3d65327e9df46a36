"""timm's evaluation transform in Pillow and numpy: resize, crop or pad, scale to 0…1, normalise. Never torch.

Pixel for pixel what `timm.data.create_transform(is_training=False)` does by way of torchvision; the tests hold both
side by side. Sizes are (height, width) as there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageOps

INTERPOLATIONS = {
    name: Image.Resampling[name.upper()] for name in ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")
}
CROP_MODES = ("center", "squash", "border")
Size = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """How a model's images are prepared; `channels` 1 asks for `L`, else for `RGB`."""

    channels: int
    size: Size
    interpolation: str
    crop_pct: float
    crop_mode: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Preprocessing:
        """From timm's data_config. Raises ValueError naming the first entry that cannot be meant."""
        shape = config.get("input_size")
        sizes = list(shape) if isinstance(shape, list | tuple) else []
        _require(config, "input_size", len(sizes) == 3 and all(type(v) is int and 1 <= v <= 1 << 16 for v in sizes))
        channels, height, width = sizes
        _require(config, "mean", _numbers(config.get("mean"), channels, -1e3, 1e3))
        _require(config, "std", _numbers(config.get("std"), channels, 1e-6, 1e3))
        _require(config, "crop_pct", _numbers([config.get("crop_pct")], 1, 0.1, 2))
        _require(config, "interpolation", config.get("interpolation") in list(INTERPOLATIONS))
        _require(config, "crop_mode", config.get("crop_mode") in CROP_MODES)
        return cls(
            channels, (height, width), config["interpolation"], config["crop_pct"], config["crop_mode"],
            tuple(config["mean"]), tuple(config["std"]),
        )  # fmt: skip

    def __call__(self, image: Image.Image) -> np.ndarray:
        """[channels, height, width] float32 of an image in the model's mode (`L` or `RGB`)."""
        return self.normalised(self.pixels(image))

    def pixels(self, image: Image.Image) -> np.ndarray:
        """[channels, height, width] uint8: resized, cropped or padded, not yet normalised."""
        scale = (math.floor(self.size[0] / self.crop_pct), math.floor(self.size[1] / self.crop_pct))
        before, fill = (image.height, image.width), (0,) * self.channels
        if self.crop_mode == "squash":
            after = scale
        elif self.crop_mode == "border":
            after, fill = _kept_ratio(before, scale, longest=True), tuple(round(255 * v) for v in self.mean)
        elif scale[0] == scale[1]:
            after = _shorter_side(before, scale[0])
        else:
            after = _kept_ratio(before, scale, longest=False)
        if after != before:
            image = image.resize((after[1], after[0]), INTERPOLATIONS[self.interpolation])
        made = np.asarray(_crop_or_pad(image, self.size, fill), np.uint8)
        return np.ascontiguousarray(made.reshape(*self.size, self.channels).transpose(2, 0, 1))

    def normalised(self, pixels: np.ndarray) -> np.ndarray:
        """[..., channels, height, width] float32 of pixels as `pixels` gives them."""
        mean, std = (np.array(values, np.float32)[:, None, None] for values in (self.mean, self.std))
        return (pixels.astype(np.float32) / np.float32(255) - mean) / std


def _shorter_side(before: Size, short: int) -> Size:
    """torchvision's Resize(int): the longer side is rounded down."""
    height, width = before
    long = int(short * max(before) / min(before))
    return (long, short) if width <= height else (short, long)


def _kept_ratio(before: Size, target: Size, longest: bool) -> Size:
    """timm's ResizeKeepRatio: the longest (or shortest) side meets its target; both are rounded to even halves."""
    ratios = before[0] / target[0], before[1] / target[1]
    ratio = max(ratios) if longest else min(ratios)
    return round(before[0] / ratio), round(before[1] / ratio)


def _crop_or_pad(image: Image.Image, size: Size, fill: tuple[int, ...]) -> Image.Image:
    """torchvision's CenterCrop: what is too small is padded first, the odd pixel to the right and below."""
    height, width = size
    x, y = max(width - image.width, 0), max(height - image.height, 0)
    if x or y:
        colour = fill if len(fill) > 1 else fill[0]
        image = ImageOps.expand(image, (x // 2, y // 2, (x + 1) // 2, (y + 1) // 2), colour)
    top, left = round((image.height - height) / 2), round((image.width - width) / 2)
    return image.crop((left, top, left + width, top + height))


def _numbers(value: Any, count: int, low: float, high: float) -> bool:
    fits = isinstance(value, list | tuple) and len(value) == count
    return fits and all(type(v) in (int, float) and low <= v <= high for v in value)


def _require(config: Mapping[str, Any], key: str, fits: bool) -> None:
    if not fits:
        raise ValueError(f"`{key}: {str(config.get(key))[:60]}`")
