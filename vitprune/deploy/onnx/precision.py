"""The fp32 file again in fp16 and in int8, with inputs, outputs and metadata as they were.

fp16: weights and products in half precision; LayerNorm, and softmax inside the Attention operator, stay in fp32.
int8: static QDQ of the products with weights, per channel, activations calibrated on images; where the accuracy floor
does not hold, the most sensitive products go back to fp32, one list of exclusions that says why.
"""

from __future__ import annotations

import contextlib
import logging
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, TensorProto, helper

from vitprune.core import external
from vitprune.core.errors import UserError
from vitprune.core.files import scratch, temporary_files_in
from vitprune.deploy import runtime
from vitprune.deploy.onnx import exporting, rewrites
from vitprune.deploy.onnx.feature_checks import cosines
from vitprune.deploy.onnx.sweep import Sweep as Sweep

TRIAL = """
import sys, numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.log_severity_level = 4
made = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
images = made.get_inputs()[0]
made.run(None, {images.name: numpy.zeros([2, *images.shape[1:]], numpy.float32)})
"""
MOST_INT8 = 1900 << 20  # bytes of weights: the quantizer passes graphs on whole, and protobuf ends at two gigabytes
QUANTIZED = ("Conv", "Gemm", "MatMul")  # those of them that have weights
Batches = Sequence[np.ndarray]


def to_fp16(source: Path, path: Path) -> None:
    """Write `source` in mixed half precision."""
    runtime.onnxruntime()
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    proto = onnx.load(str(source))
    rewrites.distinct_names(proto.graph)
    large = exporting.weight_bytes(proto) >= exporting.LARGE
    if large:
        _infer_shapes(proto)
    for node in proto.graph.node:
        if node.op_type == "Attention" and node.domain == "":
            node.attribute.append(helper.make_attribute("softmax_precision", TensorProto.FLOAT))
    kept = [*DEFAULT_OP_BLOCK_LIST, "LayerNormalization", "Softmax"]
    _own_constants(proto.graph, "LayerNormalization")
    # A norm's transpose stays with it: onnxruntime 1.32 crashes on fp32 norm, cast to fp16, transpose, product.
    normed = {name for node in proto.graph.node if node.op_type == "LayerNormalization" for name in node.output}
    turned = [node.name for node in proto.graph.node if node.op_type == "Transpose" and node.input[0] in normed]
    half = convert_float_to_float16(
        proto, keep_io_types=True, op_block_list=kept, node_block_list=turned, disable_shape_infer=large
    )
    made = OnnxModel(half)
    made.topological_sort()
    _save(made.model, path, source, "fp16")


def _infer_shapes(proto: ModelProto) -> None:
    """Note every value's shape, as the converter does of a graph that can be passed on whole; weights take no part."""
    bare = ModelProto()
    bare.CopyFrom(proto)
    for tensor in bare.graph.initializer:
        if len(tensor.raw_data) >= exporting.SMALL:
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
    inferred = onnx.shape_inference.infer_shapes(bare)
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(inferred.graph.value_info)


def _own_constants(graph: GraphProto, operator: str) -> None:
    """Copies of the constants that such a node shares with others: equal ones are stored once, in one precision."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    users = Counter(name for node in graph.node for name in node.input)
    for node in graph.node:
        for position, name in enumerate(node.input):
            if node.op_type == operator and name in constants and users[name] > 1:
                copy = graph.initializer.add()
                copy.CopyFrom(constants[name])
                copy.name = node.input[position] = f"{node.name}_{name}"
                users[name] -= 1


def to_int8(
    source: Path, path: Path, calibration: Batches, probe: Batches, labels: np.ndarray | None, floor: float
) -> Sweep:
    """Write `source` in int8 so that top-1 on the probe images falls by at most `floor` points.

    `calibration` and `probe` are batches [B, C, H, W] float32; `labels` belong to `probe`, None for a
    backbone, whose mean cosine to the fp32 features is held instead. All products in int8 are
    tried first; if they break the floor, each is tried alone, and the worst are left out: one, two, four, … until the
    floor holds, then as few as still hold it between the last two.
    """
    if exporting.bytes_of(source) > MOST_INT8:
        raise UserError(f"{path}: int8 is not made of more than {MOST_INT8 >> 20:,} MiB of weights; fp16 is")
    with scratch(path.parent) as folder, temporary_files_in(folder), _quiet():
        quantizer = _Quantizer(_in_one(source, folder), folder, calibration)
        trials = _Trials(quantizer, source, probe, labels, floor, Path(folder))
        excluded, effects = trials.fewest()
        _save(trials.made[len(excluded)], path, source, "int8")
    names, top1 = quantizer.names, dict(trials.tried)[len(excluded)]
    return Sweep(
        floor, trials.top1_fp32, top1, sum(map(len, probe)), sum(map(len, calibration)),
        len(names) - len(excluded), excluded, effects, trials.tried, "top-1" if labels is not None else "cosine",
    )  # fmt: skip


class _Trials:
    """Models with some of the products in fp32: those that were `made`, and the top-1 of each that was `tried`."""

    def __init__(
        self, quantizer: _Quantizer, source: Path, probe: Batches, labels: np.ndarray | None, floor: float, folder: Path
    ) -> None:
        self.quantizer, self.probe, self.labels, self.floor, self.folder = quantizer, probe, labels, floor, folder
        self.expected = _logits(source, probe)
        self.top1_fp32 = self.measured(self.expected)
        self.tried: list[tuple[int, float]] = []
        self.made: dict[int, ModelProto] = {}

    def measured(self, found: np.ndarray) -> float:
        """Top-1 of logits, or the mean cosine of features to the fp32 file's."""
        if self.labels is not None:
            return _top1(found, self.labels)
        return float(cosines(self.expected, found).mean())

    def holds(self, ranked: list[str], count: int) -> bool:
        """Is the floor kept with the first `count` of `ranked` in fp32?"""
        self.made[count] = self.quantizer.make(set(ranked[:count]))
        if not self.tried:
            onnx.save(self.made[count], str(self.folder / "trial.onnx"))
            opens(self.folder / "trial.onnx")
        top1 = self.measured(_logits(self.made[count].SerializeToString(), self.probe))
        self.tried.append((count, top1))
        return (self.top1_fp32 - top1) * 100 <= self.floor + 1e-9

    def fewest(self) -> tuple[list[str], dict[str, float]]:
        """The fewest products in fp32 that keep the floor, and the error of each alone in int8 where it was asked for."""
        if self.holds(self.quantizer.names, 0):
            return [], {}
        effects = _effects(self.quantizer, self.probe[:1], self.expected[: len(self.probe[0])])
        ranked = list(effects)
        low, high = 0, 1
        while high < len(ranked) and not self.holds(ranked, high):
            low, high = high, min(2 * high, len(ranked))
        if high == len(ranked):
            self.made[high] = self.quantizer.make(set(ranked))
            self.tried.append((high, self.top1_fp32))
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self.holds(ranked, middle) else (middle, high)
        return ranked[:high], effects


