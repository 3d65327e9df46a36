"""fp16 and int8 files, the fused attention, and the sweep that decides what stays in fp32."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import timm
import torch
from onnx import numpy_helper
from small import image_folder, model_folder, plain_report, plan_of, recipe_dict, tiny_args, tiny_model
from torch import nn

from vitprune.core.errors import UserError
from vitprune.deploy import runtime
from vitprune.deploy.onnx import exporting, precision, rewrites
from vitprune.exam import logits
from vitprune.model import size as model_size
from vitprune.pruning import surgery
from vitprune.recipe.parse import parse
from vitprune.recipe.recipe import Recipe
from vitprune.runs import pipeline
from vitprune.runs.record import record
from vitprune.runs.results import side_by_side
from vitprune.runs.stages import export

META = {"labels": ["a", "b", "c"], "recipe_hash": "0123ab"}


def batch(count: int, seed: int = 1) -> np.ndarray:
    return torch.randn(count, 3, 28, 28, generator=torch.Generator().manual_seed(seed)).numpy()


@pytest.fixture(scope="module")
def slim() -> nn.Module:
    return surgery.slim(tiny_model(in_chans=3), plan_of([torch.arange(64) % 3 == 0, torch.arange(64) < 5]))


@pytest.fixture(scope="module")
def fp32(slim: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    exporting.export(slim, path, META | model_size.size(slim))
    return path


@pytest.fixture(scope="module")
def probe(slim: nn.Module) -> tuple[list[np.ndarray], np.ndarray]:
    images = batch(48, seed=3)
    labels = slim(torch.from_numpy(images)).argmax(1).numpy()  # top-1 of fp32 is 1.0
    return [images[:24], images[24:]], labels


def gap(path: Path, model: nn.Module, images: np.ndarray) -> float:
    with torch.no_grad():
        expected = model(torch.from_numpy(images)).numpy()
    return float(np.abs(runtime.predict(runtime.session(path), images) - expected).max())


# ---- fp32


def test_one_standard_attention_per_block_and_nothing_from_another_domain(fp32: Path) -> None:
    facts = exporting.facts(fp32)
    assert facts["opset"] == exporting.OPSET == 23
    nodes = facts["nodes"]
    assert (nodes["Attention"], nodes["LayerNormalization"], nodes["Gelu"], nodes["Split"]) == (2, 5, 2, 2)
    assert (nodes["Gemm"], nodes["MatMul"]) == (7, 2), "fc1's bias is left to onnxruntime's own fusion with the Gelu"
    assert not {"Slice", "Squeeze", "Softmax"} & nodes.keys() and not any("." in name for name in nodes)
    proto = onnx.load(str(fp32))
    read = {name for node in proto.graph.node for name in node.input}
    assert {t.name for t in proto.graph.initializer} <= read


def test_an_attention_of_another_form_is_left_alone_and_right(tmp_path: Path) -> None:
    """Normalised queries and keys stand between the qkv projection and the attention."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = timm.create_model("vit_tiny_patch16_224", qk_norm=True, num_classes=3, **tiny_args(3)).eval()
    exporting.export(model, tmp_path / "m.onnx", {})
    nodes = exporting.facts(tmp_path / "m.onnx")["nodes"]
    assert nodes["Attention"] == 2 and "Split" not in nodes
    assert gap(tmp_path / "m.onnx", model, batch(3)) < 1e-4


