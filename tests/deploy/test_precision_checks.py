"""Every exported file has checks of its own; a file that is another model, or cannot be made, is told everywhere."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from small import image_folder, model_folder, quicken, recipe_dict
from typer.testing import CliRunner

from vitprune.cli import app
from vitprune.core.errors import UserError
from vitprune.deploy import runtime
from vitprune.deploy.onnx import exporting, precision_checks, rewrites
from vitprune.deploy.onnx import precision as onnx_precision
from vitprune.recipe.recipe import Recipe
from vitprune.report import bars, write_report
from vitprune.runs import pipeline
from vitprune.runs.record import record
from vitprune.runs.stages import export


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Path, dict[str, Any]]]:
    """A run with every precision and a real report."""
    quicken(monkeypatch)
    monkeypatch.setattr(record, "write_report", write_report)
    monkeypatch.setattr(onnx_precision, "opens", lambda path: None)
    model, images = model_folder(tmp_path / "model"), image_folder(tmp_path / "images", 20)

    def start(**changed: Any) -> tuple[Path, dict[str, Any]]:
        content = recipe_dict(model, images, tmp_path / "out", baselines=[], keep=0.9) | {
            "export": {"precisions": ["fp32", "fp16", "int8"], "latency_batches": [32], "int8_floor_points": 20.0},
            **changed,
        }
        made = pipeline.run(Recipe.model_validate(content))
        return tmp_path / "out" / "tiny", made

    return start


def spoil(path: Path) -> None:
    """Another model of the same form: the head's rows turned."""
    proto = onnx.load(str(path))
    names = {tensor.name: tensor for tensor in proto.graph.initializer}
    node = next(n for n in reversed(proto.graph.node) if n.op_type in ("Gemm", "MatMul"))
    heads = [names[n] for n in node.input if n in names]
    if not heads:  # int8: the weight comes out of a DequantizeLinear
        makers = {name: n for n in proto.graph.node for name in n.output}
        heads = [names[n] for x in node.input[1:] for n in makers[x].input if n in names]
    for tensor in heads:
        value = numpy_helper.to_array(tensor)
        if 3 in value.shape:
            axis = value.shape.index(3)
            tensor.CopyFrom(numpy_helper.from_array(np.roll(value, 1, axis).copy(), tensor.name))
    onnx.save(proto, str(path))


def failing(made: dict[str, Any]) -> list[str]:
    return [check["name"] for check in made["checks"] if not check["passed"]]


def test_files_that_are_the_model_pass(run: Any) -> None:
    root, made = run()
    assert failing(made) == []
    names = {check["name"] for check in made["checks"]}
    for precision in ("fp16", "int8"):
        assert {f"{precision} {what}" for what in ("top-1 on the test split", "in batches of 1, 2 and 7")} <= names
    assert "ONNX parity of the dense model" in names and made["export"]["failed"] == []
    timed = {(row["batch"], row["precision"]): row for row in made["latency"]}
    assert list(timed) == [(32, "fp32"), (32, "fp16"), (32, "int8")]
    assert made["result"]["latency_ratio"] == timed[32, "fp32"]["ratio"] and timed[32, "int8"]["efficiency"] is None
    assert made["model"]["bytes_dense"] == (root / "stages" / "export" / "dense.onnx").stat().st_size
    bars_of_it = next(iter(re.findall(r"\*\*Dense beside slim\*\*\n\n.*?\n\n", (root / "report.md").read_text(), re.S)))
    shown = [line.split(" | ")[0].strip("| ") for line in bars_of_it.strip().splitlines()[4:]]
    assert shown == ["dense", "slim fp32", "slim fp16", "slim int8"]
    assert bars.check(root, [bars.Bar("top1", 0.0, True)])[1:] == []


@pytest.mark.parametrize("precision", ["fp16", "int8"])
@pytest.mark.parametrize("groups", [None, {"a": ["circle", "cross"], "b": ["square", "cross"]}])
@pytest.mark.sample(2)
def test_another_model_in_a_precision_is_told(
    run: Any, monkeypatch: pytest.MonkeyPatch, precision: str, groups: dict[str, Any] | None
) -> None:
    """In the checks, the headline, the card, on the terminal and in `vitprune check`, with or without groups."""
    convert = getattr(onnx_precision, f"to_{precision}")

    def wrong(source: Path, path: Path, *rest: Any) -> Any:
        found = convert(source, path, *rest)
        spoil(path) if groups is None else write_constant(path)
        return found

    monkeypatch.setattr(export, f"to_{precision}", wrong)
    root, made = run(**({"groups": groups, "head": "own"} if groups else {}))
    labels = [f" ({name})" for name in groups] if groups else [""]
    for label in labels:
        assert f"{precision} top-1 on the test split{label}" in failing(made)
    assert all(name.startswith(precision) for name in failing(made))
    for name in ("report.html", "report.md"):
        text = (root / name).read_text()
        assert "is not the slim model that this page speaks of" in text and "Failed:" in text
    assert "Failed checks" in (root / (next(iter(groups)) if groups else "") / "README.md").read_text()
    found = CliRunner().invoke(app.app, ["check", str(root), "--min-top1", "0"])
    assert found.exit_code == 1 and f"MISSED  check: {precision} top-1 on the test split" in found.output


