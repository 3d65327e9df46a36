"""One `precision` for the passes of a run: what it reaches, and what stays float32 whatever it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small import image_folder, model_folder, quicken, recipe_dict

from vitprune.core import device
from vitprune.exam import logits
from vitprune.recipe.recipe import Recipe
from vitprune.runs import pipeline


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("precision")
    model_folder(root / "model")
    image_folder(root / "images")
    return root


def run(made: Path, monkeypatch: pytest.MonkeyPatch, name: str, upto: str, **more: Any) -> Path:
    quicken(monkeypatch)
    content = recipe_dict(made / "model", made / "images", made / "out") | {"name": name} | more
    pipeline.run(Recipe.model_validate(content), upto, device="cpu")
    return made / "out" / name


@pytest.mark.parametrize(
    "road", [{"criterion": {"name": "fisher-obs"}}, {"criterion": {"name": "jas", "t": 3, "nodes": 2}, "keep": 0.5}],
    ids=["fisher-obs", "jas"],
)  # fmt: skip
def test_bfloat16_reaches_every_pass_and_no_exam(
    made: Path, monkeypatch: pytest.MonkeyPatch, road: dict[str, Any]
) -> None:
    """Scores and repaired weights are others, nearly the same; the exam's products are float32."""
    seen: list[bool] = []
    predictor = logits.predictor

    def looking(model: torch.nn.Module) -> Any:
        head = model.get_submodule("head")
        head.register_forward_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
        return predictor(model)

    monkeypatch.setattr("vitprune.runs.contenders.predictor", looking)
    monkeypatch.setattr("vitprune.runs.results.side_by_side.predictor", looking)
    road = {"baselines": [], "export": {"onnx": False}, "recovery": "layerwise"} | road
    name = road["criterion"]["name"]
    plain, half = (
        run(made, monkeypatch, f"{name}-{kind}", "evaluate", precision=kind, **road) for kind in ("tf32", "bfloat16")
    )
    assert seen and not any(seen)
    one, other = (load_file(folder / "model.safetensors") for folder in (plain, half))
    assert any(not torch.equal(one[key], other[key]) for key in one if one[key].shape == other[key].shape)
    assert all(bool(value.isfinite().all()) for value in other.values())
    assert {value.dtype for value in other.values()} == {torch.float32}


def test_an_exam_inside_a_pass_is_float32(tiny_vit: Any, make_images: Any) -> None:
    model, images = tiny_vit(dtype=torch.float32), make_images(3, dtype=torch.float32)
    expected = logits.predictor(model)(images)
    with device.products("bfloat16", torch.device("cpu")):
        assert not np.array_equal(model(images).float(), expected)
        assert torch.equal(logits.predictor(model)(images), expected)
