"""A clock set back, too little memory for the exam, logits that are none, and files of another model: one line each."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from small import image_folder, model_folder, picture, recipe_dict, write_recipe

from vitprune.cli import app
from vitprune.core import files, memory, reading
from vitprune.core.errors import UserError
from vitprune.deploy import bench, predict
from vitprune.exam import logits
from vitprune.model.load import opening
from vitprune.recipe import recipe
from vitprune.recipe.inputs import Model
from vitprune.runs import contenders, pipeline
from vitprune.runs.results import side_by_side

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture
def setting(tmp_path: Path) -> dict[str, Any]:
    images = image_folder(tmp_path / "images", 5)
    return recipe_dict(model_folder(tmp_path / "model"), images, tmp_path / "out", baselines=[])


def run(content: dict[str, Any], verb: str = "evaluate") -> dict[str, Any]:
    return pipeline.run(recipe.Recipe.model_validate(content), verb)


def redone(content: dict[str, Any]) -> list[str]:
    return [stage["name"] for stage in run(content)["stages"] if not stage["skipped"]]


# ---- the clock


def test_a_clock_set_back_changes_nothing(
    setting: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was written yesterday bears tomorrow's date: no stage is done again for it, none is skipped for it."""
    run(setting)
    now = time.time()
    for path in (tmp_path / "out").rglob("*"):
        os.utime(path, (now + 1e6, now + 1e6))
    monkeypatch.setattr(time, "time", lambda: now - 1e8)
    assert redone(setting) == []
    assert redone(setting | {"keep": 0.25}) == ["prune", "evaluate"]
    path = tmp_path / "out" / "tiny" / "masks.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    os.utime(path, (now - 1e8, now - 1e8))
    assert redone(setting | {"keep": 0.25}) == ["prune"]  # and what came out is as before


def test_a_sealed_file_is_what_was_written_or_none(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    files.write_sealed(path, {"a": 1.5, "b": {2: "ü"}, "c": (1, 2)})
    assert reading.read_sealed(path) == {"a": 1.5, "b": {"2": "ü"}, "c": [1, 2]}
    for text in (path.read_text().replace("1.5", "2.5"), "{}", "[]", '{"a": 1.5}', "", '{"seal": null}'):
        path.write_text(text)
        assert reading.read_sealed(path) is None
    assert reading.read_sealed(tmp_path / "none.json") is None


# ---- memory


def tight(most: int, seen: list[int], error: BaseException) -> Any:
    """A predictor that has room for so many images."""

    def predict(x: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        if len(x) > most:
            raise error
        seen.append(len(x))
        return x.flatten(1)[:, :3] * 2

    return predict


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()], ids=repr)
@pytest.mark.sample(1)
def test_the_exam_halves_a_batch_that_does_not_fit(error: BaseException) -> None:
    x, seen = torch.rand(11, 1, 4, 4), []
    got = logits._fitting(tight(2, seen, error), x)
    assert np.array_equal(got, x.flatten(1)[:, :3].numpy() * 2)
    assert max(seen) == 2 and sum(seen) == 11
    with pytest.raises(UserError, match="evaluate: not enough memory for a single image"):
        logits._fitting(tight(0, seen, error), x)
    with pytest.raises(RuntimeError, match="shapes"):
        logits._fitting(tight(2, seen, RuntimeError("shapes do not fit")), x)