def _in_one(source: Path, folder: Path) -> Path:
    """The file itself, or one in `folder` that holds its weights: the quantizer moves files and would lose them."""
    if not external.check(source):
        return source
    onnx.save(onnx.load(str(source)), str(folder / "whole.onnx"))
    return folder / "whole.onnx"


def _effects(quantizer: _Quantizer, probe: Batches, expected: np.ndarray) -> dict[str, float]:
    """Mean squared logit error of each product alone in int8, the largest first."""
    found = {}
    for name in quantizer.names:
        alone = quantizer.make(set(quantizer.names) - {name})
        found[name] = float(np.square(_logits(alone.SerializeToString(), probe) - expected).mean())
    return dict(sorted(found.items(), key=lambda item: -item[1]))


class _Quantizer:
    """One calibration, many choices of what stays in fp32.

    Weights take 7 bits: on x86 without VNNI the sum of two products of 8 bits with 8 bits saturates, and the same file
    would be less accurate there than where it was examined.
    """

    def __init__(self, source: Path, folder: Path, calibration: Batches) -> None:
        from onnxruntime.quantization.calibrate import CalibrationDataReader, create_calibrator
        from onnxruntime.quantization.shape_inference import quant_pre_process

        class Reader(CalibrationDataReader):  # type: ignore[misc]
            def __init__(self) -> None:
                self.left: Iterator[np.ndarray] = iter(calibration)

            def get_next(self) -> dict[str, np.ndarray] | None:
                images = next(self.left, None)
                return None if images is None else {"images": images}

        prepared = folder / "prepared.onnx"
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        self.proto = onnx.load(str(prepared))
        rewrites.distinct_names(self.proto.graph)
        onnx.save(self.proto, str(prepared))
        weights = {tensor.name for tensor in self.proto.graph.initializer}
        self.names = [n.name for n in self.proto.graph.node if n.op_type in QUANTIZED and set(n.input[1:2]) <= weights]
        calibrator = create_calibrator(str(prepared), list(QUANTIZED), str(folder / "augmented.onnx"))
        calibrator.collect_data(Reader())
        self.ranges = calibrator.compute_data()

    def make(self, excluded: set[str]) -> ModelProto:
        """The graph with every product but those in int8."""
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
        from onnxruntime.quantization.quant_utils import QuantType

        chosen = [name for name in self.names if name not in excluded]
        proto = ModelProto()
        proto.CopyFrom(self.proto)
        if not chosen:
            return proto
        quantizer = QDQQuantizer(
            proto,
            per_channel=True,
            reduce_range=True,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8,
            tensors_range=self.ranges,
            nodes_to_quantize=chosen,
            nodes_to_exclude=[],
            op_types_to_quantize=list(QUANTIZED),
            extra_options={},
        )
        quantizer.quantize_model()
        quantizer.model.topological_sort()
        return quantizer.model.model


def _logits(model: Path | bytes, batches: Iterable[np.ndarray]) -> np.ndarray:
    made = runtime.session(model)
    return np.concatenate([runtime.predict(made, images) for images in batches])


def _top1(logits: np.ndarray, labels: np.ndarray) -> float:
    return float((logits.argmax(1) == labels).mean())


def _save(proto: ModelProto, path: Path, source: Path, precision: str) -> None:
    metadata: dict[str, Any] = exporting.metadata(source) | {"precision": precision}
    metadata.pop(external.KEY, None)  # of the file beside the source
    proto.ir_version = max(proto.ir_version, onnx.load(str(source), load_external_data=False).ir_version)
    exporting.save(proto, path, metadata)
    opens(path)


def opens(path: Path) -> None:
    """Raises UserError unless another process can open and run the file: onnxruntime may crash on it, not only refuse."""
    done = subprocess.run([sys.executable, "-P", "-c", TRIAL, str(path)], capture_output=True, text=True)
    if done.returncode < 0:
        raise UserError(f"{path.name}: onnxruntime crashes on it (signal {-done.returncode})")
    if done.returncode:
        raise UserError(f"{path.name}: onnxruntime cannot run it ({(done.stderr.splitlines() or ['?'])[-1]})")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """onnxruntime's quantizer logs hints to the root logger."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
