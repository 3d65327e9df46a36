"""The split stage in parts: the same files whoever looked at which images, and what was seen is not looked at again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small import image_folder, model_folder, recipe_dict

from vitprune.core.errors import UserError
from vitprune.images.sources.folder import Folder
from vitprune.recipe.recipe import Recipe
from vitprune.runs import pipeline
from vitprune.runs.stages import split


@pytest.fixture
def setting(tmp_path: Path) -> dict[str, Any]:
    images = image_folder(tmp_path / "i", 12)
    sorted(images.rglob("*.png"))[5].write_bytes(b"no image")
    content = recipe_dict(model_folder(tmp_path / "m"), images, tmp_path / "out")
    return content | {"data": {"path": str(images), "on_corrupt": "skip"}}


def run(content: dict[str, Any], **options: Any) -> dict[str, bytes]:
    pipeline.run(Recipe.model_validate(content), "split", device="cpu", **options)
    folder = Path(content["out"]) / "tiny/stages/split"
    assert sorted(p.name for p in folder.rglob("*")) == ["contents.safetensors", "split.json", "stage.json"]
    return {name: (folder / name).read_bytes() for name in ("contents.safetensors", "split.json")}


def test_parts_leave_no_trace_in_a_split(
    setting: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = run(setting | {"out": str(tmp_path / "alone")})
    assert b'"not readable"' in alone["split.json"]
    monkeypatch.setattr(split, "IMAGES", 5)
    assert run(setting) == alone


@pytest.mark.slow
def test_workers_leave_no_trace_in_a_split(
    setting: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(split, "IMAGES", 5)
    alone = run(setting | {"out": str(tmp_path / "alone")})
    assert run(setting, workers=2) == alone


def test_images_that_were_looked_at_are_not_again(setting: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(split, "IMAGES", 6)
    look, seen = split._look, []

    def stops(run: Any, item: list[int]) -> Any:
        seen.append(item[0])
        if seen == [0, 6, 12]:
            raise KeyboardInterrupt
        return look(run, item)

    monkeypatch.setattr(split, "_look", stops)
    with pytest.raises(KeyboardInterrupt):
        run(setting)
    run(setting)
    assert seen == [0, 6, 12, *range(12, 36, 6)]


def test_an_image_that_can_be_read_another_time_is(setting: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A refusal is not kept, for what is wrong may lie outside the image."""
    setting["data"]["on_corrupt"] = "fail"
    bad = sorted(Path(setting["data"]["path"]).rglob("*.png"))[5]
    bad.write_bytes(sorted(Path(setting["data"]["path"]).rglob("*.png"))[4].read_bytes())
    image = Folder.image

    def refuses(source: Folder, i: int) -> Any:
        if i == 5:
            raise UserError("no memory left")
        return image(source, i)

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "image", refuses)
        with pytest.raises(UserError, match="no memory left"):
            run(setting)
    run(setting)
