"""`t: auto`: every budget is pruned by paths as long as what it keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from small import image_folder, model_folder, quicken, recipe_dict

from vitprune.recipe import parse, recipe
from vitprune.runs import compare, pipeline
from vitprune.runs.state import lengths

WIDTH = 64  # hidden units of a block of the tiny model


@pytest.fixture
def content(tmp_path: Path) -> dict[str, Any]:
    made = recipe_dict(model_folder(tmp_path / "m"), image_folder(tmp_path / "i", 20), tmp_path / "out")
    return made | {"criterion": {"name": "jas", "nodes": 2, "probe_per_class": 3}, "baselines": ["activation"]}


def test_a_length_is_the_budgets_share_of_the_smallest_block() -> None:
    def of(keep: Any, criterion: str = "jas", smallest: int = 384) -> int:
        return lengths.length("auto", criterion, keep, smallest)

    assert [of(0.5), of(0.25), of(0.1), of(0.001), of(1.0)] == [192, 96, 38, 1, 384]
    assert [of(25), of(1), of(400)] == [25, 1, 384]
    assert [of(None), of(None, smallest=32), of(0.25, "fisher"), of(0.25, "obs"), of(0.25, "random")] == [
        50,
        32,
        50,
        50,
        50,
    ]
    assert lengths.length(7, "jas", 0.5, 384) == lengths.length(7, "fisher", None, 384) == 7


def test_a_run_with_auto_is_that_with_the_number(
    content: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quicken(monkeypatch)
    made = pipeline.run(recipe.Recipe.model_validate(content), device="cpu")
    asked = content | {"criterion": content["criterion"] | {"t": WIDTH // 2}, "name": "asked"}
    other = pipeline.run(recipe.Recipe.model_validate(asked), device="cpu")
    assert {d["t"] for d in made["discoveries"]} == {WIDTH // 2} and made["paths"]["t"] == WIDTH // 2
    assert made["rows"] == other["rows"]
    ours, theirs = (load_file(tmp_path / "out" / name / "masks.safetensors") for name in ("tiny", "asked"))
    assert all(bool((ours[key] == theirs[key]).all()) for key in ours | theirs)
    written = (tmp_path / "out" / "tiny" / "recipe.yaml").read_text()
    assert "\n  t:" not in written and parse.parse(written).criterion.t == "auto"
    assert "\n  t: 32\n" in (tmp_path / "out" / "asked" / "recipe.yaml").read_text()


def test_a_comparison_has_a_discovery_for_every_budget(
    content: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row of the comparison is that of a comparison with the one budget and its t written down."""
    quicken(monkeypatch)
    spec = {"criteria": ["jas", "variance", "auto"], "among": ["jas", "variance"], "keep": [0.5, "8 units"]}
    spec |= {"recovery": ["none"], "seeds": [1]}
    made = compare.compare(recipe.Recipe.model_validate(content | {"compare": spec}), device="cpu")
    assert [note for note in made["notes"] if note.startswith("criterion.t: 32 at keep 0.5, 8 at keep 8; `jas`")]
    of = {(row["criterion"], row["keep"]): row for row in made["rows"]}
    assert {row["t"] for row in made["table"] if row["criterion"] == "variance"} == {None}
    for keep, t in ((0.5, 32), ("8 units", 8)):
        one = content | {"name": f"at-{t}", "criterion": content["criterion"] | {"t": t}}
        one |= {"compare": {"criteria": ["jas", "variance"], "recovery": ["none"], "seeds": [1], "keep": [keep]}}
        alone = compare.compare(recipe.Recipe.model_validate(one), device="cpu")
        assert not any("criterion.t" in note for note in alone["notes"])
        for name in ("jas", "variance"):
            mine = of[name, alone["rows"][1]["keep"]]
            theirs = next(row for row in alone["rows"] if row["criterion"] == name)
            assert {k: v for k, v in mine.items() if k not in ("seconds", "peak_memory_mb")} == {
                k: v for k, v in theirs.items() if k not in ("seconds", "peak_memory_mb")
            }
            assert mine["t"] == (t if name == "jas" else None)
