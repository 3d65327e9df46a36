"""The upper end of a paired loss: Tango's score interval, against a slow replica and by its coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import multinomial

from vitprune.exam import paired

Z = 1.6448536269514722
CASES = [
    (0, 0, 1),
    (0, 0, 48),
    (0, 0, 8000),
    (1, 0, 44),
    (0, 1, 44),
    (5, 3, 100),
    (3, 9, 100),
    (60, 10, 300),
    (84, 44, 8000),
]


def replica(lost: int, gained: int, n: int) -> float:
    """The largest loss whose score test does not refuse: the likeliest shares by trying them, losses by halving."""

    def likelihood(q: np.ndarray, loss: float) -> np.ndarray:
        parts = ((lost, q + loss), (gained, q), (n - lost - gained, 1 - loss - 2 * q))
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.sum([count * np.log(share) if count else 0 * q for count, share in parts], 0)

    def refused(loss: float) -> bool:
        low, high = max(0.0, -loss), (1 - loss) / 2
        for _ in range(12):  # a finer and finer look around the likeliest
            q = np.linspace(low, high, 101)
            best = int(np.nan_to_num(likelihood(q, loss), nan=-np.inf).argmax())
            low, high = q[max(0, best - 1)], q[min(100, best + 1)]
        variance = (2 * q[best] + loss - loss * loss) / n
        return bool(((lost - gained) / n - loss) < -Z * math.sqrt(max(variance, 0.0)))

    low, high = (lost - gained) / n, 1.0
    for _ in range(45):
        middle = (low + high) / 2
        low, high = (low, middle) if refused(middle) else (middle, high)
    return low


@pytest.mark.parametrize(("lost", "gained", "n"), CASES)
def test_the_bound_by_hand(lost: int, gained: int, n: int) -> None:
    found = paired.upper(lost, gained, n)
    assert found == pytest.approx(replica(lost, gained, n), abs=2e-6)
    assert (lost - gained) / n < found <= 1


@pytest.mark.parametrize("n", [1, 9, 100, 8000])
def test_no_differing_image_proves_no_equality(n: int) -> None:
    assert paired.upper(0, 0, n) == pytest.approx(Z * Z / (n + Z * Z), abs=1e-9)
    assert paired.upper(n, 0, n) == 1.0 and paired.upper(0, n, n) < 1


def test_with_many_images_it_is_the_normal_bound() -> None:
    b, c, n = 9000, 7000, 1_000_000
    plain = (b - c) / n + Z * math.sqrt((b + c - (b - c) ** 2 / n) / n**2)
    assert paired.upper(b, c, n) == pytest.approx(plain, abs=1e-6)


@pytest.mark.parametrize(("lost", "gained"), [(0.01, 0.0), (0.06, 0.03), (0.2, 0.05), (0.05, 0.05)])
def test_it_covers_the_true_loss(lost: float, gained: float) -> None:
    """In 95 % of all samples, about, by their exact probabilities."""
    n, covered = 60, 0.0
    for b in range(n + 1):
        for c in range(min(n - b, 20) + 1):
            p = float(multinomial.pmf([b, c, n - b - c], n, [lost, gained, 1 - lost - gained]))
            covered += p if p > 1e-9 and paired.upper(b, c, n) >= lost - gained else 0.0
    assert 0.93 <= covered <= 1


def test_more_lost_is_a_higher_bound() -> None:
    assert np.all(np.diff([paired.upper(b, 3, 200) for b in range(0, 190, 10)]) > 0)
    assert np.all(np.diff([paired.upper(20, c, 200) for c in range(0, 100, 10)]) < 0)
