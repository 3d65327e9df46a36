"""The numbers of the block plots against slow copies, in portions, with their errors and null bands."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest

from vitprune.see.pictures import blocks, tables


def made(seed: int = 0, images: int = 60, classes: int = 3, size: int = 6) -> tuple[blocks.Plan, np.ndarray]:
    generator = np.random.default_rng(seed)
    label = np.arange(images) % classes
    return blocks.Plan.of(label, classes, 20, seed), generator.random((images, classes, size)).astype(np.float32)


def test_class_means_and_errors_by_hand() -> None:
    plan, maps = made()
    found = blocks.Sums.of(plan, np.arange(60), maps).figure(blocks.heights)
    for c in range(3):
        own = maps[plan.label == c, c].mean(1).astype(np.float64)
        assert found.value[c] == pytest.approx(own.mean())
        of_group = np.array([own[np.arange(len(own)) % 10 != g].mean() for g in range(10)])
        assert found.error[c] == pytest.approx(np.sqrt(0.9 * ((of_group - of_group.mean()) ** 2).sum()))
        assert found.error[c] == pytest.approx(own.std(ddof=1) / len(own) ** 0.5, rel=0.7)
        null = [maps[plan.permuted[r] == c, c].mean() for r in range(20)]
        assert (found.low[c], found.high[c]) == pytest.approx(tuple(np.percentile(null, [2.5, 97.5])))


def test_sums_in_portions_are_those_of_the_whole() -> None:
    plan, maps = made()
    whole = blocks.Sums.of(plan, np.arange(60), maps)
    order = np.random.default_rng(1).permutation(60)
    parts = [blocks.Sums.of(plan, order[i : i + 7], maps[order[i : i + 7]]) for i in range(0, 60, 7)]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    for name in ("own", "null", "count", "null_count"):
        np.testing.assert_allclose(getattr(total, name), getattr(whole, name), rtol=1e-12)


def test_distances_by_hand() -> None:
    found = blocks.distances(np.array([[1.0, 0], [0, 1], [1, 0]]))
    assert found[0, 1] == pytest.approx(2**0.5) and found[0, 2] == 0
    assert (found == found.T).all() and not found.diagonal().any()
    assert blocks.mean_distance(np.array([[1.0, 0], [0, 1]])) == pytest.approx([2**0.5])
    large = np.random.default_rng(0).random((70, 4))
    np.testing.assert_allclose(blocks.distances(large)[:3, :3], blocks.distances(large[:3]))


def test_distances_lie_above_the_null_band_only_where_the_classes_differ() -> None:
    """Every image holds the map of its class, or every image the same plus noise."""
    plan, noise = made(images=120)
    alike = blocks.Sums.of(plan, np.arange(120), noise).figure(blocks.mean_distance)
    assert alike.low[0] <= alike.value[0] <= alike.high[0]
    shapes = np.eye(3, 6) * 2
    unlike = noise + shapes[plan.label][:, None].astype(np.float32)
    found = blocks.Sums.of(plan, np.arange(120), unlike).figure(blocks.mean_distance)
    assert found.value[0] > found.high[0] + 1


def test_a_class_without_images_has_no_figure() -> None:
    plan = blocks.Plan.of(np.zeros(20, np.int64), 2, 3)
    found = blocks.Sums.of(plan, np.arange(20), np.ones((20, 2, 4)))
    assert np.isnan(found.figure(blocks.heights).value).tolist() == [False, True]
    assert np.isnan(found.figure(blocks.mean_distance).value).all()


def test_maps_of_a_class_s_units_by_hand() -> None:
    maps = np.array([[[0.0, 2], [5, 5], [4, 0]]])
    rows = np.array([[0], [1], [2]])
    assert blocks.own_maps(maps, rows, True)[0].tolist() == [[0, 1], [0, 0], [1, 0]]
    assert blocks.own_maps(maps, rows, False)[0].tolist() == maps[0].tolist()
    assert blocks.own_maps(maps, np.array([[0, 2]]), True)[0].tolist() == [[0.5, 0.5]]


def test_the_running_mean_over_blocks() -> None:
    means = np.random.default_rng(0).random((4, 3, 5))
    found = blocks.running(list(means))
    for b in range(4):
        np.testing.assert_allclose(found[b], means[: b + 1].mean(0))


def test_blocks_of_top_units_beside_random_heads() -> None:
    null = np.random.default_rng(0).integers(0, 4, (30, 10))
    found = blocks.block_counts(np.array([3] * 9 + [2]), 4, null)
    assert found.value.tolist() == [0, 0, 1, 9] and found.value[3] > found.high[3]
    assert found.error[3] == pytest.approx((10 * 0.9 * 0.1) ** 0.5)
    assert np.isnan(blocks.block_counts(np.array([1]), 2, np.zeros((0, 1), int)).low).all()


def test_the_most_active_unit_counted() -> None:
    label = np.array([0, 1] * 20)
    plan = blocks.Plan.of(label, 2, 10)
    pooled = np.zeros((40, 5))
    pooled[label == 0, 1] = pooled[label == 1, 3] = 1
    top = np.array([[1], [4]])
    whole = blocks.MostActive.of(plan, np.arange(40), pooled, top)
    parts = blocks.MostActive.of(plan, np.arange(9), pooled[:9], top) + blocks.MostActive.of(
        plan, np.arange(9, 40), pooled[9:], top
    )
    assert whole.units.tolist() == parts.units.tolist() == [0, 20, 0, 20, 0]
    assert (whole.hits, whole.images) == (parts.hits, parts.images) == (20, 40)
    share = whole.share()
    assert share.value[0] == 0.5 > share.high[0]


def test_csv_has_every_figure_and_nothing_where_there_is_none() -> None:
    plan, maps = made()
    sums = blocks.Sums.of(plan, np.arange(60), maps)
    names = ["a,b", "=1+1", 'say "x"']
    found = list(csv.reader(io.StringIO(tables.pairs(names, [sums.figure(blocks.distances)] * 2))))
    assert found[0] == ["block", "class", "other", *tables.FIGURE] and len(found) == 1 + 2 * 3
    assert found[1][:3] == ["0", "a,b", "'=1+1"]
    assert float(found[1][3]) == pytest.approx(sums.figure(blocks.distances).value[0, 1], rel=1e-5)
    empty = tables.by_name("block", ["0"], blocks.block_counts(np.array([0]), 1, np.zeros((0, 1), int)))
    assert empty.splitlines()[1] == "0,1,0,,"
    per_block = tables.by_block("class", names, [sums.figure(blocks.heights)])
    assert per_block.splitlines()[0] == "block,class,value,standard_error,null_low,null_high"
