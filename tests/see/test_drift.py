"""Drift, stand-ins and ranks against numpy and by hand."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats

from vitprune.runs.seeing.parts import drift as part
from vitprune.see import drift
from vitprune.see.drift import Pairs


def test_correlations_are_numpys_and_exactly_one_where_nothing_changed() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 6, generator=generator) + 5
    y = x * 2 + torch.randn(400, 6, generator=generator)
    y[:, 0], y[:, 1], x[:, 2] = x[:, 0], -x[:, 1], 3.0
    found = Pairs.of(x[:150], y[:150]).plus(Pairs.of(x[150:], y[150:])).correlation
    assert found[0] == 1 and found[1] == pytest.approx(-1) and np.isnan(found[2])
    for j in (3, 4, 5):
        assert found[j] == pytest.approx(np.corrcoef(x[:, j].double(), y[:, j].double())[0, 1], rel=1e-6)


def test_what_a_unit_writes_turns_by_its_cosine() -> None:
    before, after = (
        torch.tensor([[1.0, 0], [1, 1], [0, 0], [0.1, 0.3]]),
        torch.tensor([[0.0, 2], [2, 2], [1, 1], [0.1, 0.3]]),
    )
    found = drift.turned(before, after)
    assert found[0] == 0 and found[1] == pytest.approx(1) and np.isnan(found[2]) and found[3] == 1


def test_stand_ins_against_every_pair() -> None:
    generator = np.random.default_rng(0)
    hidden = generator.normal(size=(500, 8))
    hidden[:, 5] = -2 * hidden[:, 1] + 0.1 * hidden[:, 5]
    hidden[:, 6] = 4.0  # never changes
    kept = np.array([1, 1, 0, 1, 0, 0, 0, 1], bool)
    found = drift.twins(np.cov(hidden.T), kept)
    assert found.removed.tolist() == [2, 4, 5, 6]
    for unit, twin, value in zip(found.removed, found.twin, found.correlation, strict=True):
        if unit == 6:
            assert twin == -1 and np.isnan(value)
            continue
        every = {j: np.corrcoef(hidden[:, unit], hidden[:, j])[0, 1] for j in np.flatnonzero(kept)}
        best = max(every, key=lambda j: abs(every[j]))
        assert twin == best and value == pytest.approx(every[best])
    assert found.twin[2] == 1 and found.correlation[2] < -0.99
    assert len(drift.twins(np.cov(hidden.T), np.ones(8, bool)).removed) == 0


def test_the_best_of_unrelated_units_is_about_what_is_said() -> None:
    generator = np.random.default_rng(0)
    found = []
    for _ in range(20):
        hidden = generator.normal(size=(400, 101))
        kept = np.ones(101, bool)
        kept[0] = False
        found.append(abs(drift.twins(np.cov(hidden.T), kept).correlation[0]))
    assert 0.75 < np.mean(found) / drift.by_chance(100, 400) < 1.1


def test_ranks_and_their_permutations() -> None:
    x, y = np.array([1.0, 2, 2, 4, 5, 6, 7, 8]), np.array([2.0, 1, 3, 3, 5, 9, 8, 12])
    rho, p = drift.rank_correlation(x, y, 0)
    assert rho == pytest.approx(stats.spearmanr(x, y).statistic) and p < 0.01
    unrelated = drift.rank_correlation(np.arange(30.0), np.random.default_rng(4).permutation(30) * 1.0, 0)
    assert unrelated[1] > 0.05
    assert drift.rank_correlation(np.ones(5), np.arange(5.0), 0) is None
    assert drift.rank_correlation(x, y, 0) == drift.rank_correlation(x, y, 0)


def test_the_stand_ins_of_all_class_sets_need_one_blocks_covariance_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    covariances = [np.cov(generator.normal(size=(6, 50))) for _ in range(3)]
    read, asked = list[int](), list[int]()

    class Totals:
        def of(self, kind: str, position: int) -> int:
            read.append(position)
            return position

    def totals(*_: object) -> Totals:
        asked.append(1)
        return Totals()

    monkeypatch.setattr(part.sums, "totals", totals)
    found = [SimpleNamespace(covariance=torch.from_numpy(one)) for one in covariances]
    monkeypatch.setattr(part.inside_moments, "of_sums", lambda position, _: [found[position]])
    run = SimpleNamespace(sites=[None] * 3, batching=SimpleNamespace(batch=4))
    some, every = [np.arange(6) % 3 > 0] * 3, [np.ones(6, bool)] * 3
    kept = {"a": some, "b": every, "c": [~mask for mask in some]}
    made = part._all_twins(SimpleNamespace(run=run, kept=kept, index=np.arange(4)))  # type: ignore[arg-type]
    assert read == [0, 1, 2] and asked == [1] and made.keys() == {"a", "c"}
    for group, blocks in made.items():
        for own, covariance, mask in zip(blocks, covariances, kept[group], strict=True):
            np.testing.assert_array_equal(own.twin, drift.twins(covariance, mask).twin)
    assert part._all_twins(SimpleNamespace(run=run, kept={None: every}, index=np.arange(4))) == {}  # type: ignore[arg-type]
    assert asked == [1]
