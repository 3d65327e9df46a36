"""No file that is read can run code: recipes, weights in every format, and what stands beside them."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from small import ARCHITECTURE, image_folder, model_folder, recipe_dict, tiny_args, tiny_model, write_recipe

from vitprune.core.errors import UserError
from vitprune.model.load import opening
from vitprune.recipe import inputs, parse
from vitprune.runs import pipeline


class Trap:
    """Unpickled, it makes a folder."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        import os

        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize(
    "tag",
    ["!!python/object/apply:os.mkdir [{mark}]", "!!python/object/new:os.mkdir [{mark}]", "!!python/name:os.mkdir",
     "!!python/object/apply:pathlib.Path.mkdir [!!python/object/apply:pathlib.Path [{mark}]]", "!!python/module:os"],
)  # fmt: skip
@pytest.mark.parametrize(
    "place", ["name: a\nclasses: [{tag}]\n", "{tag}\n", "name: a\nmodel: {{args: {{x: {tag}}}}}\n"]
)
def test_a_recipe_makes_no_object_of_a_tag(tmp_path: Path, tag: str, place: str) -> None:
    mark = tmp_path / "made"
    path = tmp_path / "r.yaml"
    path.write_text(place.format(tag=tag.format(mark=mark)))
    with pytest.raises(UserError) as caught:
        parse.load(path)
    assert not mark.exists()
    assert "not valid YAML" in str(caught.value) and len(str(caught.value).splitlines()) == 1


def pickled(path: Path, trap: Trap, kind: str) -> Path:
    """Weights that fit, with a trap beside them."""
    state = tiny_model().state_dict()
    if kind == "npz":
        np.savez(path, **{"x": np.array([trap], dtype=object)}, allow_pickle=True)
    elif kind == "plain pickle":
        path.write_bytes(pickle.dumps({"state_dict": state, "more": trap}))
    else:
        nested = {"beside": {**state, "trap": trap}, "wrapped": {"state_dict": state, "args": trap}}
        torch.save(nested[kind], path)
    return path


@pytest.mark.parametrize(
    ("kind", "suffix"),
    [("beside", ".pth"), ("wrapped", ".pth"), ("wrapped", ".bin"), ("wrapped", ".safetensors"),
     ("plain pickle", ".pth"), ("plain pickle", ".npz"), ("npz", ".npz")],
)  # fmt: skip
@pytest.mark.parametrize("name", [ARCHITECTURE, "torchvision:vit_b_16"])
def test_weights_are_not_unpickled(tmp_path: Path, kind: str, suffix: str, name: str) -> None:
    path = pickled(tmp_path / f"w{suffix}", Trap(tmp_path / "made"), kind)
    args = {**tiny_args(), "num_classes": 3} if name == ARCHITECTURE else {
        "image_size": 28, "patch_size": 14, "num_layers": 1, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 32,
    }  # fmt: skip
    with pytest.raises(UserError):
        opening.open_model(inputs.Model(name=name, checkpoint=path, args=args))
    assert not (tmp_path / "made").exists()


def test_files_of_a_finished_run_are_not_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pickles in the place of what the stages left: made again, or one line."""
    content = recipe_dict(model_folder(tmp_path / "model"), image_folder(tmp_path / "images", 4), tmp_path / "out")
    made = parse.load(write_recipe(tmp_path / "r.yaml", content))
    pipeline.run(made, "prune", device="cpu")
    trap = pickle.dumps(Trap(tmp_path / "made"))
    stages = tmp_path / "out" / "tiny" / "stages"
    for path in [*stages.rglob("*.safetensors"), tmp_path / "out" / "tiny" / "masks.safetensors"]:
        path.write_bytes(trap)
    pipeline.run(made, "prune", device="cpu")
    assert not (tmp_path / "made").exists()


def test_a_config_names_no_code(tmp_path: Path) -> None:
    """model_args of a folder describe the architecture; they point at no file and no loader."""
    folder = model_folder(tmp_path / "model")
    save_file(tiny_model().state_dict(), folder / "model.safetensors")
    torch.save({"x": Trap(tmp_path / "made")}, tmp_path / "w.pth")
    config = json.loads((folder / "config.json").read_text())
    for key in ("checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained"):
        value = str(tmp_path / "w.pth") if key == "checkpoint_path" else {"file": str(tmp_path / "w.pth")}
        changed = config | {"model_args": config["model_args"] | {key: value}}
        (folder / "config.json").write_text(json.dumps(changed))
        with pytest.raises(UserError):
            opening.load(folder)
    assert not (tmp_path / "made").exists()
