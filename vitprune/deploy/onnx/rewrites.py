"""The exporter's graph in fewer passes over the values, with ONNX's own operators only.

torch.onnx writes timm's attention as Reshape → Transpose → three Slice and Squeeze → Attention → Transpose → Reshape;
on a processor those copies cost about as much as the attention itself. The operator (ONNX, opset 23) also takes
[B, T, D] with the number of heads as an attribute, so a Split into q, k, v is all that is needed. A block that is not
of this form (normalised queries, a mask) is left as it was exported. Linear layers become Gemm, bias included.

onnxruntime's transformer optimizer (model type vit) is not used: its SkipLayerNormalization made the whole model half
as slow again on a processor, and contrib operators tie a file to onnxruntime. Slow passes cost a slim model more than
a dense one, so they are also what stands between the multiply-adds that were removed and the time.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper

Values = dict[str, Any]


def fuse(proto: ModelProto) -> int:
    """One Attention on [B, T, D] for every attention of the known form, in place; how many that were."""
    graph = proto.graph
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    readers: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    count = 0
    for node in [n for n in graph.node if n.op_type == "Attention" and n.domain == ""]:
        found = _surroundings(node, makers, readers, values) or _apart(node, makers, readers, values)
        if found is None:
            continue
        parts, heads, last = found
        split = []
        if len(parts) == 1:
            stem = _unused(graph, f"{last.output[0]}_split")
            made = [f"{stem}_{part}" for part in "qkv"]
            split = [helper.make_node("Split", parts, made, name=stem, axis=-1, num_outputs=3)]
            parts = made
        scale = {a.name: a.f for a in node.attribute if a.name == "scale"}
        attention = helper.make_node(
            "Attention", parts, [last.output[0]], name=node.name, q_num_heads=heads, kv_num_heads=heads, **scale
        )
        at = list(graph.node).index(last)
        graph.node.remove(last)
        for new in [attention, *split]:
            graph.node.insert(at, new)
        count += 1
    drop_unused(graph)
    return count


def add_bias_in_gemm(proto: ModelProto) -> int:
    """MatMul and Add of a constant weight and bias become one Gemm on [B·T, D]; how many. The reshapes copy nothing.

    One pass over the values less per product. fc1 keeps its Add: onnxruntime fuses that one with the Gelu behind it.
    """
    graph = proto.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    shapes = {note.name: [dim.dim_value for dim in note.type.tensor_type.shape.dim] for note in graph.value_info}
    readers: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    count = 0
    for node in [n for n in graph.node if n.op_type == "MatMul" and n.input[1] in constants]:
        add = readers[node.output[0]][0]
        bias = [name for name in add.input if name in constants and len(constants[name].dims) == 1]
        shape = shapes.get(node.output[0], [])
        if add.op_type != "Add" or len(readers[node.output[0]]) != 1 or not bias or len(shape) != 3 or not shape[1]:
            continue
        if any(reader.op_type == "Gelu" for reader in readers[add.output[0]]):
            continue
        inner, outer = constants[node.input[1]].dims
        flat, back = _unused(graph, f"{node.name}_flat"), _unused(graph, f"{node.name}_back")
        graph.initializer.append(numpy_helper.from_array(np.array([-1, inner], np.int64), f"{flat}_shape"))
        graph.initializer.append(numpy_helper.from_array(np.array([-1, shape[1], outer], np.int64), f"{back}_shape"))
        made = [
            helper.make_node("Reshape", [node.input[0], f"{flat}_shape"], [flat], name=flat),
            helper.make_node("Gemm", [flat, node.input[1], bias[0]], [f"{back}_gemm"], name=node.name),
            helper.make_node("Reshape", [f"{back}_gemm", f"{back}_shape"], [add.output[0]], name=back),
        ]
        at = list(graph.node).index(add)
        graph.node.remove(add)
        for new in reversed(made):
            graph.node.insert(at, new)
        graph.node.remove(node)
        count += 1
    return count


def _surroundings(
    node: NodeProto, makers: dict[str, NodeProto], readers: dict[str, list[NodeProto]], values: Values
) -> tuple[list[str], int, NodeProto] | None:
    """The qkv tensor [B, T, 3·D], the number of heads and the Reshape behind the attention, or None."""
    if len([name for name in node.input if name]) != 3:
        return None
    stacked = set()
    for position, name in enumerate(node.input):
        squeeze = makers.get(name)
        cut = makers.get(squeeze.input[0]) if squeeze is not None and squeeze.op_type == "Squeeze" else None
        if cut is None or cut.op_type != "Slice" or _list(values, cut, 1) != [position]:
            return None
        if _list(values, cut, 2) != [position + 1] or _list(values, cut, 3) != [0]:
            return None
        stacked.add(cut.input[0])
    first = makers.get(stacked.pop()) if len(stacked) == 1 else None
    if first is None or _perm(first) != [2, 0, 3, 1, 4]:
        return None
    shape = makers.get(first.input[0])
    dims = _list(values, shape, 1) if shape is not None and shape.op_type == "Reshape" else None
    last = _behind(node, readers)
    if shape is None or dims is None or len(dims) != 5 or dims[2] != 3 or last is None:
        return None
    return [shape.input[0]], dims[3], last


def _apart(
    node: NodeProto, makers: dict[str, NodeProto], readers: dict[str, list[NodeProto]], values: Values
) -> tuple[list[str], int, NodeProto] | None:
    """As `_surroundings`, where one query asks, and a layer each made it, the keys and the values [B, T, D]; or None."""
    if len([name for name in node.input if name]) != 3:
        return None
    found, heads, asking = [], set(), []
    for turn in (makers.get(name) for name in node.input[:3]):
        shape = makers.get(turn.input[0]) if turn is not None and _perm(turn) == [0, 2, 1, 3] else None
        dims = _list(values, shape, 1) if shape is not None and shape.op_type == "Reshape" else None
        if shape is None or dims is None or len(dims) != 4:
            return None
        found.append(shape.input[0])
        heads.add(dims[2])
        asking.append(dims[1])
    last = _behind(node, readers)
    return (found, heads.pop(), last) if len(heads) == 1 and asking[0] == 1 and last is not None else None


def _behind(node: NodeProto, readers: dict[str, list[NodeProto]]) -> NodeProto | None:
    """The Reshape to [B, T, D] behind the attention, or None."""
    turned = readers.get(node.output[0], [])
    if len(turned) != 1 or _perm(turned[0]) != [0, 2, 1, 3]:
        return None
    last = readers.get(turned[0].output[0], [])
    return last[0] if len(last) == 1 and last[0].op_type == "Reshape" else None


def _list(values: Values, node: NodeProto, position: int) -> list[int] | None:
    """A constant input as integers."""
    name = node.input[position] if position < len(node.input) else ""
    return [int(v) for v in values[name].reshape(-1)] if name in values else None


def _perm(node: NodeProto) -> list[int] | None:
    return next((list(a.ints) for a in node.attribute if a.name == "perm"), None)


def drop_unused(graph: GraphProto) -> None:
    """Remove nodes, initialisers and shape notes that lead to no output."""
    wanted = {out.name for out in graph.output}
    for node in reversed(list(graph.node)):
        if wanted & set(node.output):
            wanted |= set(node.input)
        else:
            graph.node.remove(node)
    for tensor in [t for t in graph.initializer if t.name not in wanted]:
        graph.initializer.remove(tensor)
    made = {name for node in graph.node for name in node.output}
    for note in [v for v in graph.value_info if v.name not in made]:
        graph.value_info.remove(note)


def distinct_names(graph: GraphProto) -> None:
    """Every node gets a name of its own, and every value between input and output one that no other name begins with.

    onnxruntime's converters name what they add by appending to the names that are there (a copy of the shared bias
    `cat_1` becomes `cat_12`) and do not look whether the result is taken; with a number of its own in front it is not.
    Graphs with graphs inside are left as they are: names there may mean the values outside.
    """
    if any(attribute.HasField("g") or attribute.graphs for node in graph.node for attribute in node.attribute):
        return
    edges = {value.name for value in [*graph.input, *graph.output]} | {""}
    inside = [t.name for t in graph.initializer] + [name for node in graph.node for name in node.output]
    new = {name: f"v{i}_{name}" for i, name in enumerate(dict.fromkeys(inside)) if name not in edges}
    for node in graph.node:
        node.input[:] = [new.get(name, name) for name in node.input]
        node.output[:] = [new.get(name, name) for name in node.output]
    for named in [*graph.initializer, *graph.value_info]:
        named.name = new.get(named.name, named.name)
    known = {""}
    for i, node in enumerate(graph.node):
        while node.name in known:
            node.name = f"{node.name or node.op_type}_{i}"
        known.add(node.name)


def _unused(graph: GraphProto, name: str) -> str:
    """`name`, longer where a value or node of the graph begins with it."""
    taken = [t.name for t in graph.initializer] + [v.name for v in graph.input]
    taken += [n for node in graph.node for n in [node.name, *node.output]]
    while any(other.startswith(name) for other in taken):
        name += "x"
    return name


def node_counts(proto: ModelProto) -> dict[str, int]:
    """Nodes per operator; one from another domain than ONNX's own carries it as a prefix."""
    names = Counter(
        f"{n.domain}.{n.op_type}" if n.domain not in ("", "ai.onnx") else n.op_type for n in proto.graph.node
    )
    return dict(sorted(names.items()))
