"""Dissection masks, their overlap with pixel labels, and the checks that need no labels; all against counts by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vitprune.see.pictures import checks, masks, reading
from vitprune.see.pictures.dissection import Counted


def test_a_fifth_of_an_image_s_pixels_is_above_its_own_80th_percentile() -> None:
    maps = torch.randn(5, 3, 7, 5, generator=torch.Generator().manual_seed(0))
    found = masks.image_masks(maps, (28, 20), 80)
    assert found.shape == (5, 3, 28, 20)
    assert ((found.sum((2, 3)) - 0.2 * 560).abs() <= 1).all()


def test_a_map_without_a_shape_has_an_empty_mask() -> None:
    flat = torch.full((1, 1, 3, 3), 0.7)
    assert not masks.image_masks(flat, (9, 9), 80).any()
    assert not masks.unit_masks(flat, (9, 9), torch.tensor([flat[0, 0, 0, 0]])).any()
    assert not masks.unit_scaled(flat).any()


def test_a_unit_s_threshold_is_one_for_all_images() -> None:
    maps = torch.randn(40, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    maps[3] -= 10
    upper = reading.Upper(40 * 16, 0.8, 2)
    for part in maps.split(7):
        upper.add(part.transpose(0, 1).flatten(1))
    found = masks.unit_masks(maps, (4, 4), upper.value())
    assert found.sum((0, 2, 3)).tolist() == [128, 128]  # a fifth of all, though of no single image
    assert not found[3].any()


def test_the_running_mean_is_the_mean_so_far() -> None:
    maps = torch.randn(5, 2, 3, 3, dtype=torch.float64)
    for b, mean in enumerate(masks.running_mean(maps)):
        torch.testing.assert_close(mean, maps[: b + 1].mean(0))


def test_a_map_is_scaled_by_its_own_range() -> None:
    assert masks.unit_scaled(torch.tensor([[[[-1.0, 0], [1, 3]]]])).flatten().tolist() == [0, 0.25, 0.5, 1]


def counted(mask: torch.Tensor, labels: np.ndarray) -> Counted:
    """Of masks [n, k, H, W], as maps of their own size above a half."""
    return Counted.of(mask.float(), labels, torch.full((mask.shape[1],), 0.5))


def test_two_masks_of_four_pixels_that_share_two_have_a_third() -> None:
    mask = torch.tensor([[1, 1, 1, 1, 0, 0]], dtype=torch.bool).view(1, 1, 1, 6)
    label = np.array([[0, 0, 1, 1, 1, 1]]).reshape(1, 1, 6)
    assert counted(mask, label).iou()[0, 1] == pytest.approx(1 / 3)


def test_overlap_in_portions_is_that_of_the_whole_and_counted_by_hand() -> None:
    generator = np.random.default_rng(0)
    found = torch.from_numpy(generator.random((6, 3, 5, 4)) < 0.4)
    labels = generator.integers(0, 5, (6, 5, 4))
    whole = counted(found, labels)
    parts = counted(found[:1], labels[:1]) + counted(found[1:], labels[1:])
    iou = whole.iou()
    assert (parts.iou() == iou).all() and whole.both.dtype == np.int64 and whole.labels.tolist() == [0, 1, 2, 3, 4]
    for k in range(3):
        for label in range(5):
            one, other = found[:, k].numpy(), labels == label
            assert iou[k, label] == pytest.approx((one & other).sum() / (one | other).sum())
    assert (counted(found[:, :1] & False, labels).iou() == 0).all()


def test_masks_on_the_object_are_told_from_masks_anywhere() -> None:
    generator = np.random.default_rng(0)
    what = np.zeros((40, 12, 12), bool)
    what[:, 3:8, 3:8] = True
    on = np.zeros_like(what)
    on[:, 4:7, 4:7] = True
    found = checks.on_object(on, what)
    assert found is not None and found.low > 1 and found.value == pytest.approx(144 / 25, rel=0.15)
    anywhere = generator.random(what.shape) < 0.2
    chance = checks.on_object(anywhere, what)
    assert chance is not None and chance.low < 1 < chance.high
    assert checks.on_object(on & False, what) is None


def test_deletion_by_hand() -> None:
    """A unit that is the sum of one corner: filling that corner takes all of it, a shifted corner what the two share."""
    images = torch.rand(8, 1, 6, 6) + 1
    mask = torch.zeros(8, 6, 6, dtype=torch.bool)
    mask[:, :2, :2] = True
    unit = lambda x: x[:, 0, :2, :2].sum((1, 2))  # noqa: E731
    fill = torch.tensor([0.0])
    found = checks.deletion(unit, images, mask, fill, draws=200)
    share = sum((2 - abs(y)) * (2 - abs(x)) for y in (-1, 0, 1) for x in (-1, 0, 1)) / 36 / 4
    np.testing.assert_allclose(found, unit(images) * (1 - share), rtol=0.12)
    assert (checks.deletion(lambda x: x[:, 0, 5, 5], images, mask, fill, draws=50) <= 0).all()