def write_constant(path: Path) -> None:
    """A file that answers the same for every image."""
    proto = onnx.load(str(path))
    shape = [2]
    zeros, ones = np.zeros(shape, np.float32), np.array([0, 3], np.float32)
    nodes = [
        helper.make_node("ReduceMean", ["images"], ["mean"], keepdims=0, noop_with_empty_axes=0),
        helper.make_node("Mul", ["mean", "zeros"], ["nothing"]),
        helper.make_node("Add", ["nothing", "ones"], ["row"]),
        helper.make_node("Shape", ["images"], ["count"], start=0, end=1),
        helper.make_node("Concat", ["count", "two"], ["shape"], axis=0),
        helper.make_node("Expand", ["row", "shape"], ["logits"]),
    ]
    constants = [numpy_helper.from_array(zeros, "zeros"), numpy_helper.from_array(ones, "ones")]
    constants.append(numpy_helper.from_array(np.array([2], np.int64), "two"))
    graph = helper.make_graph(nodes, "g", proto.graph.input, proto.graph.output, constants)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=proto.ir_version)
    made.metadata_props.extend(proto.metadata_props)
    onnx.save(made, str(path))


@pytest.mark.parametrize(
    ("precision", "error"),
    [("fp16", ValueError("Duplicate definition")), ("int8", UserError("onnxruntime crashes")), ("int8", MemoryError())],
)
def test_a_precision_that_fails_is_a_note_and_the_run_finishes(
    run: Any, monkeypatch: pytest.MonkeyPatch, precision: str, error: Exception
) -> None:
    def broken(*_: Any) -> None:
        raise error

    monkeypatch.setattr(export, f"to_{precision}", broken)
    root, made = run()
    assert made["complete"] and failing(made) == [f"{precision} file was made"]
    assert any(f"model.{precision}.onnx was not made, --force tries again" in note for note in made["notes"])
    assert not (root / f"model.{precision}.onnx").exists() and (root / "model.onnx").is_file()
    assert [row["path"] for row in made["export"]["failed"]] == [f"model.{precision}.onnx"]
    assert f"model.{precision}.onnx is missing" in (root / "report.html").read_text()
    found = CliRunner().invoke(app.app, ["check", str(root), "--min-top1", "0"])
    assert found.exit_code == 1 and f"MISSED  check: {precision} file was made" in found.output


