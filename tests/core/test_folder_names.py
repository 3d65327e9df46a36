"""Names that become folders: they are one folder each on every disk, and none of vitprune's or the system's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from vitprune.core import claims
from vitprune.core.errors import UserError
from vitprune.recipe import parse, recipe
from vitprune.runs.stages.export import FILES


def with_groups(*names: str) -> recipe.Recipe:
    groups = {name: [str(i)] for i, name in enumerate(names)}
    return recipe.Recipe.model_validate({"name": "r", "groups": groups})


def refused(*names: str) -> str:
    with pytest.raises(ValidationError) as caught:
        with_groups(*names)
    return str(caught.value)


@pytest.mark.parametrize("names", [("Red", "red"), ("a", "b", "A"), ("x.1", "X.1"), ("TEAM-a", "team-A")])
def test_groups_that_differ_by_case_alone(names: tuple[str, ...]) -> None:
    assert "one folder on a disk without upper case" in refused(*names)


@pytest.mark.parametrize("name", ["é", "e\u0301", "ﬁne", "ｒｅｄ", "a b", "a/b", "..", ".a", "", "a\u200b", "K\u212a"])
def test_groups_that_another_unicode_form_could_make_equal(name: str) -> None:
    assert "letters, digits" in refused(name, "red")


TAKEN = ["stages", "Stages", "all", "ALL", "stage", "onnx", "compare", "report-data", "Report-Data", "parts"]
TAKEN += [
    *claims.AT_ROOT,
    *FILES.values(),
    "Model.ONNX",
    "REPORT.JSON",
    "readme.md",
    "README.MD",
    "x.json",
    "red.weights",
]
TAKEN += ["paths.safetensors", "class-similarity.safetensors", "paper-table-1.svg", "red.moments", "x.tmp"]
WINDOWS = ["con", "CON", "Prn", "aux", "NUL", "nul.txt", "com1", "COM9", "lpt1", "LPT5.log", "com0", "red.", "red..."]


@pytest.mark.parametrize("name", TAKEN + WINDOWS)
def test_group_names_that_are_taken(name: str) -> None:
    said = refused(name, "other")
    assert name[:64] in said


@pytest.mark.parametrize(
    "name", ["red", "con1", "console", "com10", "a.b", "v1.2", "group-1", "stages2", "x" * 64, "0"]
)
def test_group_names_that_are_free(name: str) -> None:
    assert name in (with_groups(name, "other").groups or {})


@pytest.mark.parametrize("name", ["con", "NUL", "aux.v1", "tiny.", "comparison.html", "Comparison.MD"])
def test_names_of_runs(name: str) -> None:
    with pytest.raises(ValidationError, match="cannot be a folder's name everywhere"):
        recipe.Recipe.model_validate({"name": name})
    for free in ("tiny", "vit.v1", "report", "A1", "stages"):
        assert recipe.Recipe.model_validate({"name": free}).name == free


def test_two_groups_never_share_a_file() -> None:
    """What the stages name after a group, for groups that are accepted together."""
    names = ["red", "a.b", "a", "b", "red-of-b"]
    made: list[Any] = [*(with_groups(*names).groups or {}), "all"]
    for pattern in (
        "{}.json",
        "{}.safetensors",
        "{}.moments.safetensors",
        "x-of-{}.safetensors",
        "x-of-{}.weights.safetensors",
    ):
        assert len({pattern.format(name).lower() for name in made} | {"stage.json", "rows.json"}) == len(made) + 2


def test_an_out_that_no_path_can_be() -> None:
    with pytest.raises(UserError, match="no path can have"):
        parse.parse('name: r\nout: "a\\0b"\n')


def test_too_long_a_path_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a longer path than the disk can hold"):
        claims.claim(tmp_path / ("x" * 300) / "tiny")
