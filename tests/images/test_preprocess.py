"""Pixel for pixel timm's evaluation transform, at every crop mode, interpolation and shape."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from PIL import Image
from timm.data import create_transform

from vitprune.images.preprocess import CROP_MODES, INTERPOLATIONS, Preprocessing

SIZES = [(28, 28), (31, 57), (57, 31), (5, 3), (200, 1), (113, 111), (27, 28), (32, 32), (3, 90)]


def config(channels: int, size: tuple[int, int] = (28, 28), **changed: Any) -> dict[str, Any]:
    made = {
        "input_size": (channels, *size), "interpolation": "bicubic", "crop_pct": 0.875, "crop_mode": "center",
        "mean": (0.485, 0.456, 0.406)[:channels], "std": (0.229, 0.224, 0.225)[:channels],
    }  # fmt: skip
    return made | changed


def image(size: tuple[int, int], channels: int) -> Image.Image:
    shape = (size[1], size[0], 3) if channels == 3 else (size[1], size[0])
    return Image.fromarray(np.random.default_rng(size).integers(0, 256, shape).astype(np.uint8))


def hold(made: dict[str, Any], channels: int) -> None:
    mine, theirs = Preprocessing.of(made), create_transform(**made, is_training=False)
    for size in SIZES:
        shown = image(size, channels)
        try:
            expected = theirs(shown).numpy()
        except ValueError:  # a side of no pixels
            with pytest.raises(ValueError, match="> 0"):
                mine(shown)
            continue
        got = mine(shown)
        assert got.dtype == np.float32 and got.flags.c_contiguous
        assert np.array_equal(got, expected), (size, made)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", CROP_MODES)
@pytest.mark.parametrize("target", [(28, 28), (28, 20), (27, 31)])
def test_every_crop_mode(channels: int, mode: str, target: tuple[int, int]) -> None:
    for crop in (1.0, 0.875, 0.9, 0.95, 1.15):
        hold(config(channels, target, crop_mode=mode, crop_pct=crop), channels)


@pytest.mark.parametrize("name", INTERPOLATIONS)
def test_every_interpolation(name: str) -> None:
    for mode, crop in itertools.product(CROP_MODES, (1.0, 0.9)):
        hold(config(3, interpolation=name, crop_mode=mode, crop_pct=crop), 3)


def test_a_photographs_size() -> None:
    made = config(3, (224, 224), crop_pct=0.9)
    for size in ((640, 427), (427, 641), (1023, 769)):
        shown = image(size, 3)
        expected = create_transform(**made, is_training=False)(shown).numpy()
        assert np.array_equal(Preprocessing.of(made)(shown), expected)


@pytest.mark.parametrize(
    "change",
    [
        {"input_size": [3, 28]}, {"input_size": [3, 28, -1]}, {"input_size": [3, 28, 1 << 40]}, {"input_size": None},
        {"mean": [0.5]}, {"mean": "x"}, {"std": [0.0] * 3}, {"crop_pct": "most"}, {"crop_pct": 0.01}, {"crop_pct": True},
        {"interpolation": "random"}, {"interpolation": []}, {"crop_mode": "best"}, {"crop_mode": None},
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_meant_is_named(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        Preprocessing.of(config(3) | change)
