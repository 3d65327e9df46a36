"""ONNX files: equal to torch at every batch size, checked, with labels and preprocessing inside."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from small import LABELS, leftovers, plan_of, tiny_model
from torch import Tensor, nn

import vitprune
from vitprune.core.errors import UserError
from vitprune.deploy import runtime
from vitprune.deploy.onnx import exporting
from vitprune.pruning import surgery

META = {"labels": list(LABELS), "preprocessing": {"mean": [0.5]}, "recipe_hash": "0123ab", "note": 'ä "q" \n'}


def ragged(model: nn.Module) -> nn.Module:
    return surgery.slim(model, plan_of([torch.arange(64) % 3 == 0, torch.arange(64) < 5]))


@pytest.fixture(scope="module")
def dense() -> nn.Module:
    return tiny_model(in_chans=3)


@pytest.fixture(scope="module")
def exported(dense: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    """A slim model with another width in each block, and its file."""
    path = tmp_path_factory.mktemp("onnx") / "sub" / "model.onnx"
    slim = ragged(dense)
    exporting.export(slim, path, META)
    return slim, path


def images(count: int = 7) -> Tensor:
    return torch.randn(count, 3, 28, 28, generator=torch.Generator().manual_seed(1))


def test_equal_to_torch_at_every_batch(exported: tuple[nn.Module, Path]) -> None:
    slim, path = exported
    made = runtime.session(path)
    for batch in (1, 2, 7, 33):
        x = images(batch)
        with torch.no_grad():
            expected = slim(x).numpy()
        got = runtime.predict(made, x.numpy())
        assert got.shape == (batch, 3) and got.dtype == np.float32
        np.testing.assert_allclose(got, expected, atol=1e-4)
        assert np.array_equal(got.argmax(1), expected.argmax(1))


def test_parity_measures_what_differs(exported: tuple[nn.Module, Path], dense: nn.Module) -> None:
    slim, path = exported
    same = exporting.parity(slim, path, images())
    assert set(same) == {1, 2, 7} and max(same.values()) < 1e-4
    assert min(exporting.parity(dense, path, images()).values()) > 1e-2


def test_the_file_is_sound_and_its_batch_dynamic(exported: tuple[nn.Module, Path]) -> None:
    _, path = exported
    proto = onnx.load(str(path))
    onnx.checker.check_model(proto, full_check=True)
    entry, result = proto.graph.input[0], proto.graph.output[0]
    assert (entry.name, result.name) == ("images", "logits")
    assert len(proto.graph.input) == len(proto.graph.output) == 1
    assert entry.type.tensor_type.shape.dim[0].dim_param and result.type.tensor_type.shape.dim[0].dim_param
    assert [d.dim_value for d in entry.type.tensor_type.shape.dim][1:] == [3, 28, 28]
    assert [p.name for p in path.parent.iterdir()] == ["model.onnx"]  # one file, no external data


def test_the_widths_in_the_file_are_the_slim_ones(exported: tuple[nn.Module, Path]) -> None:
    _, path = exported
    shapes = {tuple(t.dims) for t in onnx.load(str(path)).graph.initializer}
    assert {(22, 16), (16, 22), (16, 5), (5, 16)} & shapes
    assert not {(64, 16), (16, 64)} & shapes


def test_metadata(exported: tuple[nn.Module, Path]) -> None:
    found = exporting.metadata(exported[1])
    assert json.loads(found["labels"]) == list(LABELS) and json.loads(found["preprocessing"]) == {"mean": [0.5]}
    assert found["recipe_hash"] == "0123ab" and found["note"] == 'ä "q" \n'
    session = runtime.session(exported[1])
    assert session.get_modelmeta().custom_metadata_map["recipe_hash"] == "0123ab"


def test_a_failed_export_leaves_the_old_file(
    exported: tuple[nn.Module, Path], dense: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(shutil.copy(exported[1], tmp_path / "model.onnx"))
    before = path.read_bytes()

    def save(_: object, name: str) -> None:
        Path(name).write_bytes(b"half a file")
        raise KeyboardInterrupt

    monkeypatch.setattr(onnx, "save", save)
    with pytest.raises(KeyboardInterrupt):
        exporting.export(dense, path, {})
    assert path.read_bytes() == before and leftovers(tmp_path) == []


def test_the_library_exports_too(dense: nn.Module, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    dense.train()
    made = vitprune.export(dense, tmp_path / "dense.onnx", {"a": "b"})
    assert dense.training and exporting.metadata(made) == {"a": "b"}
    dense.eval()
    assert max(exporting.parity(dense, made, images()).values()) < 1e-4
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("provider", ["cuda", "tensorrt", "warp", "CUDAExecutionProvider"])
def test_an_unavailable_provider(exported: tuple[nn.Module, Path], provider: str) -> None:
    import onnxruntime

    if runtime.PROVIDERS.get(provider, provider) in onnxruntime.get_available_providers():
        pytest.skip("available here")
    with pytest.raises(UserError, match=f"provider `{provider}`: not available") as caught:
        runtime.session(exported[1], provider)
    assert "CPU" in str(caught.value) and len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("content", [b"", b"not onnx", None, b"half"])
def test_a_file_that_is_not_onnx(exported: tuple[nn.Module, Path], tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "x.onnx"
    if content is not None:
        path.write_bytes(exported[1].read_bytes()[:5000] if content == b"half" else content)
    with pytest.raises(UserError, match=r"x\.onnx") as caught:
        runtime.session(path)
    assert len(str(caught.value).splitlines()) == 1


def test_two_sessions_in_turn(exported: tuple[nn.Module, Path]) -> None:
    made = runtime.session(exported[1], threads=1)
    found = runtime.interleaved({"a": made, "b": made}, images(2).numpy(), seconds=0.01)
    for figures in found.values():
        assert 0 < figures["q25_ms"] <= figures["median_ms"] <= figures["q75_ms"]


def test_a_second_runtime_package_is_not_needed_to_explain_a_missing_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(UserError, match="pip install"):
        runtime.onnxruntime()
