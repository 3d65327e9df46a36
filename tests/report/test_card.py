"""The model card: the Hub's front matter, the report's figures, and what to load it with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from vitprune.core.files import write_json
from vitprune.report.card import card, write_cards

ROW: dict[str, Any] = {
    "criterion": "jas", "keep": 0.25, "kept": 0.25, "recovery": "affine", "protocol": "honest", "head": "all", "group": None,
    "classes": ["a", "b"], "top1": 0.8865, "top1_ci95": [0.872, 0.901], "params": 345226, "macs": 19500000, "n": 2000,
}  # fmt: skip


def record(**changed: Any) -> dict[str, Any]:
    dense = ROW | {"criterion": "dense", "kept": 1.0, "top1": 0.897, "top1_ci95": [0.884, 0.91], "params": 678730}
    oracle = dense | {"protocol": "oracle", "top1": 0.999}
    made = {
        "name": "demo",
        "recipe": {"model": {"name": "bundled", "pretrained": False}, "data": {"source": "bundled", "path": None}},
        "rows": [oracle, dense, ROW],
        "result": ROW | {"latency_ratio": 0.72, "latency_batch": 32},
        "classes": ["a", "b", "c"],
        "files": [{"path": "model.onnx"}],
        "versions": {"vitprune": "0.1.0", "torch": "2.15.0", "timm": "1.0.31"},
        "checks": [{"name": "parity", "passed": True}],
        "notes": [],
    }
    return made | changed


def configuration(*widths: int, **cfg: Any) -> dict[str, Any]:
    return {
        "architecture": "vit_tiny_patch16_224",
        "pretrained_cfg": {"license": "mit", "tag": "augreg"} | cfg,
        "vitprune": {"widths": list(widths), "recipe_hash": "0123", "sha256": "4567"},
    }


def written(tmp_path: Path, made: dict[str, Any], config: dict[str, Any]) -> tuple[ModelCard, str]:
    write_json(tmp_path / "config.json", config)
    (path,) = write_cards(made, tmp_path)
    assert path == tmp_path / "README.md"
    return ModelCard.load(path), path.read_text()


def test_the_hub_reads_the_front_matter(tmp_path: Path) -> None:
    made, text = written(tmp_path, record(), configuration(96, 96))
    data = made.data
    assert "Licence of its weights: mit" in text
    assert (data.library_name, data.license, data.pipeline_tag) == ("timm", "mit", "image-classification")
    assert {"vitprune", "timm", "onnx", "image-classification"} <= set(data.tags)
    (result,) = data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_split) == ("accuracy", 0.8865, "test")
    assert (result.dataset_type, result.task_type) == ("fashion_mnist", "image-classification")
    assert "base_model" not in yaml.safe_load(text.split("---")[1])


def test_the_figures_are_the_reports(tmp_path: Path) -> None:
    _, text = written(tmp_path, record(), configuration(96, 96))
    assert "| dense | 89.70 % | 88.4–91.0 | 678,730 | 19,500,000 |" in text
    assert "| **this one** | 88.65 % | 87.2–90.1 | 345,226 | 19,500,000 |" in text
    assert "2,000 test images" in text and "99.9" not in text and "0.720 of the dense" in text
    assert "serves 2 of the images' 3 classes: a, b." in text and "sha256 `4567`" in text and "`0123`" in text
    assert 'timm.create_model("local-dir:FOLDER", pretrained=True)' in text and "vitprune predict FOLDER" in text
    assert "Failed" not in text and "not one of my classes" not in text


def test_ragged_widths_say_so(tmp_path: Path) -> None:
    made, text = written(tmp_path, record(), configuration(96, 64))
    assert made.data.library_name == "vitprune" and "widths 96, 64" in text
    assert "ragged_widths_need_vitprune_load" in text and "vitprune.load" in text and "local-dir:" not in text


def test_a_specialist_and_a_folder_of_images(tmp_path: Path) -> None:
    about = {"threshold": 0.53125, "true_positive_rate": 0.95, "images": 320}
    made = record(
        result=ROW | {"open_set": about},
        recipe={"model": {"name": "local-dir:/home/me/vit", "pretrained": False}, "data": {"path": "/data/shoes"}},
        checks=[{"name": "parity", "passed": False}],
        notes=["The model's weights are RANDOM"],
        files=[],
    )
    front, text = written(tmp_path, made, configuration(8, 8, license=None))
    assert "a local folder, vit" in text and "/home/me" not in text
    assert "0.5312" in text and "95 % of 320 probe images" in text
    assert "base_model" not in front.data.to_dict() and front.data.license == "unknown"
    assert "Licence of its weights: not stated" in text
    assert (front.data.eval_results[0].dataset_name, front.data.eval_results[0].dataset_type) == (
        "shoes",
        "imagefolder",
    )
    assert "**Failed checks:** parity" in text and "RANDOM" in text and "predict" not in text and "onnx" not in text


@pytest.mark.parametrize(
    ("model", "base"),
    [
        ({"name": "vit_tiny_patch16_224", "pretrained": True}, "timm/vit_tiny_patch16_224.augreg"),
        ({"name": "hf-hub:someone/theirs@main", "pretrained": True}, "someone/theirs"),
        ({"name": "vit_tiny_patch16_224", "pretrained": False, "checkpoint": "w.pth"}, None),
        ({"name": "local-dir:vit", "pretrained": False}, None),
        ({"name": "bundled", "pretrained": False}, None),
    ],
    ids=str,
)
def test_the_base_model_is_what_was_fetched(tmp_path: Path, model: dict[str, Any], base: str | None) -> None:
    front, _ = written(tmp_path, record(recipe={"model": model, "data": {"path": "shoes"}}), configuration(8, 8))
    assert front.data.to_dict().get("base_model") == base


@pytest.mark.parametrize(
    ("data", "name", "kind"),
    [
        ({"dataset": "hfds//home/me/shoes", "path": "/home/me/cache"}, "shoes", "hfds"),
        ({"probe": "/home/me/choose", "test": "/home/me/judge"}, "judge", "imagefolder"),
    ],
)
def test_the_images_that_judged_are_named(tmp_path: Path, data: dict[str, str], name: str, kind: str) -> None:
    front, text = written(tmp_path, record(recipe={"data": data}), configuration(8, 8))
    result = front.data.eval_results[0]
    assert (result.dataset_name, result.dataset_type) == (name, kind) and "/home/me" not in text


def test_every_group_has_its_card(tmp_path: Path) -> None:
    for group in ("x", "y"):
        write_json(tmp_path / group / "config.json", configuration(8, 8))
    results = {g: ROW | {"group": g, "top1": v} for g, v in (("x", 0.5), ("y", 0.25), ("gone", 0.1))}
    made = record(results=results, rows=[])
    assert write_cards(made, tmp_path) == [tmp_path / "x" / "README.md", tmp_path / "y" / "README.md"]
    cards = [ModelCard.load(tmp_path / g / "README.md").data for g in ("x", "y")]
    assert [c.eval_results[0].metric_value for c in cards] == [0.5, 0.25]
    assert [c.model_name for c in cards] == ["demo-x", "demo-y"]


@pytest.mark.parametrize("made", [{}, {"result": {"top1": None}}, {"rows": 3, "files": "x", "versions": []}], ids=str)
def test_a_record_with_holes_makes_a_card(made: dict[str, Any]) -> None:
    assert card(made, made.get("result", {}), {}).startswith("---\nlibrary_name: timm\n")


def test_class_names_are_text_in_the_card() -> None:
    row = ROW | {"classes": ["<script>", "a|b"]}
    text = card(record(), row, configuration(8, 8))
    assert "<script>" not in text and r"a\|b" in text
