"""The exam in parts, a contender each: the same files whoever examined which, and what was examined is not again."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small import FOLDERS, image_folder, model_folder, recipe_dict

from vitprune.images.batches import Images
from vitprune.recipe.recipe import Recipe
from vitprune.runs import contenders, pipeline
from vitprune.runs.results import side_by_side

GROUPS = {"one": [FOLDERS[0]], "two": [FOLDERS[1]]}
EXAMINED = 5  # dense, magnitude-l2 and random, without and with the repair


@pytest.fixture
def setting(tmp_path: Path) -> dict[str, Any]:
    content = recipe_dict(model_folder(tmp_path / "m"), image_folder(tmp_path / "i", 12), tmp_path / "out")
    content |= {"criterion": {"name": "magnitude-l2"}, "baselines": ["random"], "random_draws": 1}
    return content | {"recovery": "sequential"}


def run(content: dict[str, Any], verb: str = "evaluate", **options: Any) -> None:
    pipeline.run(Recipe.model_validate(content), verb, device="cpu", **options)


def results(out: Path, groups: Iterable[str] | None = None) -> dict[str, bytes]:
    found = {p.name: p.read_bytes() for p in (out / "tiny/stages/evaluate").rglob("*") if p.is_file()}
    assert set(found) == {"rows.json", "stage.json", *(f"{group}.safetensors" for group in groups or ["all"])}
    del found["stage.json"]  # how long it took
    return found


@pytest.mark.parametrize(("workers", "groups"), [(2, GROUPS), (3, None)])
@pytest.mark.sample(1)
def test_workers_leave_no_trace_in_an_exam(
    setting: dict[str, Any], tmp_path: Path, workers: int, groups: dict[str, list[str]] | None
) -> None:
    setting |= {"groups": groups}
    run(setting | {"out": str(tmp_path / "alone")})
    run(setting, workers=workers)
    assert results(tmp_path / "out", groups) == results(tmp_path / "alone", groups)


def test_under_groups_an_image_is_read_once_for_all_models(
    setting: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once as one of its group's, and once among all images, for the table of the specialists."""
    run(setting | {"groups": GROUPS, "recovery": "none"}, verb="prune")
    batches, asked = Images.batches, list[int]()

    def counted(images: Images, index: np.ndarray, size: int) -> Any:
        asked.extend(index.tolist())
        return batches(images, index, size)

    monkeypatch.setattr(Images, "batches", counted)
    monkeypatch.setattr(side_by_side, "IMAGES", 4)
    run(setting | {"groups": GROUPS, "recovery": "none"})
    split = json.loads((tmp_path / "out/tiny/stages/split/split.json").read_text())
    grouped = [i for i in split["test"] if i < 24]  # of the first two classes, 12 images each
    assert len(grouped) >= 4 and sorted(asked) == sorted([*grouped, *split["test"]])


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
