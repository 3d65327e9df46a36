"""Graphs of one attention or one FFN, of the operators that the exporter writes, to be timed; their weights mean nothing.

What does not follow the size (norms, residuals, scales) is left out. Input [batch, T, D]; without torch, in no time.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

OPSET, IR = 23, 11


class _Graph:
    """Nodes and weights, added one after the other."""

    def __init__(self, tokens: int, width: int) -> None:
        self.shape = ["batch", tokens, width]
        self.nodes: list[NodeProto] = []
        self.weights: list[TensorProto] = []
        self.draw = np.random.default_rng(0)

    def add(self, kind: str, inputs: Sequence[str], outputs: int = 1, **attributes: object) -> list[str]:
        """The names of what a node gives."""
        names = [f"v{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, **attributes))
        return names

    def weight(self, *shape: int) -> str:
        """A weight of small random values."""
        return self.constant((0.02 * self.draw.standard_normal(shape)).astype(np.float32))

    def constant(self, values: np.ndarray) -> str:
        self.weights.append(numpy_helper.from_array(values, f"w{len(self.weights)}"))
        return self.weights[-1].name

    def gemm(self, x: str, tokens: int, before: int, after: int) -> str:
        """A linear layer as the exporter writes it: a product of rows, bias included."""
        (rows,) = self.add("Reshape", [x, self.constant(np.array([-1, before], np.int64))])
        (made,) = self.add("Gemm", [rows, self.weight(before, after), self.weight(after)])
        return self.add("Reshape", [made, self.constant(np.array([-1, tokens, after], np.int64))])[0]

    def first(self, x: str, tokens: int) -> str:
        """The first tokens."""
        bounds = [self.constant(np.array([value], np.int64)) for value in (0, tokens, 1)]
        return self.add("Slice", [x, *bounds])[0]

    def bytes(self, last: str, tokens: int) -> bytes:
        """The graph that ends in `last`, as a file's content."""
        made = helper.make_graph(
            self.nodes,
            "piece",
            [helper.make_tensor_value_info("images", TensorProto.FLOAT, self.shape)],
            [helper.make_tensor_value_info(last, TensorProto.FLOAT, ["batch", tokens, None])],
            self.weights,
        )
        opset = [helper.make_opsetid("", OPSET)]
        return bytes(helper.make_model(made, opset_imports=opset, ir_version=IR).SerializeToString())


def attention(width: int, tokens: int, read: int, heads: int, dim: int) -> bytes:
    """Attention with `heads` of `dim` dimensions over all tokens, asked for and answered at the first `read` of them."""
    graph, inner = _Graph(tokens, width), heads * dim
    if read == tokens:
        parts = graph.add("Split", [graph.gemm("images", tokens, width, 3 * inner)], 3, axis=-1, num_outputs=3)
    else:
        parts = [graph.gemm(graph.first("images", read), read, width, inner)]
        parts += [graph.gemm("images", tokens, width, inner) for _ in "kv"]
    (mixed,) = graph.add("Attention", parts, q_num_heads=heads, kv_num_heads=heads)
    return graph.bytes(graph.gemm(mixed, read, inner, width), read)


def ffn(width: int, tokens: int, read: int, units: int, parts: int = 1, norm: bool = False, act: str = "gelu") -> bytes:
    """An FFN of `units` hidden units, at the first `read` of the tokens; of two `parts`, one is the other's gate."""
    graph, made = _Graph(tokens, width), parts * units
    x = "images" if read == tokens else graph.first("images", read)
    (hidden,) = graph.add("MatMul", [x, graph.weight(width, made)])
    (hidden,) = graph.add("Add", [hidden, graph.weight(made)])
    gate = None
    if parts == 2:
        hidden, gate = graph.add("Split", [hidden], 2, axis=-1, num_outputs=2)
    if act == "gelu":
        (hidden,) = graph.add("Gelu", [hidden])
    else:
        (hidden,) = graph.add("Mul", [hidden, graph.add("Sigmoid", [hidden])[0]])
    if gate is not None:
        (hidden,) = graph.add("Mul", [hidden, gate])
    if norm:
        (hidden,) = graph.add("LayerNormalization", [hidden, graph.weight(units), graph.weight(units)], axis=-1)
    return graph.bytes(graph.gemm(hidden, read, units, width), read)
