"""Weights in several files that an index names, as transformers writes large ones: read safely, by every road."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import vitprune
from vitprune.core.errors import UserError
from vitprune.model.load import opening
from vitprune.model.load.weights import shards
from vitprune.model.vlm import opening as vlm
from vitprune.recipe import inputs, model_files
from vitprune.runs.state import skeleton

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
CLASSES: dict[str, dict[str, Any]] = {
    "Dinov2Model": SIZES,
    "DINOv3ViTModel": SIZES | {"intermediate_size": 40, "num_register_tokens": 2},
    "SiglipVisionModel": SIZES | {"intermediate_size": 40},
    "ViTForImageClassification": SIZES | {"intermediate_size": 40, "num_labels": 3},
    "Dinov2ForImageClassification": SIZES | {"num_labels": 3},
}


def line(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as said:
        call()
    assert "\n" not in str(said.value)
    return str(said.value)


def written(folder: Path, cls: str, shard: str | None = "8KB") -> Any:
    """A random model of the class in `folder`, in files of that size; in one for None."""
    transformers = pytest.importorskip("transformers", reason="the extra `transformers` is not installed")
    made = getattr(transformers, cls)
    torch.manual_seed(0)
    net = made(made.config_class(**CLASSES[cls])).eval()
    for weight in net.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    net.save_pretrained(folder, **({"max_shard_size": shard} if shard else {}))
    return net


@pytest.mark.sample(3)
@pytest.mark.parametrize("cls", CLASSES)
def test_a_folder_in_shards_is_that_in_one_file(tmp_path: Path, cls: str) -> None:
    for folder, shard in (("whole", None), ("shards", "8KB")):
        written(tmp_path / folder, cls, shard)
    assert not (tmp_path / "shards" / shards.WHOLE).exists()
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 3
    x = torch.randn(2, 3, 28, 28)
    found = []
    for folder in ("whole", "shards"):
        spec = inputs.Model(name=f"transformers:{tmp_path / folder}")
        model = opening.open_model(spec).model
        assert model_files.model(spec).outputs == (3 if "Classification" in cls else 0)
        assert skeleton.opened(spec).architecture
        found.append(model(x))
        assert torch.equal(vitprune.load(spec.name)(x), found[-1])
    assert torch.equal(*found)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards and their index, beside a configuration; no library is needed to read them."""
    made = tmp_path_factory.mktemp("shards")
    save_file({"a": torch.ones(2, 3), "b": torch.zeros(4)}, made / "model-1.safetensors")
    save_file({"c": torch.arange(5.0)}, made / "model-2.safetensors")
    return made


MAP = {"a": "model-1.safetensors", "b": "model-1.safetensors", "c": "model-2.safetensors"}


def index(folder: Path, weight_map: Any, **more: Any) -> Path:
    path = folder / shards.INDEX
    path.write_text(json.dumps({"metadata": {"total_size": 60}, "weight_map": weight_map} | more))
    return path


def test_shapes_and_tensors_of_all_files(folder: Path) -> None:
    path = index(folder, MAP)
    assert shards.weights_of(folder) == path and len(shards.files(path)) == 3
    assert shards.shapes(path) == {"a": (2, 3), "b": (4,), "c": (5,)}
    found = shards.tensors(path, ["c", "a"])
    assert found.keys() == {"a", "c"} and torch.equal(found["c"], torch.arange(5.0))
    assert "does not name `d`" in line(lambda: shards.tensors(path, ["d"]))