def test_values_that_are_not_finite_leave_the_file_out(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """fp16 overflows: the file opens and answers nothing."""
    convert = onnx_precision.to_fp16

    def overflow(source: Path, path: Path) -> None:
        convert(source, path)
        proto = onnx.load(str(path))
        for tensor in proto.graph.initializer:
            if tensor.data_type == TensorProto.FLOAT16:
                value = numpy_helper.to_array(tensor)
                tensor.CopyFrom(numpy_helper.from_array(np.full_like(value, 6e4), tensor.name))
        onnx.save(proto, str(path))

    monkeypatch.setattr(export, "to_fp16", overflow)
    root, made = run()
    assert failing(made) == ["fp16 file was made"] and not (root / "model.fp16.onnx").exists()
    assert "not finite" in made["export"]["failed"][0]["why"]


def test_a_model_without_onnx_still_has_its_report(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("no such operator")

    monkeypatch.setattr(exporting, "export", broken)
    root, made = run()
    assert made["complete"] and {"dense file was made", "fp32 file was made", "int8 file was made"} <= set(
        failing(made)
    )
    assert made["latency"] == [] and made["result"]["latency_ratio"] is None and (root / "report.html").is_file()
    with pytest.raises(UserError, match="holds no latency_ratio"):
        bars.check(root, [bars.Bar("latency_ratio", 1.0)])


def test_a_full_disk_is_no_fault_of_the_precision(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "to_fp16", full)
    with pytest.raises((OSError, UserError)):
        run()


def test_a_file_of_an_earlier_run_does_not_stay(run: Any) -> None:
    root, _ = run()
    _, made = run(export={"precisions": ["fp32"], "latency_batches": [32]})
    assert not (root / "model.int8.onnx").exists() and {f["precision"] for f in made["export"]["files"]} == {"fp32"}


# ---- a file that crashes whoever opens it


def test_a_crash_happens_to_another_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "half.onnx").write_bytes(b"half a file")
    with pytest.raises(UserError, match="cannot run it"):
        onnx_precision.opens(tmp_path / "half.onnx")
    monkeypatch.setattr(onnx_precision, "TRIAL", "import os; os.kill(os.getpid(), 11)")
    with pytest.raises(UserError, match=r"crashes on it \(signal 11\)"):
        onnx_precision.opens(tmp_path / "half.onnx")


# ---- the measures


def test_near_ties_do_not_count() -> None:
    expected = np.array([[4.0, 0.0], [0.001, 0.0], [0.0, 4.0], [2.0, 1.0]])
    found = np.array([[4.0, 0.0], [0.0, 0.001], [0.0, 4.0], [1.0, 2.0]])
    seen = precision_checks.compare(expected, found, tie=0.02)
    assert (seen["n"], seen["same_top1"], seen["differing"]) == (4, 2, 1)
    assert precision_checks.compare(expected, found)["differing"] == 2
    p = 1 / (1 + np.exp(-1.0))
    assert seen["max_probability_diff"] == pytest.approx(2 * p - 1)
    assert precision_checks.compare(expected * 1e-3, found * 1e-3, tie=0.02)["differing"] == 1, "small logits alike"
    assert precision_checks.compare(expected, expected)["max_probability_diff"] == 0


def test_the_limits() -> None:
    seen = {"n": 1000, "same_top1": 985, "differing": 11, "max_probability_diff": 0.04, "mean_probability_diff": 0.001}

    def outcome(precision: str, batches: float = 0.0, floor: float = 0.5, **changed: Any) -> list[bool]:
        made = precision_checks.checks(precision, "m.onnx", seen | changed, batches, floor)
        return [check["value"] <= check["limit"] for check in made]

    assert outcome("fp16") == [False, True, True]
    assert outcome("fp16", differing=10, max_probability_diff=0.06, batches=0.03) == [True, False, False]
    assert outcome("int8", max_probability_diff=0.9) == [True, True, True]
    assert outcome("int8", differing=56) == [False, True, True] and outcome("int8", differing=56, floor=1.0)[0]
    assert outcome("int8", mean_probability_diff=0.06) == [True, False, True]
    assert outcome("int8", n=10, differing=1)[0] and not outcome("int8", n=10, differing=2)[0]
    assert not outcome("fp16", n=10, same_top1=9, differing=1)[0]


# ---- names that onnxruntime's converters cannot make a second time


def graph_with_shared_bias() -> onnx.ModelProto:
    """Twelve products share the bias `cat_1`, and the values between them are called as its copies would be."""
    draw, nodes, constants = np.random.default_rng(0), [], []
    constants.append(numpy_helper.from_array(np.ones(4, np.float32), "cat_1"))
    name = "images"
    for i in range(12):
        constants.append(numpy_helper.from_array(draw.standard_normal((4, 4)).astype(np.float32), f"w{i}"))
        out = "logits" if i == 11 else f"cat_1{i}"
        nodes.append(helper.make_node("Gemm", [name, f"w{i}", "cat_1"], [f"{out}_product"], name=""))
        nodes.append(helper.make_node("Tanh", [f"{out}_product"], [out], name=f"tanh_{i}"))
        name = out
    edges = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 4]) for n in ("images", "logits")]
    graph = helper.make_graph(nodes, "g", edges[:1], edges[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_names_that_begin_alike(tmp_path: Path, precision: str) -> None:
    onnx.save(graph_with_shared_bias(), str(tmp_path / "m.onnx"))
    images = np.random.default_rng(1).standard_normal((8, 4)).astype(np.float32)
    if precision == "fp16":
        onnx_precision.to_fp16(tmp_path / "m.onnx", tmp_path / "out.onnx")
    else:
        labels = np.zeros(8, np.int64)
        found = onnx_precision.to_int8(tmp_path / "m.onnx", tmp_path / "out.onnx", [images], [images], labels, 100.0)
        assert found.quantized == 12
    expected = runtime.predict(runtime.session(tmp_path / "m.onnx"), images)
    got = runtime.predict(runtime.session(tmp_path / "out.onnx"), images)
    assert float(np.abs(got - expected).max()) < 0.3


def test_distinct_names_are_prefix_free_and_change_nothing(tmp_path: Path) -> None:
    proto = graph_with_shared_bias()
    onnx.save(proto, str(tmp_path / "m.onnx"))
    proto.graph.node[2].name = proto.graph.node[4].name = "same"
    rewrites.distinct_names(proto.graph)
    onnx.checker.check_model(proto, full_check=True)
    names = [t.name for t in proto.graph.initializer] + [n for node in proto.graph.node for n in node.output]
    assert not [(a, b) for a in names for b in names if a != b and b.startswith(a)]
    nodes = [node.name for node in proto.graph.node]
    assert len(set(nodes)) == len(nodes) and all(nodes)
    assert [x.name for x in (*proto.graph.input, *proto.graph.output)] == ["images", "logits"]
    images = np.ones((2, 4), np.float32)
    one, two = (runtime.session(x) for x in (tmp_path / "m.onnx", proto.SerializeToString()))
    assert np.array_equal(runtime.predict(one, images), runtime.predict(two, images))
    assert json.dumps(rewrites.node_counts(proto)) == '{"Gemm": 12, "Tanh": 12}'
