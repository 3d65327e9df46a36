"""The budget `keep`: a share or a count, whichever is meant, and never the other one in silence."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_images, make_tiny_vit

import vitprune
from vitprune.core.errors import UserError
from vitprune.pruning import budget
from vitprune.recipe import parse, recipe

RIGHT: list[tuple[Any, Any]] = [
    ("25%", 0.25), ("25 %", 0.25), ("  12.5% ", 0.125), ("100%", 1.0), ("0.1%", 0.001), (".5%", 0.005), ("5.%", 0.05),
    ("25 units", 25), ("25units", 25), ("1 unit", 1), ("100 units", 100), ("400 units", 400), (1, 1), (101, 101), (400, 400),
    (0.25, 0.25), (1.0, 1.0), (np.int64(400), 400), (np.float32(0.5), 0.5),
]  # fmt: skip
WRONG = [
    "", "25", "0.25", "0%", "101%", "-5%", "1e1%", "0 units", "-3 units", "2.5 units", "units", "%", "25 % units", "25 unit s",
    "٢٥%", "25 percent", "nan%", "9" * 40 + "%", "9" * 40 + " units", True, False, None, [0.5], {"a": 1}, b"25%", 0, -1,
    0.0, -0.5, 1.0001, 25.0, float("nan"), float("inf"), 1j,
]  # fmt: skip


@pytest.mark.parametrize(("given", "meant"), RIGHT, ids=str)
def test_a_share_and_a_count_are_what_they_say(given: Any, meant: float) -> None:
    found = budget.parse(given)
    assert found == meant and type(found) is type(meant)
    assert budget.parse(budget.spelled(found)) == found and type(budget.parse(budget.spelled(found))) is type(meant)


@pytest.mark.parametrize("given", WRONG, ids=lambda given: repr(given)[:20])
def test_what_is_neither_is_refused(given: Any) -> None:
    with pytest.raises(ValueError, match=r"`|at least 1"):
        budget.parse(given)


@pytest.mark.parametrize("count", [2, 8, 25, 99, 100])
def test_a_bare_number_that_may_be_either_is_refused_with_both_spellings(count: int) -> None:
    both = f"`keep: {count}%`", f"`keep: {count} units`"
    for text in (
        f"name: a\nkeep: {count}\n",
        f"name: a\ncompare:\n  keep: [0.5, {count}]\n",
        f"name: a\nkeep: {count}.0\n",
    ):
        with pytest.raises(UserError) as caught:
            parse.parse(text)
        assert all(spelling in str(caught.value) for spelling in both) and "line" in str(caught.value)
    model = make_tiny_vit(dtype=torch.float32)
    with pytest.raises(UserError) as caught:
        vitprune.prune(
            model, vitprune.discover(model, make_images(1), torch.zeros(1).long(), criterion="random"), keep=count
        )
    assert all(spelling in str(caught.value) for spelling in both)


def test_both_spellings_mean_the_same_everywhere() -> None:
    made = parse.parse("name: a\nkeep: 25 units\ncompare: {keep: [25%, 25 units, 0.5, 1, 400]}\n")
    assert made.keep == 25 and made.compare is not None and made.compare.keep == [0.25, 25, 0.5, 1, 400]
    for again in (
        parse.parse(parse.dump(made)),
        recipe.Recipe.model_validate(json.loads(json.dumps(made.model_dump(mode="json")))),
        recipe.Recipe.model_validate(made.model_dump()),
    ):
        assert again == made and type(again.keep) is int
    with pytest.raises(UserError, match="twice"):
        parse.parse("name: a\ncompare: {keep: [25%, 0.25]}\n")
    model, images = make_tiny_vit(dtype=torch.float32), make_images(4, dtype=torch.float32)
    scores = vitprune.discover(model, images, torch.zeros(4).long(), criterion="magnitude-l2")
    for keep, width in (("25%", 4), (0.25, 4), ("9 units", 9), ("1 unit", 1)):
        slim = vitprune.prune(model, scores, keep=keep, recovery="none", allocation="uniform")
        assert {block.mlp.fc2.in_features for block in slim.blocks} == {width * (2 if keep in ("25%", 0.25) else 1)}


def test_the_schema_tells_an_editor_the_same() -> None:
    described = recipe.Recipe.model_json_schema()["properties"]["keep"]
    kinds = {part["type"] for part in described["anyOf"]}
    assert kinds == {"number", "integer", "string", "null"}  # null: a budget of the whole model is in its place
    assert (
        described["default"] is None
    )  # without it a budget of the whole model, or 25 %, as the rest of the recipe says
