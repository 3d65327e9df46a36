"""Folds: each image in one, as many of each class in each, copies together, the same for the same seed."""

from __future__ import annotations

import numpy as np

from vitprune.images.split import folds

CLASS_OF = np.repeat(np.arange(4), [23, 5, 2, 10])
INDEX = np.random.default_rng(0).permutation(40)[:38]


def test_every_class_is_dealt_out_evenly() -> None:
    found = folds(INDEX, CLASS_OF, 5, 3)
    assert found.shape == INDEX.shape and set(found.tolist()) == set(range(5))
    for c in range(4):
        counts = np.bincount(found[CLASS_OF[INDEX] == c], minlength=5)
        assert counts.max() - counts.min() <= 1
    counts = np.bincount(found)
    assert counts.max() - counts.min() <= 1


def test_the_seed_and_nothing_else_decides() -> None:
    first = folds(INDEX, CLASS_OF, 5, 3)
    assert (first == folds(INDEX, CLASS_OF, 5, 3)).all()
    assert (first != folds(INDEX, CLASS_OF, 5, 4)).any()


def test_copies_are_in_one_fold_whatever_their_class() -> None:
    alike = {int(i): b"same" for i in (*INDEX[:3], *INDEX[20:22])}
    assert len(set(CLASS_OF[list(alike)].tolist())) > 1
    found = folds(INDEX, CLASS_OF, 5, 0, alike)
    assert len(set(found[np.isin(INDEX, list(alike))].tolist())) == 1