def test_a_run_with_too_little_memory_for_the_exam_gives_the_same_rows(
    setting: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    setting |= {"paper_protocol": {"t": [2], "nodes": 2, "probe_per_class": 2}}
    run(setting, "prune")
    real, sizes = logits.predictor, []

    def predictor(model: Any) -> Any:
        def predict(x: torch.Tensor) -> torch.Tensor:
            if len(x) > 1:
                raise torch.OutOfMemoryError("CUDA out of memory")
            sizes.append(len(x))
            return real(model)(x)

        return predict

    with monkeypatch.context() as patch:
        patch.setattr(contenders, "predictor", predictor)
        patch.setattr(side_by_side, "predictor", predictor)
        rows = run(setting)["rows"]
    assert sizes
    again = run(setting | {"out": setting["out"] + "2"})["rows"]
    for row, other in zip(rows, again, strict=True):
        assert row["top1"] == other["top1"]
        assert row["mean_true_probability"] == pytest.approx(other["mean_true_probability"], abs=1e-6)


def test_what_counts_as_a_lack_of_memory() -> None:
    assert memory.lacking(MemoryError()) and memory.lacking(RuntimeError("[enforce fail] not enough memory: you tried"))
    assert not memory.lacking(RuntimeError("shapes")) and not memory.lacking(ValueError("out of memory"))


# ---- logits that are none


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
@pytest.mark.sample(1)
def test_logits_that_are_not_finite_for_images_of_another_group(
    setting: dict[str, Any], monkeypatch: pytest.MonkeyPatch, wrong: float
) -> None:
    """The groups' own images are sound; what is not shows only where every test image is looked at."""
    setting["groups"] = {"one": ["circle"], "two": ["cross"]}
    real = logits.predictor
    bad = opening.open_model(Model(name=setting["model"]["name"])).transform()(picture(2, 0))

    def predictor(model: Any) -> Any:
        def predict(x: torch.Tensor) -> torch.Tensor:
            made = real(model)(x).clone()
            made[(x[:, :, -9:, :9].mean((1, 2, 3)) > bad[:, -9:, :9].mean() - 0.5)] = wrong
            return made

        return predict

    run(setting, "prune")
    monkeypatch.setattr(contenders, "predictor", predictor)
    monkeypatch.setattr(side_by_side, "predictor", predictor)
    with pytest.raises(UserError, match="logits that are not finite") as caught:
        run(setting)
    assert len(str(caught.value).splitlines()) == 1


# ---- an ONNX file of another model


def foreign(path: Path, dims: list[Any], kind: int = onnx.TensorProto.FLOAT, inputs: int = 1, out: Any = None) -> Path:
    """A sound file with inputs of such a shape, of which the first is answered."""
    ends = [onnx.helper.make_tensor_value_info(f"x{i}", kind, dims) for i in range(inputs)]
    answer = onnx.helper.make_tensor_value_info("y", kind, dims if out is None else out)
    operation = "Identity" if out is None else "ReduceMax"
    options = {} if out is None else {"keepdims": 0}
    node = onnx.helper.make_node(operation, ["x0"], ["y"], **options)
    graph = onnx.helper.make_graph([node], "other", ends, [answer])
    made = onnx.helper.make_model(graph, ir_version=8, opset_imports=[onnx.helper.make_opsetid("", 17)])
    onnx.save(made, str(path))
    return path


OTHERS: dict[str, dict[str, Any]] = {
    "tokens": {"dims": ["n", 7], "kind": onnx.TensorProto.INT64},
    "two inputs": {"dims": ["n", 7], "inputs": 2},
    "no rank": {"dims": []},
    "scalar answer": {"dims": ["n", 1, 28, 28], "out": []},
    "open sides": {"dims": ["n", 1, "h", "w"]},
    "text": {"dims": ["n"], "kind": onnx.TensorProto.STRING},
}


@pytest.mark.parametrize("other", OTHERS)
def test_an_onnx_file_of_another_model(tmp_path: Path, other: str) -> None:
    path = foreign(tmp_path / "other.onnx", **OTHERS[other])
    with pytest.raises(UserError) as caught:
        predict.open_model(path)
    assert len(str(caught.value).splitlines()) == 1 and "other.onnx" in str(caught.value)
    with pytest.raises(UserError) as caught:
        bench.bench({"other": path}, [2], ["cpu"], seconds=0)
    assert len(str(caught.value).splitlines()) == 1


def test_a_fixed_batch_is_said_when_it_is_timed(tmp_path: Path) -> None:
    path = foreign(tmp_path / "one.onnx", [1, 7])
    assert bench.bench({"one": path}, [1], ["cpu"], seconds=0)[0]["rounds"] == 5
    with pytest.raises(UserError, match="onnxruntime cannot run it"):
        bench.bench({"one": path}, [8], ["cpu"], seconds=0)


@pytest.mark.parametrize("cut", [0, 1, 40, -1])
def test_a_truncated_onnx_file(tmp_path: Path, cut: int) -> None:
    path = foreign(tmp_path / "m.onnx", ["n", 7])
    path.write_bytes(path.read_bytes()[:cut])
    for attempt in (lambda: predict.open_model(path), lambda: bench.bench({"m": path}, [1], ["cpu"], seconds=0)):
        with pytest.raises(UserError) as caught:
            attempt()
        assert len(str(caught.value).splitlines()) == 1 and "m.onnx" in str(caught.value)


# ---- what is printed


def test_a_folder_named_like_markup(setting: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Rich would take `[/x]` for the end of a style that nobody began."""
    path = write_recipe(tmp_path / "r.yaml", setting | {"groups": {"red": ["circle"]}})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["vitprune", "evaluate", str(path), "--out", str(tmp_path / "[/x][red]")])
        with pytest.raises(SystemExit) as caught:
            app.main()
    assert not caught.value.code
    said = capfd.readouterr().out
    assert "[/x][red]" in said and "jas [red]" in said
