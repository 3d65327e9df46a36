"""Scales behind linear layers (LayerScale's γ) as part of the layers' own weights.

x ↦ γ ⊙ (x W + b) is x ↦ x (W · diag γ) + γ ⊙ b: one pass over the values less per branch. Such passes do not shrink with the
units, so a slim model gains more by it than a dense one.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
from onnx import ModelProto, NodeProto, numpy_helper


def fold(proto: ModelProto) -> int:
    """Multiplications of a Gemm's output by a constant per column go into its weight and bias, in place; how many did.

    Left alone: a Gemm whose weights or whose output something else reads too.
    """
    graph = proto.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    reads = Counter(name for node in graph.node for name in node.input)
    reads.update(out.name for out in graph.output)
    count = 0
    for node in [n for n in graph.node if n.op_type == "Mul"]:
        scales = [name for name in node.input if name in constants and len(constants[name].dims) == 1]
        source = next((name for name in node.input if name not in constants), None)
        if len(scales) != 1 or source is None:
            continue
        gemm = _gemm(source, makers, reads)
        if gemm is None or gemm.input[1] not in constants or any(reads[name] != 1 for name in gemm.input[1:]):
            continue
        weight, bias = (numpy_helper.to_array(constants[name]) for name in gemm.input[1:3])
        scale = numpy_helper.to_array(constants[scales[0]])
        if weight.shape[1] != scale.shape[0] or bias.shape != scale.shape:
            continue
        for name, values in zip(gemm.input[1:3], (weight, bias), strict=True):
            constants[name].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values * scale), name))
        makers[source].output[:] = node.output
        graph.node.remove(node)
        count += 1
    return count


def _gemm(name: str, makers: dict[str, NodeProto], reads: Counter[str]) -> NodeProto | None:
    """The plain Gemm, with a bias, whose rows this value is, reshaped or not; or None."""
    node = makers.get(name)
    if node is None or reads[name] != 1:
        return None
    if node.op_type == "Reshape":
        return _gemm(node.input[0], makers, reads) if _is_gemm(makers.get(node.input[0])) else None
    return node if _is_gemm(node) else None


def _is_gemm(node: NodeProto | None) -> bool:
    return node is not None and node.op_type == "Gemm" and len(node.input) == 3 and not node.attribute