@pytest.mark.parametrize(
    ("weight_map", "says"),
    [
        (MAP | {"a": "../model-1.safetensors"}, "which is no safetensors file of its folder"),
        (MAP | {"a": "/etc/model.safetensors"}, "which is no safetensors file of its folder"),
        (MAP | {"a": "..\\model-1.safetensors"}, "which is no safetensors file of its folder"),
        (MAP | {"a": "pickled.bin"}, "which is no safetensors file of its folder"),
        (MAP | {"a": ["model-1.safetensors"]}, "which is no safetensors file of its folder"),
        (MAP | {"c": "model-3.safetensors"}, "names model-3.safetensors, which is not there"),
        (MAP | {"d": "model-2.safetensors"}, "model-2.safetensors: does not hold `d`"),
        (MAP | {"b": "model-2.safetensors"}, "model-1.safetensors: holds `b`, which"),
        ({"a": "model-1.safetensors", "c": "model-2.safetensors"}, "holds `b`, which .* has nowhere"),
        ({}, "has no weight_map"),
        ([1], "has no weight_map"),
        ({f"w{i}": f"m{i}.safetensors" for i in range(shards.MOST + 1)}, "names more than 4,096 files"),
    ],
)
def test_an_index_that_lies_is_refused_before_a_tensor_is_read(folder: Path, weight_map: Any, says: str) -> None:
    path = index(folder, weight_map)
    with pytest.raises(UserError, match=says) as error:
        shards.shapes(path)
    assert "\n" not in str(error.value)


def test_a_shard_that_is_cut_short_or_an_index_that_is_no_json(folder: Path, tmp_path: Path) -> None:
    path = index(tmp_path, MAP)
    for name in ("model-1.safetensors", "model-2.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "model-1.safetensors").write_bytes((folder / "model-1.safetensors").read_bytes()[:-4])
    assert "the header tells of 40 bytes, the file holds 36" in line(lambda: shards.shapes(path))
    path.write_text("{")
    assert "cannot be read as JSON" in line(lambda: shards.shapes(path))
    path.write_text(json.dumps({"weight_map": {"a" * shards.LARGEST: "x"}}))
    assert "so it is not read" in line(lambda: shards.shapes(path))


@pytest.mark.sample(2)
@pytest.mark.parametrize("cls", ["ViTForImageClassification", "Dinov2Model"])
def test_a_folder_whose_index_leads_out_of_it_is_not_opened(tmp_path: Path, cls: str) -> None:
    """Also where transformers itself would follow the name."""
    written(tmp_path / "in" / "model", cls)
    made = tmp_path / "in" / "model" / shards.INDEX
    record = json.loads(made.read_text())
    name = sorted(record["weight_map"].values())[0]
    (tmp_path / "in" / "model" / name).rename(tmp_path / "in" / name)
    record["weight_map"] = {k: f"../{v}" if v == name else v for k, v in record["weight_map"].items()}
    made.write_text(json.dumps(record))
    spec = inputs.Model(name=f"transformers:{tmp_path / 'in' / 'model'}")
    for look in (opening.open_model, skeleton.opened, model_files.model):
        assert "which is no safetensors file of its folder" in line(lambda look=look: look(spec))  # type: ignore[misc]


def test_files_that_an_index_names_are_transformers_own(folder: Path, tmp_path: Path) -> None:
    index(tmp_path, MAP)
    (tmp_path / "config.json").write_text("{}")
    said = line(lambda: opening.open_model(inputs.Model(name=f"local-dir:{tmp_path}")))
    assert "has no model.safetensors" in said and f"read as transformers:{tmp_path}" in said
    assert load_file(folder / "model-2.safetensors").keys() == {"c"}


def test_a_vision_language_model_in_several_files_is_the_same_and_stays_in_their_folder(tmp_path: Path) -> None:
    """As large models are written; transformers itself would follow a name out of the folder."""
    pytest.importorskip("transformers", reason="the extra `transformers` is not installed")
    import vlms

    whole = vlm.open_vlm(vlms.folder(tmp_path / "whole"))
    place = vlms.folder(tmp_path / "shards")
    (place / shards.WHOLE).unlink()
    whole.model.save_pretrained(place, max_shard_size="40KB")  # type: ignore[operator]
    assert not (place / shards.WHOLE).exists()
    again, index = vlm.open_vlm(place), place / shards.INDEX
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name
    record = json.loads(index.read_text())
    file = sorted(record["weight_map"].values())[0]
    (place / file).rename(tmp_path / file)
    record["weight_map"] = {key: f"../{v}" if v == file else v for key, v in record["weight_map"].items()}
    index.write_text(json.dumps(record))
    with pytest.raises(UserError, match="which is no safetensors file of its folder"):
        vlm.open_vlm(place)
