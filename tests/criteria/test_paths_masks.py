"""Paths, frequencies, utilisation and masks: plain counting, done again by hand."""

from __future__ import annotations

import json
from itertools import permutations

import numpy as np
import pytest
import reference
import torch
from small import plan_of, scores_of
from torch import Tensor

from vitprune.core.errors import UserError
from vitprune.criteria import paths
from vitprune.criteria.paths import Gathered, PathSet
from vitprune.criteria.scores import to_scores
from vitprune.images.split import Split
from vitprune.model import families
from vitprune.pruning import masks

WIDTHS, CLASSES, T = (6, 9), 4, 3
NAMES = ["one", "two"]
LABELS = np.array([0, 2, 0, 1, 2, 0, 2])  # class 3 has no image


def table(seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(len(LABELS), width, generator=generator, dtype=torch.float64) for width in WIDTHS]


def gather(rows: list[int], scores: list[Tensor] | None = None) -> Gathered:
    scores = scores or table()
    labels = torch.tensor(LABELS[rows])
    return Gathered.of([block[rows] for block in scores], labels, np.array(rows) + 100, T)


ALL = list(range(len(LABELS)))


def by_hand() -> list[list[list[int]]]:
    """The T best units of every image and block, best first."""
    return [
        [
            sorted(range(width), key=lambda j: -float(block[row, j]))[:T]
            for width, block in zip(WIDTHS, table(), strict=True)
        ]
        for row in ALL
    ]


def test_columns_are_the_t_best_in_descending_order():
    found = gather(ALL).paths
    assert found.units.dtype == np.int32 and found.scores.dtype == np.float32
    assert found.units.tolist() == by_hand()
    assert found.image.tolist() == [row + 100 for row in ALL] and found.label.tolist() == LABELS.tolist()
    for row in ALL:
        for i, block in enumerate(table()):
            expected = [float(block[row, j]) for j in by_hand()[row][i]]
            np.testing.assert_allclose(found.scores[row, i], expected, rtol=1e-6)


