"""Counts that are kept packed are those that are not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vitprune.see import exemplars, seen
from vitprune.see.seen import Asked, Seen


def test_large_counts_are_packed_and_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, labels = torch.randn(40, 5, 6, generator=torch.Generator().manual_seed(0)), np.zeros(40, np.int64)
    asked = Asked(1, True, 3, exemplars.draws(40, 6, 4, [0, 0]))
    found = []
    for most in (seen.LOOSE, 0):
        monkeypatch.setattr(seen, "LOOSE", most)
        block = Seen.nothing(asked)
        for at in (0, 20):
            block.look(hidden[at : at + 20], at, np.arange(at, at + 20), labels[at : at + 20])
        found.append(block.columns())
    for name, column in found[0].items():
        np.testing.assert_array_equal(column, found[1][name], name)
