"""How images are prepared: stated in the recipe, kept, used everywhere; what nobody states is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import timm
import torch
import yaml
from pydantic import ValidationError
from safetensors.torch import save_file
from small import (
    ARCHITECTURE,
    change_json,
    image_folder,
    model_folder,
    picture,
    quicken,
    recipe_dict,
    tiny_args,
    tiny_model,
)
from timm.data import create_transform, resolve_model_data_config

import vitprune
from vitprune.core.errors import UserError
from vitprune.deploy import predict
from vitprune.deploy.onnx import exporting
from vitprune.images.preprocess import INTERPOLATIONS, Preprocessing
from vitprune.model.load import opening, saving
from vitprune.model.load.loaded import Loaded
from vitprune.recipe import inputs, parse
from vitprune.runs import pipeline

STATED: dict[str, Any] = {
    "input_size": 28, "mean": [0.25], "std": [0.125], "interpolation": "nearest", "crop_pct": 0.5,
}  # fmt: skip


def named(path: Path, **changed: Any) -> inputs.Model:
    """A bare checkpoint under a timm name."""
    if not path.is_file():
        torch.save(tiny_model().state_dict(), path)
    return inputs.Model(name=ARCHITECTURE, checkpoint=path, args=tiny_args() | {"num_classes": 3}, **changed)


def assumed(loaded: Loaded) -> list[str]:
    return [note for note in loaded.notes if note.startswith("Nobody says")]


# ---- what a recipe may say


@pytest.mark.parametrize(
    "given",
    [
        {"mean": [123.7]},
        {"std": [58.4]},
        {"mean": []},
        {"mean": 0.5},
        {"mean": ["grey"]},
        {"mean": [True]},
        {"mean": [-0.1]},
        {"mean": [float("nan")]},
        {"std": [0.0]},
        {"std": [float("inf")]},
        {"crop_pct": 87.5},
        {"crop_pct": 0},
        {"crop_pct": "most"},
        {"interpolation": "guess"},
        {"interpolation": "random"},
        {"input_size": 0},
        {"input_size": [28]},
        {"input_size": [1, 1, 28, 28]},
        {"input_size": 28.0},
        {"input_size": [28, -28]},
        {"size": 28},
    ],
    ids=str,
)
def test_what_cannot_be_meant_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        inputs.Model.model_validate({"name": ARCHITECTURE, "preprocess": given})


def test_the_line_names_the_key_and_the_cure() -> None:
    text = "model: {name: x, preprocess: {mean: [123.7]}}\ndata: {source: bundled}\nversion: 1\nname: x\n"
    with pytest.raises(UserError, match=r"`model\.preprocess\.mean`.*255"):
        parse.parse(text)


def test_the_interpolations_are_those_that_there_are() -> None:
    field = inputs.Preprocess.model_fields["interpolation"].annotation
    assert {name for part in get_args(field) for name in get_args(part)} == set(INTERPOLATIONS)


@pytest.mark.parametrize("size", [28, [28, 28], [1, 28, 28]], ids=str)
def test_the_models_own_size_in_every_spelling(tmp_path: Path, size: Any) -> None:
    loaded = opening.open_model(named(tmp_path / "w.pth", preprocess={"input_size": size}))
    assert loaded.data_config["input_size"] == (1, 28, 28)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"input_size": 56}, r"\[1, 56, 56\].*\[1, 28, 28\].*img_size: 56"),
        ({"input_size": [28, 56]}, r"img_size: \[28, 56\]"),
        ({"input_size": [3, 28, 28]}, "in_chans: 3"),
        ({"mean": [0.1, 0.2, 0.3]}, "mean: 3 values for images of 1 channels"),
        ({"std": [0.1, 0.2]}, "std: 2 values"),
    ],
    ids=str,
)
def test_what_does_not_fit_the_model_is_refused(tmp_path: Path, given: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        opening.open_model(named(tmp_path / "w.pth", preprocess=given))


# ---- who says it


def test_a_bare_checkpoint_is_told_what_is_assumed(tmp_path: Path) -> None:
    loaded = opening.open_model(named(tmp_path / "w.pth"))
    (note,) = assumed(loaded)
    for text in ("interpolation bicubic", "crop_pct 0.9", "mean 0.5", "std 0.5", ARCHITECTURE, "model.preprocess"):
        assert text in note


def test_what_the_recipe_states_is_not_assumed(tmp_path: Path) -> None:
    loaded = opening.open_model(named(tmp_path / "w.pth", preprocess=STATED))
    assert not assumed(loaded) and set(loaded.origin.said_by.values()) == {"the recipe", "the model"}
    part = opening.open_model(named(tmp_path / "w.pth", preprocess={"mean": [0.25], "crop_pct": 0.5}))
    (note,) = assumed(part)
    assert "std 0.5" in note and "interpolation" in note and "mean" not in note and "crop_pct" not in note


def test_a_folder_that_states_it_needs_no_note(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model")
    assert not opening.open_model(inputs.Model(name=f"local-dir:{folder}")).notes


@pytest.mark.parametrize("lost", [["mean"], ["mean", "std", "crop_pct", "interpolation"]], ids=str)
def test_a_folder_that_leaves_something_open(tmp_path: Path, lost: list[str]) -> None:
    folder = model_folder(tmp_path / "model")
    change_json(folder / "config.json", lambda c: [c["pretrained_cfg"].pop(key) for key in lost])
    loaded = opening.open_model(inputs.Model(name=f"local-dir:{folder}"))
    (note,) = assumed(loaded)
    assert all((f"{key} " in note) == (key in lost) for key in ("mean", "std", "crop_pct", "interpolation"))


def test_a_folder_without_any_configuration_of_it(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model")
    change_json(folder / "config.json", lambda c: c.pop("pretrained_cfg"))
    assert assumed(opening.open_model(inputs.Model(name=f"local-dir:{folder}")))


def test_random_weights_have_no_preprocessing_to_be_wrong_about() -> None:
    loaded = opening.open_model(inputs.Model(name=ARCHITECTURE, args=tiny_args() | {"num_classes": 3}))
    assert not loaded.notes


def test_timms_own_weights_are_stated_by_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    build = opening.build.build
    monkeypatch.setattr(opening.build, "build", lambda name, args, pretrained=False: build(name, args))
    loaded = opening.open_model(inputs.Model(name=ARCHITECTURE, args=tiny_args(3), pretrained=True))
    assert not loaded.notes and loaded.origin.said_by["mean"] == "the weights' configuration"
    assert loaded.model.pretrained_cfg["license"] == "apache-2.0"


def test_the_recipe_stands_before_the_folder_and_says_so(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model")
    loaded = opening.open_model(inputs.Model(name=f"local-dir:{folder}", preprocess={"mean": [0.25], "std": [0.2]}))
    assert loaded.data_config["mean"] == (0.25,)
    (note,) = loaded.notes
    assert "mean 0.25" in note and "mean 0.4" in note and "std" not in note


# ---- it is kept


@pytest.mark.parametrize("given", [STATED, None], ids=["stated", "assumed"])
def test_a_saved_folder_keeps_it_for_us_and_for_timm(tmp_path: Path, given: dict[str, Any] | None) -> None:
    loaded = opening.open_model(named(tmp_path / "w.pth", preprocess=given))
    saving.save(tmp_path / "a", loaded, loaded.model, {})
    again = opening.open_model(inputs.Model(name=f"local-dir:{tmp_path / 'a'}"))
    theirs = timm.create_model(f"local-dir:{tmp_path / 'a'}", pretrained=True)
    assert Preprocessing.of(again.data_config) == Preprocessing.of(loaded.data_config)
    assert Preprocessing.of(resolve_model_data_config(theirs)) == Preprocessing.of(loaded.data_config)
    assert assumed(again) == assumed(loaded) and bool(assumed(again)) == (given is None)
    saving.save(tmp_path / "b", again, again.model, again.about)
    assert (tmp_path / "a" / "config.json").read_bytes() == (tmp_path / "b" / "config.json").read_bytes()


def test_a_whole_run_uses_and_tells_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quicken(monkeypatch)
    save_file(tiny_model().state_dict(), tmp_path / "w.safetensors")
    model = {"name": ARCHITECTURE, "checkpoint": str(tmp_path / "w.safetensors")}
    model |= {"args": tiny_args() | {"num_classes": 3}, "preprocess": STATED}
    content = recipe_dict("", image_folder(tmp_path / "images"), tmp_path / "out", baselines=[]) | {"model": model}
    content["export"] = {"onnx": True, "latency_batches": [1]}
    made = pipeline.run(parse.parse(yaml.safe_dump(content)))
    root = tmp_path / "out" / "tiny"
    told = made["preprocessing"]
    assert (told["mean"], told["std"], told["crop_pct"], told["interpolation"]) == ([0.25], [0.125], 0.5, "nearest")
    assert told["said_by"]["mean"] == "the recipe" and not [n for n in made["notes"] if "prepared" in n]
    metadata = exporting.metadata(root / "model.onnx")
    assert json.loads(metadata["preprocessing_said_by"])["crop_pct"] == "the recipe"
    theirs = timm.create_model(f"local-dir:{root}", pretrained=True).eval()
    image = picture(1, 77, size=40)
    image.save(tmp_path / "x.png")
    pixels = create_transform(**resolve_model_data_config(theirs), is_training=False)(image)
    with torch.no_grad():
        expected = vitprune.load(root)(pixels[None]).numpy()
    np.testing.assert_allclose(predict.open_model(root).logits([tmp_path / "x.png"]), expected, atol=1e-4)


def test_the_run_of_a_bare_checkpoint_tells_what_it_assumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quicken(monkeypatch)
    torch.save({"model": tiny_model().state_dict()}, tmp_path / "w.pth")
    model = {"name": ARCHITECTURE, "checkpoint": str(tmp_path / "w.pth"), "args": tiny_args() | {"num_classes": 3}}
    content = recipe_dict("", image_folder(tmp_path / "images"), tmp_path / "out", baselines=[]) | {"model": model}
    made = pipeline.run(parse.parse(yaml.safe_dump(content)))
    assert [note for note in made["notes"] if "mean 0.5" in note and "model.preprocess" in note]
    assert [note for note in made["notes"] if note.startswith("Weights of w.pth: the set `model`")]
    assert "model.preprocess" in (tmp_path / "out" / "tiny" / "README.md").read_text()
