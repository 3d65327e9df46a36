"""LayerScale is part of the exported layers' weights: fewer nodes, the same values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from small import plan_of, tiny_model

from vitprune.deploy.onnx import exporting, scales
from vitprune.pruning import surgery


def test_layerscale_goes_into_the_weights(tmp_path: Path) -> None:
    model = tiny_model(in_chans=3, init_values=0.1)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("gamma"):
                parameter.copy_(torch.rand(parameter.shape, generator=draw) - 0.3)  # none alike, some below zero
    slim = surgery.slim(model, plan_of([torch.arange(64) % 3 == 0, torch.arange(64) < 5]))
    exporting.export(slim, tmp_path / "slim.onnx", {})
    proto = onnx.load(str(tmp_path / "slim.onnx"))
    assert "Mul" not in exporting.facts(tmp_path / "slim.onnx")["nodes"]
    assert not [t.name for t in proto.graph.initializer if t.name.endswith("gamma")]
    images = torch.randn(7, 3, 28, 28, generator=draw)
    assert max(exporting.parity(slim, tmp_path / "slim.onnx", images).values()) < 1e-5


def graph(twice: str = "") -> onnx.ModelProto:
    """x → Gemm → Reshape → Mul γ; `twice`: the value that is read a second time."""
    draw = np.random.default_rng(0)
    weights = {"w": draw.normal(size=(4, 3)), "b": draw.normal(size=3), "s": draw.normal(size=3)}
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["g"]),
        helper.make_node("Reshape", ["g", "shape"], ["r"]),
        helper.make_node("Mul", ["s", "r"], ["y"]),
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    if twice:
        nodes.append(helper.make_node("Neg", [twice], ["other"]))
        outputs.append(helper.make_tensor_value_info("other", TensorProto.FLOAT, None))
    constants = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]
    constants.append(numpy_helper.from_array(np.array([1, 5, 3], np.int64), "shape"))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [5, 4])
    return helper.make_model(helper.make_graph(nodes, "g", [x], outputs, constants))


@pytest.mark.parametrize(("twice", "folded"), [("", 1), ("s", 1), ("w", 0), ("b", 0), ("g", 0), ("r", 0)])
def test_what_others_read_stays(twice: str, folded: int) -> None:
    proto = graph(twice)
    x = np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32)
    before = ReferenceEvaluator(proto).run(None, {"x": x})
    assert scales.fold(proto) == folded
    for old, new in zip(before, ReferenceEvaluator(proto).run(None, {"x": x}), strict=True):
        np.testing.assert_allclose(new, old, rtol=1e-5, atol=1e-6)
