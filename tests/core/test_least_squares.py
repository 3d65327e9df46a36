"""Gram matrices in strips against a plain product in float64, whole and packed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vitprune.core import least_squares
from vitprune.core.least_squares import SecondMoments, Stream


@pytest.mark.parametrize("n", [1, 2, 127, 128, 129, 256, 300])
def test_a_packed_matrix_is_the_lower_half_in_strips(n: int) -> None:
    matrix = torch.randn(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
    matrix = matrix + matrix.T
    packed = torch.cat([matrix[i:, i : i + 128].flatten() for i in range(0, n, 128)])
    assert least_squares.packed_size(n) == len(packed) <= n * (n + 128) // 2 + 1
    assert torch.equal(least_squares.unpacked(packed, n), matrix)


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [1, 3, 128, 129, 300])
def test_a_gram_matrix_in_strips_is_the_product(n: int, kind: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(0)
    parts = [torch.randn(rows, n, generator=draw).to(kind) for rows in (40, 1, 7)]
    whole, packed = torch.zeros(n, n).double(), torch.zeros(least_squares.packed_size(n)).double()
    for rows in parts:
        least_squares.add_gram(whole, rows)
        least_squares.add_gram(packed, rows)
    every = np.concatenate([rows.double().numpy() for rows in parts])
    np.testing.assert_allclose(whole.numpy(), every.T @ every, rtol=1e-5 if kind == torch.float32 else 1e-12, atol=1e-5)
    assert torch.equal(whole, whole.T) and torch.equal(least_squares.unpacked(packed, n), whole)


def test_the_sums_of_many_units_are_those_of_float64() -> None:
    """More units than a strip has, more rows than a product takes, and a mean far from nought."""
    draw = torch.Generator().manual_seed(1)
    h, t = torch.randn(9000, 150, generator=draw) + 5, torch.randn(9000, 3, generator=draw) - 2
    stream, moments = Stream(), SecondMoments()
    for part in (slice(0, 8500), slice(8500, 9000)):
        stream.add(h[None, part])
        moments.add(h[part], t[part])
    x, y = h.double().numpy(), t.double().numpy()
    found = stream.finish()
    np.testing.assert_allclose(found.covariance.numpy(), np.cov(x.T, bias=True), atol=1e-5)
    assert torch.equal(found.covariance, found.covariance.T)
    assert moments.origin is not None
    a = np.concatenate([x - moments.origin[0].double().numpy(), np.ones((9000, 1))], 1)
    b = y - moments.origin[1].double().numpy()
    np.testing.assert_allclose(moments.gram.numpy(), a.T @ a, rtol=1e-4, atol=1e-2)
    np.testing.assert_allclose(moments.cross.numpy(), a.T @ b, rtol=1e-4, atol=1e-2)
    assert float(moments.gram[-1, -1]) == moments.rows == 9000


def test_sums_that_are_used_up_are_those_of_both() -> None:
    draw = torch.Generator().manual_seed(2)
    h, t = torch.randn(60, 9, generator=draw), torch.randn(60, 2, generator=draw)

    def of(rows: slice) -> SecondMoments:
        made = SecondMoments()
        made.add(h[rows], t[rows])
        return made

    both, whole, empty = of(slice(0, 25)), of(slice(0, 60)), SecondMoments()
    both += of(slice(25, 60))
    old = torch.zeros(2, 9, dtype=torch.float64)
    for one, other in zip(both.solve(old, 1e-3), whole.solve(old, 1e-3), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    before = both
    both += empty
    assert both is before and both.rows == 60
    empty += of(slice(0, 5))
    assert empty.rows == 5 and empty.origin is not None
