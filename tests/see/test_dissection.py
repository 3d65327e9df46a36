"""Units' masks against labelled pixels: counts by hand, chance, and the folder of labels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vitprune.core.errors import UserError
from vitprune.images.pixel_labels import PixelLabels, told
from vitprune.images.preprocess import Preprocessing
from vitprune.see.pictures.dissection import Counted, at_most

PLAIN = Preprocessing(3, (8, 8), "bicubic", 1.0, "center", (0.0,) * 3, (1.0,) * 3)


def test_the_best_label_by_hand() -> None:
    """Unit 0 is label 7's pixels but one, unit 1 is above its threshold nowhere, unit 2 everywhere."""
    labels = np.array([[[0, 0, 7, 7], [0, 9, 7, 7]]])
    maps = torch.zeros(1, 3, 2, 4)
    maps[0, 0, :, 2:] = 1
    maps[0, 0, 1, 3] = 0
    maps[0, 2] = 1
    found = Counted.of(maps, labels, torch.tensor([0.5, 0.5, 0.5]))
    assert found.labels.tolist() == [0, 7, 9] and found.labelled.tolist() == [3, 4, 1]
    assert found.both.tolist() == [[0, 3, 0], [0, 0, 0], [3, 4, 1]] and found.masked.tolist() == [3, 0, 8]
    best = found.best()
    assert best.label.tolist() == [7, 0, 7] and best.iou.tolist() == [3 / 4, 0, 4 / 8]
    by_chance = 3 * 4 / 8
    assert best.chance[0] == pytest.approx(by_chance / (3 + 4 - by_chance)) and best.chance[2] == pytest.approx(0.5)


def test_a_value_at_the_threshold_is_not_in_the_mask() -> None:
    labels, maps = np.ones((1, 2, 2), int), torch.tensor([[[[1.0, 2], [3, 2]]]])
    assert Counted.of(maps, labels, torch.tensor([2.0])).masked.tolist() == [1]


def test_portions_with_other_labels_add_up_to_the_whole() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(5, 4, 3, 3, generator=generator)
    labels = np.random.default_rng(0).integers(0, 4, (5, 7, 6)) * 90
    labels[:2][labels[:2] == 270] = 0
    labels[2:][labels[2:] == 90] = 180
    limit = torch.zeros(4)
    whole = Counted.of(maps, labels, limit)
    parts = Counted.of(maps[:2], labels[:2], limit) + Counted.of(maps[2:], labels[2:], limit)
    again = Counted.unpacked(parts.packed("3."), "3.")
    for name in ("labels", "both", "masked", "labelled"):
        assert (getattr(again, name) == getattr(whole, name)).all() and getattr(again, name).dtype == np.int64


def test_labels_become_smaller_by_the_pixels_in_the_middle() -> None:
    labels = np.arange(36).reshape(1, 6, 6)
    assert at_most(labels, 2)[0].tolist() == [[7, 10], [25, 28]] and (at_most(labels, 99) == labels).all()


def labelled(folder: Path, values: np.ndarray, name: str = "a/0.png") -> PixelLabels:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)
    return PixelLabels(folder)


def test_labels_go_where_the_image_goes(tmp_path: Path) -> None:
    """Of a wide image the middle is taken, in wholes; two bytes of a label stay together."""
    values = np.zeros((8, 16), np.uint16)
    values[:4, 4:8], values[4:, 8:12] = 300, 7
    found = labelled(tmp_path, values).of("a/0.jpg", Image.new("RGB", (16, 8)), PLAIN)
    assert found.shape == (8, 8) and (found[:4, :4] == 300).all() and (found[4:, 4:] == 7).all()
    assert set(np.unique(found)) == {0, 7, 300}
    half = labelled(tmp_path, np.full((4, 4), 5, np.uint8), "b.png").of("b.webp", Image.new("RGB", (4, 4)), PLAIN)
    assert (half == 5).all()


@pytest.mark.parametrize(
    ("name", "made", "said"),
    [
        ("a/1.jpg", None, "no mask for `a/1.jpg`"),
        ("a/0.jpg", np.zeros((4, 6), np.uint8), "is 6 x 4 pixels, its image 8 x 8"),
        ("a/0.jpg", np.zeros((8, 8, 3), np.uint8), "holds colours (RGB), no labels"),
        ("../0.jpg", None, "not below the images' folder"),
    ],
)
def test_a_mask_that_cannot_be_meant_is_one_line(tmp_path: Path, name: str, made: np.ndarray | None, said: str) -> None:
    folder = PixelLabels(tmp_path) if made is None else labelled(tmp_path, made)
    with pytest.raises(UserError) as error:
        folder.of(name, Image.new("RGB", (8, 8)), PLAIN)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_damaged_mask_and_a_table_of_names_that_is_none(tmp_path: Path) -> None:
    labelled(tmp_path, np.ones((8, 8), np.uint8))
    whole = (tmp_path / "a" / "0.png").read_bytes()
    (tmp_path / "a" / "0.png").write_bytes(whole[:40])
    with pytest.raises(UserError, match="not a readable PNG"):
        PixelLabels(tmp_path).of("a/0.png", Image.new("RGB", (8, 8)), PLAIN)
    (tmp_path / "names.json").write_text(json.dumps({"7": "sleeve"}))
    assert PixelLabels(tmp_path).names() == {7: "sleeve"}
    (tmp_path / "names.json").write_text("[7]")
    with pytest.raises(UserError, match="no table of labels"):
        PixelLabels(tmp_path).names()


def test_what_a_look_depends_on_is_the_masks_content(tmp_path: Path) -> None:
    labelled(tmp_path, np.ones((8, 8), np.uint8))
    before = told(tmp_path)
    assert told(None) == [] and told(tmp_path) == before
    labelled(tmp_path, np.zeros((8, 8), np.uint8))
    assert told(tmp_path) != before
