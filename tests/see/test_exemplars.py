"""Exemplars against sorting everything; the same lists whatever the batches; units whose function is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vitprune.see import exemplars, firing
from vitprune.see.exemplars import NONE, Top
from vitprune.see.histogram import Histogram
from vitprune.see.seen import Asked, Seen

PREFIX, PATCHES, UNITS, K = 2, 6, 9, 5
N = 300


def activations(seed: int = 0) -> torch.Tensor:
    """[N, T, H]: coarse values, so that many are equal, and far larger ones at the tokens that are no patches."""
    generator = torch.Generator().manual_seed(seed)
    made = (torch.randn(N, PREFIX + PATCHES, UNITS, generator=generator) * 4).round() / 4
    made[:, :PREFIX] += 100
    made[:, :, 0] = 0.25  # never changes
    made[:, :, 1] *= 1e-6
    return made


def looked(hidden: torch.Tensor, ids: np.ndarray, labels: np.ndarray, sizes: list[int]) -> Seen:
    asked = Asked(PREFIX, True, K, exemplars.draws(N, UNITS, 4 + K, [0, 0]))
    found, at = Seen.nothing(asked), 0
    for size in sizes:
        found.look(hidden[at : at + size], at, ids[at : at + size], labels[at : at + size])
        at += size
    return found


@pytest.fixture(scope="module")
def whole() -> tuple[torch.Tensor, np.ndarray, np.ndarray, Seen]:
    hidden, ids = activations(), np.random.default_rng(1).permutation(1000)[:N].astype(np.int64)
    labels = np.sort(np.arange(N) % 3)
    return hidden, ids, labels, looked(hidden, ids, labels, [N])


def test_the_lists_are_those_of_sorting_everything(whole) -> None:
    hidden, ids, _, found = whole
    patches = hidden[:, PREFIX:].double().numpy()
    for unit in range(UNITS):
        pooled = patches[:, :, unit].max(1)
        order = sorted(range(N), key=lambda i: (-pooled[i], ids[i]))[:K]
        assert found.top.images[unit].tolist() == ids[order].tolist()
        assert found.top.values[unit].tolist() == pooled[order].astype(np.float32).tolist()
        tokens = [PREFIX + int(np.flatnonzero(patches[i, :, unit] == pooled[i])[0]) for i in order]
        assert found.top.tokens[unit].tolist() == tokens


@pytest.mark.parametrize("sizes", [[1] * N, [64, 64, 64, 64, 44], [7, 293]])
def test_the_same_lists_and_counts_whatever_the_batches(whole, sizes: list[int]) -> None:
    hidden, ids, labels, found = whole
    other = looked(hidden, ids, labels, sizes)
    for name, column in found.columns().items():
        if name.startswith(("sums", "squares")):
            np.testing.assert_allclose(other.columns()[name], column, rtol=1e-12)
        else:
            np.testing.assert_array_equal(other.columns()[name], column, name)


def test_parts_are_merged_to_the_whole(whole) -> None:
    hidden, ids, labels, found = whole
    merged = Seen.nothing(found.asked)
    for start, stop in ((0, 90), (90, 200), (200, N)):
        part = Seen.nothing(found.asked)
        part.look(hidden[start:stop], start, ids[start:stop], labels[start:stop])
        merged.merge(part.columns())
    for name in ("values", "images", "tokens", "drawn", "drawn_tokens", "histogram.counts", "counts", "labels"):
        np.testing.assert_array_equal(merged.columns()[name], found.columns()[name], name)
    for read in ("class", "patches"):
        for label, mean in firing.means_of(found, read).items():
            np.testing.assert_allclose(firing.means_of(merged, read)[label], mean, rtol=1e-6)


def test_images_at_random_are_not_the_strongest(whole) -> None:
    hidden, ids, _, found = whole
    drawn = Top(found.drawn, ids[found.asked.drawn].astype(np.int32), found.drawn_tokens)
    beside = exemplars.beside(found.top, drawn, 4)
    patches, place = hidden[:, PREFIX:].numpy(), {int(image): i for i, image in enumerate(ids)}
    for unit in range(UNITS):
        mine = beside.images[unit].tolist()
        assert len(set(mine)) == 4 and not set(mine) & set(found.top.images[unit].tolist())
        assert [patches[place[i], :, unit].max() for i in mine] == beside.values[unit].tolist()
    few = exemplars.beside(found.top, found.top, 2)
    assert (few.images == NONE).all() and np.isnan(few.values).all()


def test_quantiles_are_within_a_bin_of_numpys() -> None:
    generator = torch.Generator().manual_seed(3)
    values = torch.randn(5000, 30, generator=generator) * torch.logspace(-6, 6, 30) + torch.logspace(-3, 8, 30)
    values[:, 3], values[:, 5] = 7.5, values[:, 5].relu()
    found = Histogram.of(values[:700]).joined(Histogram.of(values[700:703])).joined(Histogram.of(values[703:]))
    np.testing.assert_array_equal(found.counts, Histogram.of(values).counts)
    assert (found.counts.sum(1) == 5000).all() and ((found.high - found.low) / found.width > 511)[[0, 1, 2, 4]].all()
    for q in (0.01, 0.5, 0.99, 0.9999):
        exact = np.quantile(values.double().numpy(), q, axis=0)
        assert (np.abs(found.quantile(q) - exact) <= found.width).all()


def test_classes_that_a_unit_fires_for_against_means_of_everything(whole) -> None:
    hidden, _, labels, found = whole
    for read, values in (("class", hidden[:, 0]), ("patches", hidden[:, PREFIX:].mean(1))):
        exact = values.double().numpy()
        means = np.stack([exact[labels == c].mean(0) for c in range(3)])
        fires = firing.fires(found, read)
        moves = ~np.isnan(fires.between)
        assert not moves[0] or read == "class"
        assert (fires.classes[moves, 0] == means.argmax(0)[moves]).all()
        total = ((exact - exact.mean(0)) ** 2).sum(0)
        apart = sum((labels == c).sum() * (means[c] - exact.mean(0)) ** 2 for c in range(3))
        np.testing.assert_allclose(fires.between[moves], (apart / np.where(total > 0, total, 1))[moves], rtol=1e-4)
        assert fires.chance == pytest.approx(2 / (N - 1))


def test_of_units_whose_sign_is_nobodys_choice_the_size_is_looked_at(whole) -> None:
    """Of a gated unit and of a direction of attention: the same whatever sign each was given, and the lists are of sizes."""
    hidden, ids, labels, _ = whole
    signs = torch.tensor([1.0, -1.0]).repeat(UNITS)[:UNITS]
    asked = Asked(PREFIX, True, K, exemplars.draws(N, UNITS, 4 + K, [0, 0]), np.arange(UNITS), "all", True)
    found = []
    for given in (hidden, hidden * signs):
        one = Seen.nothing(asked)
        one.look(given, 0, ids, labels)
        found.append(one)
    for name, column in found[0].columns().items():
        if not name.startswith("sums"):
            np.testing.assert_array_equal(found[1].columns()[name], column, name)
    for read in ("class", "patches"):
        assert (firing.fires(found[0], read).classes == firing.fires(found[1], read).classes).all()
    sizes = hidden.abs().double().numpy()
    for unit in range(UNITS):
        pooled = sizes[:, PREFIX:, unit].max(1)
        order = sorted(range(N), key=lambda i: (-pooled[i], ids[i]))[:K]
        assert found[0].top.images[unit].tolist() == ids[order].tolist()
    np.testing.assert_allclose(found[0].sample[0], sizes.mean(1), rtol=1e-5)
