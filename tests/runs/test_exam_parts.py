"""The exam in parts, a contender each: the same files whoever examined which, and what was examined is not again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small import image_folder, model_folder, recipe_dict

from vitprune.recipe.recipe import Recipe
from vitprune.runs import contenders, pipeline

EXAMINED = 5  # dense, magnitude-l2 and random, without and with the repair


@pytest.fixture
def setting(tmp_path: Path) -> dict[str, Any]:
    content = recipe_dict(model_folder(tmp_path / "m"), image_folder(tmp_path / "i", 12), tmp_path / "out")
    content |= {"criterion": {"name": "magnitude-l2"}, "baselines": ["random"], "random_draws": 1}
    return content | {"recovery": "sequential"}


def run(content: dict[str, Any], **options: Any) -> None:
    pipeline.run(Recipe.model_validate(content), "evaluate", device="cpu", **options)


def results(out: Path) -> dict[str, bytes]:
    found = {p.name: p.read_bytes() for p in (out / "tiny/stages/evaluate").rglob("*") if p.is_file()}
    assert set(found) == {"rows.json", "all.safetensors", "stage.json"}
    del found["stage.json"]  # how long it took
    return found


@pytest.mark.parametrize("workers", [2, 3])
@pytest.mark.sample(1)
def test_workers_leave_no_trace_in_an_exam(setting: dict[str, Any], tmp_path: Path, workers: int) -> None:
    run(setting | {"out": str(tmp_path / "alone")})
    run(setting, workers=workers)
    assert results(tmp_path / "out") == results(tmp_path / "alone")


def test_what_was_examined_is_not_examined_again(
    setting: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    examine, seen = contenders.examine, []

    def stops(run: Any, contender: Any, made: Any = None) -> Any:
        seen.append((contender.criterion, contender.repair))
        if len(seen) == 3:
            raise KeyboardInterrupt
        return examine(run, contender, made)

    monkeypatch.setattr(contenders, "examine", stops)
    with pytest.raises(KeyboardInterrupt):
        run(setting)
    run(setting)
    assert len(seen) == EXAMINED + 1 and seen[2] == seen[3] and len(set(seen)) == EXAMINED
    run(setting | {"out": str(tmp_path / "alone")})
    assert results(tmp_path / "out") == results(tmp_path / "alone")
