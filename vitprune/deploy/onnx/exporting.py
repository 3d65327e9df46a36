"""Torch model → one ONNX file with a dynamic batch, checked, with preprocessing and labels inside.

From LARGE bytes of weights on, they lie in `<name>.onnx.data` beside it, as protobuf holds no more than two gigabytes.

Only the onnx_* files import onnx. The graph uses ONNX's own operators, no contrib ones, so it is not tied to
onnxruntime; what onnxruntime fuses beyond that, it fuses when it opens the file.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from vitprune.core import device, external, ledger
from vitprune.core.files import put, replacing, scratch
from vitprune.core.reading import Json, sha256
from vitprune.core.version import __version__
from vitprune.deploy import runtime
from vitprune.deploy.onnx import outputs, rewrites, scales
from vitprune.model import families

OPSET = 23  # the first with an Attention operator
LARGE = 3 << 29  # bytes of weights: 1.5 GiB
SMALL = 1024  # bytes of a tensor that stays in the graph, as what shapes are worked out from must
ALIGNED = 4096  # where a tensor may start in the file beside, for those who map it into memory
PARITY_BATCHES = (1, 2, 7)


def export(model: nn.Module, path: Path, metadata: Json) -> None:
    """Write `model` to `path`; `metadata` values go to metadata_props as text or JSON."""
    ledger.guard(path, anywhere=True)  # before the work
    example = torch.zeros(2, *families.input_shape(model), device=device.device_of(model))
    with _quiet(), families.written_out(model):
        program = torch.onnx.export(
            outputs.told(model),
            (example,),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            input_names=["images"],
            output_names=outputs.names_of(model),
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    rewrites.fuse(proto)
    rewrites.add_bias_in_gemm(proto)
    scales.fold(proto)
    rewrites.drop_unused(proto.graph)
    save(proto, path, metadata)


def save(proto: onnx.ModelProto, path: Path, metadata: Json) -> None:
    """Write a graph with exactly this metadata, checked; a large one with its weights beside it, and without them here."""
    for file in (path, data_of(path)):
        ledger.guard(file, anywhere=True)
    proto.producer_name, proto.producer_version = "vitprune", __version__
    if weight_bytes(proto) < LARGE:
        with replacing(path) as temporary:
            write(proto, temporary, metadata)
        ledger.discard(data_of(path))  # of a larger model that was here before
        return
    with scratch(path.parent) as folder:
        whole = folder / path.name
        _move_out(proto, data_of(whole))
        about = {"file": data_of(path).name, "bytes": data_of(whole).stat().st_size, "sha256": sha256(data_of(whole))}
        write(proto, whole, metadata | {external.KEY: about})
        ledger.discard(data_of(path))  # on the way a file lacks its weights, which is seen, and never has another's
        put(whole, path)
        put(data_of(whole), data_of(path))


def data_of(path: Path) -> Path:
    """Where the weights of a large ONNX file are."""
    return path.with_name(f"{path.name}.data")


def parts(path: Path) -> list[Path]:
    """An ONNX file, and the file beside it that holds its weights where it is large."""
    return [path, *external.check(path)]


def weight_bytes(proto: onnx.ModelProto) -> int:
    """Bytes of the weights that a graph holds itself."""
    return sum(len(tensor.raw_data) for tensor in proto.graph.initializer)


def bytes_of(path: Path) -> int:
    """Bytes of an ONNX file with its weights."""
    return sum(part.stat().st_size for part in parts(path))


def _move_out(proto: onnx.ModelProto, data: Path) -> None:
    """Write the weights to a file beside and leave in the graph where they are."""
    with data.open("wb") as handle:
        for tensor in proto.graph.initializer:
            if len(tensor.raw_data) < SMALL:
                continue
            handle.write(bytes(-handle.tell() % ALIGNED))
            place = {"location": data.name, "offset": str(handle.tell()), "length": str(len(tensor.raw_data))}
            handle.write(tensor.raw_data)
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            del tensor.external_data[:]
            for key, value in place.items():
                entry = tensor.external_data.add()
                entry.key, entry.value = key, value


def write(proto: onnx.ModelProto, path: Path, metadata: Json) -> None:
    """Save a graph with exactly this metadata and check the file.

    The exporter's remarks on each node go: they are stack traces, with the paths of the machine they were made on.
    """
    _without_remarks(proto)
    del proto.metadata_props[:]
    for key, value in metadata.items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, value if isinstance(value, str) else json.dumps(value)
    onnx.save(proto, str(path))
    onnx.checker.check_model(str(path), full_check=True)


def _without_remarks(proto: onnx.ModelProto) -> None:
    proto.doc_string = ""
    graphs: list[Any] = [proto.graph, *proto.functions]
    while graphs:
        graph = graphs.pop()
        of_values = [getattr(graph, kind, ()) for kind in ("input", "output", "value_info", "initializer")]
        for part in (graph, *graph.node, *(value for values in of_values for value in values)):
            if hasattr(part, "metadata_props"):  # a function's inputs are plain names
                part.doc_string = ""
                del part.metadata_props[:]
        graphs += [a.g for node in graph.node for a in node.attribute if a.HasField("g")]
        graphs += [g for node in graph.node for a in node.attribute for g in a.graphs]


def facts(path: Path) -> Json:
    """Opset, node counts, multiply-adds of an image and whether it has the shortcut, as the file says them itself."""
    proto = onnx.load(str(path), load_external_data=False)
    opset = next(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))
    told = {entry.key: entry.value for entry in proto.metadata_props}
    macs = json.loads(told["macs"])["total"] if "macs" in told else None
    return {"opset": opset, "nodes": rewrites.node_counts(proto), "macs": macs, "shortcut": "shortcut" in told}


def metadata(path: Path) -> dict[str, str]:
    """metadata_props of a file."""
    return {entry.key: entry.value for entry in onnx.load(str(path), load_external_data=False).metadata_props}


def parity(model: nn.Module, path: Path, images: Tensor, provider: str | None = None) -> dict[int, float]:
    """Largest difference of an output between torch and onnxruntime at batch 1, 2 and 7 of real images [≥7, C, H, W], on
    the provider of the model's device, if no other is named; of features over the largest number, where that is above 1."""
    own, told = device.device_of(model), outputs.told(model)
    made = runtime.session(path, provider or runtime.provider_of(own.type), exact=True)
    differences = {}
    for batch in PARITY_BATCHES:
        part = images[:batch]
        with torch.inference_mode(), device.products("float32", own):
            expected = told(part.to(own))
        expected = expected if isinstance(expected, tuple) else (expected,)
        found = runtime.outputs(made, part.numpy())
        pairs = [(x, y.float().cpu().numpy()) for x, y in zip(found, expected, strict=True)]
        largest = [1.0 if told is model else max(1.0, float(np.abs(y).max())) for _, y in pairs]
        gaps = [np.abs(x - y).max() / most for (x, y), most in zip(pairs, largest, strict=True)]
        differences[batch] = float(np.max(gaps))  # NaN stays NaN
    return differences


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's own chatter is not for our users; its errors still are."""
    levels = {name: logging.getLogger(name).level for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")}
    with warnings.catch_warnings(), open(os.devnull, "w") as null, contextlib.redirect_stdout(null):
        warnings.simplefilter("ignore")
        try:
            for name in levels:
                logging.getLogger(name).setLevel(logging.ERROR)
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