@pytest.fixture(scope="module")
def detour(slim: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The graph as torch writes it."""
    path = tmp_path_factory.mktemp("detour") / "m.onnx"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rewrites, "fuse", lambda _: 0)
        exporting.export(slim, path, {})
    return path.read_bytes()


@pytest.mark.parametrize("change", ["order", "permutation", "axis"])
def test_a_changed_detour_is_not_taken_for_the_known_one(detour: bytes, change: str) -> None:
    proto = onnx.ModelProto.FromString(detour)
    assert rewrites.fuse(onnx.ModelProto.FromString(proto.SerializeToString())) == 2
    attention = next(n for n in proto.graph.node if n.op_type == "Attention")
    if change == "order":  # the keys are asked for, the queries are looked up
        attention.input[0], attention.input[1] = attention.input[1], attention.input[0]
    elif change == "permutation":
        behind = next(n for n in proto.graph.node if attention.output[0] in n.input)
        next(a for a in behind.attribute if a.name == "perm").ints[:] = [0, 2, 3, 1]
    else:
        makers = {name: n for n in proto.graph.node for name in n.output}
        cut = makers[makers[attention.input[2]].input[0]]
        axis = numpy_helper.from_array(np.array([1], np.int64), "another_axis")
        proto.graph.initializer.append(axis)
        cut.input[3] = "another_axis"
    assert rewrites.fuse(proto) == 1


def test_size_against_a_count_by_hand() -> None:
    model = tiny_model(in_chans=3)
    size = model_size.size(surgery.slim(model, plan_of([torch.arange(64) < 20, torch.arange(64) < 7])))
    tokens, dim = 17, 16
    ffn = 2 * tokens * dim * 27
    rest = 16 * 3 * 49 * dim + 2 * (4 * tokens * dim * dim + 2 * tokens * tokens * dim) + dim * 3
    assert size == {"macs": {"total": ffn + rest, "ffn": ffn}, "widths": [20, 7]}


# ---- fp16


def test_fp16_keeps_layer_norm_and_softmax_in_fp32(fp32: Path, slim: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "model.fp16.onnx"
    precision.to_fp16(fp32, path)
    proto = onnx.shape_inference.infer_shapes(onnx.load(str(path)))
    onnx.checker.check_model(proto, full_check=True)
    types = {t.name: t.data_type for t in proto.graph.initializer}
    types |= {v.name: v.type.tensor_type.elem_type for v in proto.graph.value_info}
    for node in proto.graph.node:
        kinds = {types[name] for name in node.input if name in types}
        if node.op_type == "LayerNormalization":
            assert kinds == {onnx.TensorProto.FLOAT}
        if node.op_type in ("MatMul", "Gemm"):
            assert kinds == {onnx.TensorProto.FLOAT16}
        if node.op_type == "Attention":
            kept = {a.name: a.i for a in node.attribute}
            assert kept["softmax_precision"] == onnx.TensorProto.FLOAT
    edges = [*proto.graph.input, *proto.graph.output]
    assert {e.type.tensor_type.elem_type for e in edges} == {onnx.TensorProto.FLOAT}
    for count in (1, 2, 7):
        assert 1e-6 < gap(path, slim, batch(count)) < 0.05
    assert exporting.metadata(path) == exporting.metadata(fp32) | {"precision": "fp16"}


def test_constants_that_nodes_share(tmp_path: Path) -> None:
    """A fresh model's norms and biases are equal, and the exporter stores equal constants once."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = timm.create_model("vit_tiny_patch16_224", num_classes=3, **tiny_args(3)).eval().requires_grad_(False)
    source = tmp_path / "m.onnx"
    exporting.export(model, source, {})
    precision.to_fp16(source, tmp_path / "fp16.onnx")
    images = batch(4)
    precision.to_int8(source, tmp_path / "int8.onnx", [images], [images], np.zeros(4, np.int64), 100.0)
    assert gap(tmp_path / "fp16.onnx", model, images) < 1e-2 and gap(tmp_path / "int8.onnx", model, images) < 0.1


# ---- int8


def int8(fp32: Path, path: Path, probe: tuple[list[np.ndarray], np.ndarray], floor: float) -> precision.Sweep:
    return precision.to_int8(fp32, path, [batch(16, seed=5)], *probe, floor)


def test_int8_within_the_floor_at_once(
    fp32: Path, slim: nn.Module, probe: tuple[list[np.ndarray], np.ndarray], tmp_path: Path
) -> None:
    path = tmp_path / "model.int8.onnx"
    sweep = int8(fp32, path, probe, 100.0)
    assert (sweep.excluded, sweep.effects, len(sweep.tried)) == ([], {}, 1)
    assert (sweep.quantized, sweep.images, sweep.calibration_images, sweep.top1_fp32) == (10, 48, 16, 1.0)
    proto = onnx.load(str(path))
    onnx.checker.check_model(proto, full_check=True)
    values = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    weights = [v for v in values.values() if v.dtype == np.int8 and v.ndim >= 2]
    assert len(weights) == 10 and all(np.abs(w.astype(int)).max() <= 64 for w in weights), "7 bits"
    scales = [values[n.input[1]] for n in proto.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in values]
    assert any(s.ndim == 1 and s.size > 1 for s in scales), "per channel"
    for count in (1, 2, 7):
        assert 1e-6 < gap(path, slim, batch(count)) < 2
    assert exporting.metadata(path) == exporting.metadata(fp32) | {"precision": "int8"}
    assert "within 100" in sweep.why


def test_a_floor_that_int8_breaks_sends_the_worst_back(
    fp32: Path, probe: tuple[list[np.ndarray], np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One product is spoiled on purpose: it alone has to go, found by its own effect."""
    make = precision._Quantizer.make
    spoiled = ""

    def spoil(self: precision._Quantizer, excluded: set[str]) -> onnx.ModelProto:
        nonlocal spoiled
        spoiled = self.names[-1]
        proto = make(self, excluded)
        if spoiled not in excluded:
            node = next(n for n in self.proto.graph.node if n.name == spoiled)
            for tensor in proto.graph.initializer:
                if tensor.name == f"{node.input[1]}_quantized":
                    tensor.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(tensor), tensor.name))
        return proto

    monkeypatch.setattr(precision._Quantizer, "make", spoil)
    path = tmp_path / "model.int8.onnx"
    whole = int8(fp32, path, probe, 100.0)
    assert whole.top1 < 0.9
    sweep = int8(fp32, path, probe, 8.0)
    assert sweep.excluded[0] == spoiled == next(iter(sweep.effects)) and len(sweep.excluded) < 10
    assert sorted(sweep.effects.values(), reverse=True) == list(sweep.effects.values()) and len(sweep.effects) == 10
    assert (sweep.top1_fp32 - sweep.top1) * 100 <= 8.0 and sweep.quantized == 10 - len(sweep.excluded)
    written = precision._logits(path, probe[0])
    assert precision._top1(written, probe[1]) == sweep.top1
    assert "stay in fp32" in sweep.why and json.loads(json.dumps(sweep.as_json()))["why"] == sweep.why


def test_a_floor_nothing_can_hold_leaves_everything_in_fp32(
    fp32: Path, slim: nn.Module, probe: tuple[list[np.ndarray], np.ndarray], tmp_path: Path
) -> None:
    images, labels = probe
    sweep = precision.to_int8(fp32, tmp_path / "m.onnx", [batch(8)], images, labels, -1.0)
    assert sweep.quantized == 0 and len(sweep.excluded) == 10 and sweep.top1 == sweep.top1_fp32
    assert gap(tmp_path / "m.onnx", slim, images[0]) < 1e-4


def test_calibration_and_floor_images_do_not_meet() -> None:
    index = np.arange(100, 1100)
    a, b = export.two_parts(index, 256, 2000)
    assert len(a) == 256 and len(b) == 744 and not set(a) & set(b) and set(a) | set(b) == set(index)
    a, b = export.two_parts(index, 50, 100)
    assert (len(a), len(b), len(set(b))) == (50, 100, 100) and not set(a) & set(b)
    assert [len(p) for p in export.two_parts(np.arange(2), 256, 2000)] == [1, 1]


# ---- the run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """A run with every precision; what the sweep saw is kept."""
    tmp = tmp_path_factory.mktemp("run")
    content = recipe_dict(model_folder(tmp / "model"), image_folder(tmp / "images"), tmp / "out", baselines=[])
    content["export"] = {"precisions": ["fp32", "int8", "fp16"], "latency_batches": [32], "int8_floor_points": 40.0}
    interleaved = runtime.interleaved
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(record, "write_report", plain_report)
        patch.setattr(runtime, "interleaved", lambda s, x, seconds=0.0: interleaved(s, x, seconds=0.0))
        log: list[str] = []
        sweep, exam = precision.to_int8, logits.test_logits

        def seen(*args: object) -> object:
            log.append("sweep")
            return sweep(*args)  # type: ignore[arg-type]

        def examined(*args: object) -> object:
            log.append("test")
            return exam(*args)  # type: ignore[arg-type]

        patch.setattr(export, "to_int8", seen)

        def together(*args: object) -> object:
            log.append("test")
            return models(*args)  # type: ignore[arg-type]

        models = side_by_side.logits_side_by_side
        patch.setattr(logits, "test_logits", examined)
        patch.setattr(side_by_side, "logits_side_by_side", together)
        made = pipeline.run(Recipe.model_validate(content), "export")
    return tmp / "out" / "tiny", made | {"log": log}


def test_every_file_is_examined_on_the_whole_test_split(run: tuple[Path, dict]) -> None:
    root, made = run
    rows = {row["path"]: row for row in made["export"]["files"]}
    assert list(rows) == ["model.onnx", "model.fp16.onnx", "model.int8.onnx"]
    for name, row in rows.items():
        assert (root / name).stat().st_size == row["bytes"] and set(row["parity"]) == {"1", "2", "7"}
        assert row["agreement"]["n"] == 6 and row["opset"] == 23 and row["top1"] == row["agreement"]["onnx_top1"]
        assert row["top1_change_points"] == pytest.approx((row["top1"] - rows["model.onnx"]["top1"]) * 100)
        assert row["nodes"]["Attention"] == 2
    assert max(rows["model.onnx"]["parity"].values()) < 1e-4 < max(rows["model.int8.onnx"]["parity"].values())
    assert rows["model.int8.onnx"]["sweep"]["floor_points"] == 40.0 and "sweep" not in rows["model.fp16.onnx"]
    assert {f["path"] for f in made["files"]} >= set(rows)
    metas = [exporting.metadata(root / name) for name in rows]
    assert len({m.pop("precision", "fp32") for m in metas}) == 3 and metas[0] == metas[1] == metas[2]


def test_the_test_split_is_read_after_the_sweep(run: tuple[Path, dict]) -> None:
    assert run[1]["log"] == ["sweep", "test", "test", "test", "test"]


@pytest.mark.parametrize("precisions", ["[int8]", "[]", "[fp32, fp32]", "[fp32, bf16]"])
def test_recipes_that_ask_for_nonsense(precisions: str) -> None:
    with pytest.raises(UserError, match="precisions"):
        parse(f"version: 1\nname: x\nexport: {{precisions: {precisions}}}\n")