def test_counts_sums_and_frequencies():
    gathered = gather(ALL)
    assert gathered.classes.tolist() == [0, 1, 2] and gathered.images.tolist() == [3, 1, 3]
    expected = reference.frequencies(by_hand(), LABELS, WIDTHS, CLASSES)
    scores = to_scores(gathered, "some", NAMES, CLASSES)
    assert (scores.criterion, scores.images, scores.classes) == ("some", len(LABELS), CLASSES)
    for i, block in enumerate(table()):
        np.testing.assert_allclose(np.asarray(gathered.counts[i]), (expected[i] * [[3], [1], [3], [0]])[:3], rtol=1e-12)
        np.testing.assert_allclose(np.asarray(scores.rows[i]), expected[i], rtol=1e-6)
        for c in range(CLASSES):
            own = block.numpy()[c == LABELS]
            if len(own):
                np.testing.assert_allclose(np.asarray(gathered.sums[i])[c], own.sum(0), rtol=1e-12, atol=1e-12)
            mean = own.mean(0) if len(own) else np.zeros(WIDTHS[i])
            np.testing.assert_allclose(np.asarray(list((scores.ties or {}).values())[i])[c], mean, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_merging_is_independent_of_batches_and_their_order(order):
    parts = [gather([0, 1, 2]), gather([3]), gather([4, 5, 6])]
    whole, merged = gather(ALL), paths.merge([parts[i] for i in order])
    assert np.array_equal(merged.images, whole.images)
    for i in range(len(WIDTHS)):
        assert np.array_equal(merged.counts[i], whole.counts[i])
        np.testing.assert_allclose(np.asarray(merged.sums[i]), np.asarray(whole.sums[i]), rtol=1e-12, atol=1e-13)
    assert all(
        torch.equal(a, b)
        for a, b in zip(
            to_scores(merged, "s", NAMES, CLASSES).rows,
            to_scores(whole, "s", NAMES, CLASSES).rows,
            strict=True,
        )
    )
    rows = [row for i in order for row in ([0, 1, 2], [3], [4, 5, 6])[i]]
    for column in ("image", "label", "units", "scores"):
        assert np.array_equal(getattr(merged.paths, column), getattr(whole.paths, column)[rows]), column


def test_merging_does_not_change_its_parts():
    parts = [gather([0, 1, 2]), gather([3, 4])]
    kept = [np.array(part.counts[0]) for part in parts]
    first = paths.merge(parts)
    again = paths.merge(parts)
    assert np.array_equal(first.counts[0], again.counts[0]) and np.array_equal(first.images, again.images)
    assert all(np.array_equal(np.asarray(part.counts[0]), old) for part, old in zip(parts, kept, strict=True))


def test_bytes_round_trip(tmp_path):
    gathered = gather(ALL)
    file = tmp_path / "paths.safetensors"
    file.write_bytes(gathered.to_bytes())
    back = Gathered.from_file(str(file))
    assert gathered.to_bytes() == back.to_bytes() == gather(ALL).to_bytes()
    assert np.array_equal(back.images, gathered.images)
    for i in range(len(WIDTHS)):
        assert np.array_equal(np.asarray(back.counts[i]), np.asarray(gathered.counts[i]))
        assert np.array_equal(np.asarray(back.sums[i]), np.asarray(gathered.sums[i]))
    for column in ("image", "label", "units", "scores"):
        left, right = getattr(back.paths, column), getattr(gathered.paths, column)
        assert left.dtype == right.dtype and np.array_equal(left, right), column


def test_many_blocks_come_back_in_order(tmp_path):
    """Eleven blocks: an order by name would put block 10 before block 2."""
    scores = [torch.eye(20, dtype=torch.float64)[i : i + 1] for i in range(11)]
    gathered = Gathered.of(scores, torch.tensor([0]), np.array([0]), 1)
    file = tmp_path / "paths.safetensors"
    file.write_bytes(gathered.to_bytes())
    assert [int(np.asarray(block).argmax()) for block in Gathered.from_file(str(file)).counts] == list(range(11))


def test_the_authors_mode_per_rank():
    """Ranks one by one: a unit may take two, ties go to the smallest index, a class without images is marked."""
    units = np.array([(5, 7), (6, 5), (5, 8), (9, 5), (4, 5), (3, 2), (2, 3)], np.int32)[:, None]
    labels = np.array([0, 0, 0, 0, 0, 2, 2])
    columns = PathSet(np.arange(7), labels, units, np.zeros(units.shape, np.float32))
    assert paths.mode_per_rank(columns, [0, 1, 2], [10]).tolist() == [[[5, 5]], [[-1, -1]], [[2, 2]]]
    found = gather(ALL)
    made = paths.mode_per_rank(found.paths, range(CLASSES), WIDTHS)
    for c in (0, 1, 2):
        for i, rank in np.ndindex(len(WIDTHS), T):
            own = [path[i][rank] for path, label in zip(by_hand(), LABELS, strict=True) if label == c]
            assert made[c, i, rank] == min(own, key=lambda u: (-own.count(u), u))


# --- masks


@pytest.mark.parametrize(
    ("keep", "n", "round_to", "expected"),
    [
        (3, 10, None, 3), (10, 10, None, 10), (1, 10, None, 1),
        (0.35, 10, None, 3), (0.999, 10, None, 9), (1.0, 10, None, 10), (0.1, 10, None, 1),
        (0.29, 100, None, 29), (0.57, 100, None, 57), (0.3, 10, None, 3),  # 0.29 * 100 is 28.999… in floats
        (1.0, 10, 4, 10), (100, 384, 64, 64), (130, 384, 64, 128), (128, 384, 64, 128), (0.5, 384, 64, 192),
        (5, 384, 64, 64), (0.01, 384, 64, 64), (5, 48, 64, 48),
    ],
)  # fmt: skip
def test_width(keep, n, round_to, expected):
    got = masks.width(keep, n, round_to)
    assert got == expected and isinstance(got, int)


def test_a_count_and_a_ratio_are_told_apart_by_type():
    assert masks.width(1, 10) == 1 and masks.width(1.0, 10) == 10


@pytest.mark.parametrize("n", [7, 31, 96, 100, 384])
def test_a_ratio_is_rounded_down_and_never_above_the_budget(n):
    for hundredths in range(1, 101):
        exact = hundredths * n // 100
        if exact:
            assert masks.width(hundredths / 100, n) == exact


@pytest.mark.parametrize(
    "keep", [0, -1, 11, 0.0, -0.5, 1.01, 2.0, 0.05, float("nan"), float("inf"), True, False, "0.5", None]
)
def test_budgets_out_of_range_are_refused(keep):
    with pytest.raises(UserError, match="keep"):
        masks.width(keep, 10)


def test_t_must_fit_every_block(tiny_vit):
    sites = families.ffn_sites(tiny_vit(depth=2))
    masks.check_t(32, sites)
    masks.check_t(1, sites)
    for t in (33, 0, -1):
        with pytest.raises(UserError, match="t: "):
            masks.check_t(t, sites)
    narrow = type(sites[0])(**{name: getattr(sites[1], name) for name in ("block", "fc1", "act", "fc2")}, size=5)
    with pytest.raises(UserError, match="5"):
        masks.check_t(6, [sites[0], narrow])


def test_the_best_units_stay():
    scores = scores_of("s", [torch.tensor([[0.1, 0.9, 0.5, 0.7]]), torch.tensor([[4.0, 3, 2, 1, 0, -1]])])
    mask = masks.build(scores, 2)
    assert [block.tolist() for block in mask.masks] == [[False, True, False, True], [True, True] + [False] * 4]
    assert mask.masks[0].dtype == torch.bool
    assert list(masks.build(scores, 0.5).widths.values()) == [2, 3]
    assert masks.build(scores, 1.0).kept == 1 and list(masks.build(scores, 1.0).widths.values()) == [4, 6]
    assert list(masks.build(scores, 3, round_to=2).widths.values()) == [2, 2]
    with pytest.raises(UserError):
        masks.build(scores, 5)


def test_ties_go_to_the_larger_sum_then_to_the_smaller_index():
    score = torch.tensor([[0.5, 0.5, 0.0, 0.5, 0.0, 0.0, 0.0]])
    tie = torch.tensor([[0.1, 0.3, -2.0, 0.1, -1.0, -1.0, 7.0]])
    order = [1, 0, 3, 6, 4, 5, 2]  # 0 before 3 and 4 before 5 by index; frequency 0 by its own sum, not by index
    for keep in range(1, 8):
        kept = masks.build(scores_of("s", [score], ties=[tie]), keep).masks[0]
        assert set(torch.nonzero(kept).flatten().tolist()) == set(order[:keep]), keep
    plain = masks.build(scores_of("s", [score]), 5).masks[0]
    assert plain.tolist() == [True, True, True, True, True, False, False]
    wide = torch.zeros(1, 500)
    assert torch.nonzero(masks.build(scores_of("s", [wide], ties=[wide]), 77).masks[0]).flatten().tolist() == list(
        range(77)
    )


def test_classes_are_averaged():
    score = torch.tensor([[1.0, 0.0, 0.6, 0.0], [0.0, 0.9, 0.6, 0.0], [0.0, 0.0, 0.0, 1.0]])
    scores = scores_of("s", [score])

    def kept(classes, keep=1):
        return torch.nonzero(masks.build(scores, keep, classes=classes).masks[0]).flatten().tolist()

    assert kept([0]) == [0] and kept([1]) == [1] and kept([2]) == [3]
    assert kept([0, 1]) == [2]  # 0.6 on average beats 0.5 and 0.45; the best of each class alone would not say so
    assert kept(None, 2) == kept([0, 1, 2], 2) == [2, 0] or kept(None, 2) == [0, 2]
    assert masks.build(scores, 1, classes=[2, 0]).classes in ((2, 0), (0, 2))
    with pytest.raises(UserError, match="class"):
        masks.build(scores, 1, classes=[])


def test_each_class_weighs_the_same_however_many_images_it_has():
    """Nine images of class 0 and one of class 1: frequencies are averaged, not counts."""
    scores = torch.tensor([[3.0, 2, 1]] * 4 + [[2.0, 3, 1]] * 5 + [[1.0, 2, 3]])
    labels = torch.tensor([0] * 9 + [1])
    found = to_scores(Gathered.of([scores], labels, np.arange(10), 1), "s", ["a"], 2)
    np.testing.assert_allclose(np.asarray(found.rows[0]), [[4 / 9, 5 / 9, 0], [0, 0, 1]], rtol=1e-6)
    assert masks.build(found, 1).masks[0].tolist() == [False, False, True]


def test_ties_of_averages_are_not_decided_by_rounding():
    """The same five frequencies in another order per unit: the averages are equal, so the tie rule decides."""
    frequency = [0.1, 0.7, 1 / 3, 0.9, 0.3]
    columns = list(permutations(frequency))[:60]
    score = torch.tensor(columns, dtype=torch.float32).T.contiguous()
    tie = torch.arange(60.0).flip(0).repeat(5, 1)
    for keep in (1, 17, 40):
        kept = masks.build(scores_of("s", [score], ties=[-tie]), keep).masks[0]
        assert torch.nonzero(kept).flatten().tolist() == list(range(60 - keep, 60))


def test_random_tables_against_plain_sorting():
    generator = torch.Generator().manual_seed(3)
    for _ in range(20):
        score = torch.randint(0, 4, (3, 25), generator=generator) / 4
        tie = torch.randint(-3, 3, (3, 25), generator=generator) / 2
        scores = scores_of("s", [score], ties=[tie])
        for keep in (1, 6, 24):
            expected = reference.best(score.double().mean(0).tolist(), tie.double().mean(0).tolist(), keep)
            assert masks.build(scores, keep).masks[0].tolist() == expected
            rows = masks.per_class(scores, keep)[0]
            assert rows.dtype == torch.bool and rows.sum(1).tolist() == [keep] * 3
            for c in range(3):
                assert rows[c].tolist() == reference.best(score[c].tolist(), tie[c].tolist(), keep)


def test_per_class_equals_the_mask_of_each_class_alone():
    scores = to_scores(gather(ALL), "s", NAMES, CLASSES)
    rows = masks.per_class(scores, 4)
    assert [tuple(block.shape) for block in rows] == [(CLASSES, width) for width in WIDTHS]
    for c in range(CLASSES):
        alone = masks.build(scores, 4, classes=[c])
        assert all(torch.equal(block[c], own) for block, own in zip(rows, alone.masks, strict=True))


def test_a_class_free_table_serves_any_class():
    scores = scores_of("random", [torch.tensor([[0.3, 0.1, 0.2]])])
    assert scores.classes == 1
    for classes in (None, [0], [2], [1, 2]):
        assert masks.build(scores, 2, classes=classes).masks[0].tolist() == [True, False, True]


# --- records


def test_a_mask_keeps_something_in_every_block():
    with pytest.raises(ValueError, match="keeps no unit"):
        plan_of([torch.tensor([True, False]), torch.tensor([False, False])])
    mask = plan_of([torch.tensor([True, False]), torch.tensor([True, True, False, True])])
    assert list(mask.widths.values()) == [1, 3] and mask.kept == pytest.approx(4 / 6)


def test_a_split_never_overlaps():
    Split(0, 0.5, np.array([3, 1]), np.array([0, 2]))
    for probe, test in (([0, 1], [1, 2]), ([5], [5]), ([0, 1, 2], [3, 0])):
        with pytest.raises(ValueError, match="share"):
            Split(0, 0.5, np.array(probe), np.array(test))


def test_path_set_is_a_plain_record():
    empty = PathSet(
        np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 2, 3), np.int32), np.zeros((0, 2, 3), np.float32)
    )
    assert empty.units.shape == (0, 2, 3)


def test_what_was_gathered_is_the_same_bytes_in_every_process() -> None:
    """safetensors writes several keys of metadata in an order that is another in every process."""
    made = gather(ALL)
    head = made.to_bytes()
    size = int.from_bytes(head[:8], "little")
    assert len(json.loads(head[8 : 8 + size])["__metadata__"]) == 1
