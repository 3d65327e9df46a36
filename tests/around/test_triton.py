"""A Triton model repository, read by Triton's own schema where its client is installed; other runtimes on the same file."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from small import LABELS, config, linear_onnx, tiny_model

from vitprune.core.errors import UserError
from vitprune.deploy import predict, runtime, triton
from vitprune.deploy.onnx import exporting

KNOWN = ("input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    cfg = config()["pretrained_cfg"]
    linear_onnx(
        tmp_path / "run" / "model.onnx", 0, {"labels": LABELS, "preprocessing": {key: cfg[key] for key in KNOWN}}
    )
    return tmp_path / "run"


def test_the_repository(model: Path, tmp_path: Path) -> None:
    made = triton.write(model, tmp_path / "repository", most=16)
    own = tmp_path / "repository" / "run"
    assert {p.relative_to(own).as_posix() for p in made} == {
        "1/model.onnx", "config.pbtxt", "labels.txt", "preprocessing.json", "build-tensorrt.sh",
    }  # fmt: skip
    assert (own / "1" / "model.onnx").read_bytes() == (model / "model.onnx").read_bytes()
    assert (own / "labels.txt").read_text().splitlines() == list(LABELS)
    text = (own / "config.pbtxt").read_text()
    session = predict.open_model(model).session
    assert f'name: "{session.get_inputs()[0].name}" data_type: TYPE_FP32 dims: [ 1, 28, 28 ]' in text
    assert f'name: "{session.get_outputs()[0].name}" data_type: TYPE_FP32 dims: [ 3 ]' in text
    assert "max_batch_size: 16" in text and "preferred_batch_size: [ 4, 8, 16 ]" in text
    assert json.loads((own / "preprocessing.json").read_text())["size"] == [28, 28]
    assert triton.write(model, tmp_path / "repository", most=16) == made  # once more, over its own
    (tmp_path / "repository" / "mine").mkdir()
    with pytest.raises(UserError, match="holds something else"):
        triton.write(model, tmp_path / "repository", "mine")
    with pytest.raises(UserError, match="--name"):
        triton.write(model, tmp_path / "repository", "../out")


@pytest.mark.skipif(os.name == "nt", reason="a shell script")
def test_the_tensorrt_script(model: Path, tmp_path: Path) -> None:
    """Run by a shell with a trtexec that writes down what it was asked; Triton then serves the engine."""
    triton.write(model, tmp_path / "repository", "m")
    own = tmp_path / "repository" / "m"
    fake = tmp_path / "bin" / "trtexec"
    fake.parent.mkdir()
    fake.write_text('#!/bin/sh\nprintf "%s\\n" "$@" > asked.txt\ntouch 1/model.plan\n')
    fake.chmod(0o755)
    env = os.environ | {"PATH": f"{fake.parent}{os.pathsep}{os.environ['PATH']}"}
    subprocess.run([own / "build-tensorrt.sh"], check=True, env=env, cwd=tmp_path, timeout=60)
    asked = (own / "asked.txt").read_text().split()
    assert {"--onnx=1/model.onnx", "--fp16", "--minShapes=images:1x1x28x28", "--maxShapes=images:32x1x28x28"} <= set(
        asked
    )
    text = (own / "config.pbtxt").read_text()
    assert re.search(r'^backend: "tensorrt"$', text, re.M) and 'default_model_filename: "model.plan"' in text
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", own / "build-tensorrt.sh"], check=True, timeout=60)


@pytest.mark.slow
def test_triton_reads_the_configuration(model: Path, tmp_path: Path) -> None:
    schema = pytest.importorskip("tritonclient.grpc.model_config_pb2")
    from google.protobuf import text_format

    triton.write(model, tmp_path / "repository", "m", most=8)
    found = text_format.Parse((tmp_path / "repository" / "m" / "config.pbtxt").read_text(), schema.ModelConfig())
    assert (found.name, found.backend, found.max_batch_size) == ("m", "onnxruntime", 8)
    assert list(found.input[0].dims) == [1, 28, 28] and found.output[0].label_filename == "labels.txt"
    assert list(found.dynamic_batching.preferred_batch_size) == [4, 8]


@pytest.mark.slow
def test_openvino_gives_the_same_logits(tmp_path: Path) -> None:
    """A ViT's exported file, as it is, at two batch sizes; in float32, which OpenVINO has to be asked for."""
    openvino = pytest.importorskip("openvino")
    cfg = config()["pretrained_cfg"]
    about = {"labels": list(LABELS), "preprocessing": {key: cfg[key] for key in KNOWN}}
    exporting.export(tiny_model(), tmp_path / "model.onnx", about)
    compiled = openvino.Core().compile_model(tmp_path / "model.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    session = runtime.session(tmp_path / "model.onnx")
    for batch in (1, 3):
        x = np.random.default_rng(batch).normal(size=(batch, 1, 28, 28)).astype(np.float32)
        assert np.allclose(compiled(x)[0], runtime.predict(session, x), atol=1e-4, rtol=1e-4)
