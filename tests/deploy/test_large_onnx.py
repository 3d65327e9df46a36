"""ONNX files whose weights lie beside them: made, moved, read by every command, and never read from elsewhere."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from small import contents, image_folder, leftovers, model_folder, picture, recipe_dict, tiny_model
from torch import nn
from typer.testing import CliRunner

import vitprune
from vitprune.cli.app import app
from vitprune.core import external
from vitprune.core.errors import UserError
from vitprune.core.ledger import TEMPORARY
from vitprune.core.reading import sha256
from vitprune.deploy import bench, predict, runtime
from vitprune.deploy.onnx import exporting, precision
from vitprune.recipe import recipe
from vitprune.report import bars, write_report
from vitprune.runs import pipeline
from vitprune.runs.record import record

pytestmark = pytest.mark.usefixtures("quick")
TENSOR = onnx.TensorProto


@pytest.fixture(scope="module", autouse=True)
def everything_is_large() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporting, "LARGE", 10_000)
        yield


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return tiny_model(in_chans=3)


@pytest.fixture(scope="module")
def made(model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("large") / "model.onnx"
    exporting.export(model, path, {"labels": ["a", "b", "c"]})
    return path


@pytest.fixture
def own(made: Path, tmp_path: Path) -> Path:
    """A copy that may be spoilt."""
    return Path(shutil.copytree(made.parent, tmp_path / "own")) / "model.onnx"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    place = tmp_path_factory.mktemp("run")
    content = recipe_dict(
        model_folder(place / "m"), image_folder(place / "i", 6), place / "out", baselines=[], keep=0.9
    )
    content["export"] = {"onnx": True, "precisions": ["fp32", "fp16", "int8"], "latency_batches": [1]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(record, "write_report", write_report)
        run(content)
    return content, place / "out" / "tiny"


def run(content: dict[str, Any], verb: str = "run") -> dict[str, Any]:
    return pipeline.run(recipe.Recipe.model_validate(content), verb)


def images(count: int = 7) -> torch.Tensor:
    return torch.randn(count, 3, 28, 28, generator=torch.Generator().manual_seed(0))


def refusal(path: Path) -> str:
    """Every reader of an ONNX file says the same, in one line."""
    said = set()
    for attempt in (
        lambda: runtime.session(path),
        lambda: predict.open_model(path),
        lambda: bench.bench({"m": path}, [1], ["cpu"], seconds=0),
        lambda: external.check(path),
    ):
        with pytest.raises(UserError) as caught:
            attempt()
        said.add(str(caught.value))
    assert len(said) == 1 and len(next(iter(said)).splitlines()) == 1
    return said.pop()


# ---- made


def test_a_large_model_is_two_files_that_say_so(made: Path, model: nn.Module) -> None:
    data = made.with_name("model.onnx.data")
    assert sorted(p.name for p in made.parent.iterdir()) == ["model.onnx", "model.onnx.data"]
    assert exporting.parts(made) == [made, data] and made.stat().st_size < data.stat().st_size
    assert exporting.bytes_of(made) == made.stat().st_size + data.stat().st_size
    about = json.loads(exporting.metadata(made)["external_data"])
    assert about == {"file": data.name, "bytes": data.stat().st_size, "sha256": sha256(data)}
    assert exporting.metadata(made)["labels"] == '["a", "b", "c"]'
    assert max(exporting.parity(model, made, images()).values()) < 1e-4


def test_it_is_the_model_that_one_file_is(made: Path, model: nn.Module, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporting, "LARGE", 1 << 30)
        exporting.export(model, tmp_path / "one.onnx", {})
    a, b = (runtime.predict(runtime.session(p), images().numpy()) for p in (made, tmp_path / "one.onnx"))
    assert np.array_equal(a, b)
    assert exporting.parts(tmp_path / "one.onnx") == [tmp_path / "one.onnx"]
    assert exporting.facts(made) == exporting.facts(tmp_path / "one.onnx")


def test_both_can_be_moved_together(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = runtime.predict(runtime.session(own), images().numpy())
    moved = Path(shutil.copytree(own.parent, tmp_path / "ä b")) / own.name
    shutil.rmtree(own.parent)
    assert np.array_equal(runtime.predict(runtime.session(moved), images().numpy()), expected)
    monkeypatch.chdir(moved.parent)
    assert np.array_equal(runtime.predict(runtime.session(Path(own.name)), images().numpy()), expected)


def test_a_smaller_model_in_its_place_leaves_no_weights(model: nn.Module, own: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporting, "LARGE", 1 << 30)
        exporting.export(model, own, {})
    assert sorted(p.name for p in own.parent.iterdir()) == ["model.onnx"]
    exporting.export(model, own, {})
    exporting.export(model, own, {})
    assert sorted(p.name for p in own.parent.iterdir()) == ["model.onnx", "model.onnx.data"]


def test_somebodys_data_is_not_replaced(model: nn.Module, tmp_path: Path) -> None:
    (tmp_path / "m.onnx.data").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"m\.onnx\.data: was not made by vitprune"):
        vitprune.export(model, tmp_path / "m.onnx")
    assert contents(tmp_path) == {"m.onnx.data": b"mine"}


@pytest.mark.parametrize("at", [1, 2])
def test_a_stop_between_the_two_leaves_no_pair_that_does_not_fit(
    model: nn.Module, own: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    count, replace = [0], os.replace

    def stopped(*names: Any) -> None:
        count[0] += 1
        if count[0] == at:
            raise KeyboardInterrupt
        replace(*names)

    other = tiny_model(in_chans=3, seed=1)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", stopped)
        with pytest.raises(KeyboardInterrupt):
            exporting.export(other, own, {})
    assert leftovers(own.parent) == []
    with pytest.raises(UserError, match="not beside it"):
        external.check(own)
    exporting.export(other, own, {})
    assert max(exporting.parity(other, own, images()).values()) < 1e-4


# ---- a whole run


def test_a_run_of_a_large_model_in_every_precision(finished: tuple[dict[str, Any], Path]) -> None:
    content, root = finished
    report = json.loads((root / "report.json").read_text())
    assert report["complete"] and leftovers(root) == []
    listed = {file["path"]: file for file in report["files"]}
    rows = {row["precision"]: row for row in report["export"]["files"]}
    assert set(rows) == {"fp32", "fp16", "int8"}
    for row in rows.values():
        path = root / row["path"]
        assert row["bytes"] == sum(part.stat().st_size for part in exporting.parts(path))
    for name in ("model.onnx", "model.fp16.onnx"):
        data = listed[f"{name}.data"]
        assert data["sha256"] == sha256(root / data["path"]) and name in data["what"]
    assert (root / "stages" / "export" / "dense.onnx.data").is_file()
    assert all(check["passed"] for check in report["checks"] if "fp32" in check["name"] or "ONNX" in check["name"])
    assert all(stage["skipped"] for stage in run(content, "export")["stages"])


def test_lost_weights_are_made_again(finished: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    content, root = finished
    root = Path(shutil.copytree(root.parent, tmp_path / "out")) / "tiny"
    content = content | {"out": str(tmp_path / "out")}
    whole = (root / "model.onnx.data").read_bytes()
    for spoil in (lambda p: p.unlink(), lambda p: p.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))):
        spoil(root / "model.onnx.data")
        assert [s["name"] for s in run(content, "export")["stages"] if not s["skipped"]] == ["export"]
        assert (root / "model.onnx.data").read_bytes() == whole
    run(content | {"export": content["export"] | {"precisions": ["fp32"]}}, "export")
    assert not (root / "model.fp16.onnx.data").exists() and not (root / "model.fp16.onnx").exists()


def test_what_a_kill_during_the_export_left_is_cleared(finished: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    content, root = finished
    root = Path(shutil.copytree(root.parent, tmp_path / "out")) / "tiny"
    work = root / f".work.abc{TEMPORARY}"
    work.mkdir()
    (work / "model.onnx.data").write_bytes(b"half")
    run(content | {"out": str(tmp_path / "out")}, "export")
    assert leftovers(root) == []


def test_the_commands_read_it(finished: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    _, root = finished
    picture(1, 1).save(tmp_path / "a.png")
    for args in (
        ["predict", str(root), str(tmp_path / "a.png")],
        ["bench", str(root), "--batch", "1", "--seconds", "0", "--provider", "cpu"],
        ["check", str(root), "--min-top1", "0"],
    ):
        found = CliRunner().invoke(app, args)
        assert found.exit_code == 0, found.exception
    copy = Path(shutil.copytree(root, tmp_path / "tiny"))
    (copy / "model.onnx.data").unlink()
    for args in (
        ["predict", str(copy), str(tmp_path / "a.png")],
        ["bench", str(copy)],
        ["check", str(copy), "--min-top1", "0"],
    ):
        found = CliRunner().invoke(app, args)
        assert isinstance(found.exception, UserError) and "which is not beside it" in str(found.exception)


def test_check_looks_at_no_file_outside_the_folder(finished: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    _, root = finished
    report = json.loads((root / "report.json").read_text())
    (tmp_path / "bad.onnx").write_bytes(b"\xff")
    place = tmp_path / "in"
    place.mkdir()
    for name in ("../bad.onnx", str(tmp_path / "bad.onnx"), "in/../../bad.onnx", "a\0b.onnx", "gone.onnx", "", None, 3):
        report["export"]["files"] = [{"path": name}]
        (place / "report.json").write_text(json.dumps(report))
        assert bars.check(place, [bars.Bar("top1", 0.0, True)])[0]["passed"]
    shutil.copy(tmp_path / "bad.onnx", place)
    report["export"]["files"] = [{"path": "bad.onnx"}]
    (place / "report.json").write_text(json.dumps(report))
    with pytest.raises(UserError, match="no sound ONNX file"):
        bars.check(place, [bars.Bar("top1", 0.0, True)])


def test_int8_of_too_large_a_model_is_one_line(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "MOST_INT8", 1000)
    with pytest.raises(UserError, match="int8 is not made of more than") as caught:
        precision.to_int8(made, tmp_path / "int8.onnx", [], [], np.zeros(0), 0.5)
    assert len(str(caught.value).splitlines()) == 1 and contents(tmp_path) == {}


def test_fp16_of_a_large_model_is_that_of_one_file(made: Path, model: nn.Module, tmp_path: Path) -> None:
    precision.to_fp16(made, tmp_path / "a.onnx")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporting, "LARGE", 1 << 30)
        exporting.export(model, tmp_path / "one.onnx", {})
        precision.to_fp16(tmp_path / "one.onnx", tmp_path / "b.onnx")
    a, b = (runtime.predict(runtime.session(tmp_path / name), images().numpy()) for name in ("a.onnx", "b.onnx"))
    assert np.array_equal(a, b) and len(exporting.parts(tmp_path / "a.onnx")) == 2


# ---- read from elsewhere, or not whole


def relocated(path: Path, location: str, **changed: str | None) -> Path:
    """The file with every weight said to be at another place."""
    proto = onnx.load(str(path), load_external_data=False)
    for tensor in proto.graph.initializer:
        if tensor.data_location == TENSOR.EXTERNAL:
            known = {entry.key: entry.value for entry in tensor.external_data}
            known |= {"location": location} | {k: v for k, v in changed.items() if v is not None}
            del tensor.external_data[:]
            for key, value in known.items():
                if changed.get(key, "") is not None:
                    entry = tensor.external_data.add()
                    entry.key, entry.value = key, value
    for entry in [e for e in proto.metadata_props if e.key == external.KEY]:
        proto.metadata_props.remove(entry)
    path.write_bytes(proto.SerializeToString())
    return path


@pytest.mark.parametrize(
    "location",
    ["../model.onnx.data", "{out}/model.onnx.data", "sub/../../own/model.onnx.data", "C:\\model.onnx.data", "..\\x", "",
     "a\0b", "*/_ORT_MEM_ADDR_/*", "~/x", "/dev/zero", "\\\\host\\x", "file:model.onnx.data"],
)  # fmt: skip
def test_weights_outside_the_folder_are_not_read(own: Path, location: str) -> None:
    shutil.copy(own.with_name("model.onnx.data"), own.parent.parent / "model.onnx.data")
    (own.parent / "sub").mkdir()
    said = refusal(relocated(own, location.format(out=own.parent)))
    assert "outside its folder" in said or "not beside it" in said


@pytest.mark.parametrize("how", ["the file", "its folder", "to itself", "dangling", "inside"])
def test_a_link_is_not_followed(own: Path, tmp_path: Path, how: str) -> None:
    data = own.with_name("model.onnx.data")
    (tmp_path / "elsewhere").mkdir()
    target = Path(shutil.move(data, tmp_path / "elsewhere" / data.name))
    name = data.name
    if how == "its folder":
        (own.parent / "sub").symlink_to(target.parent)
        name = f"sub/{data.name}"
    elif how == "inside":
        shutil.move(target, own.parent / "other")
        data.symlink_to("other")
    else:
        data.symlink_to({"the file": target, "to itself": data.name, "dangling": "gone"}[how])
    assert "link" in refusal(relocated(own, name))


@pytest.mark.parametrize("kind", ["pipe", "folder", "gone"])
def test_weights_in_no_file(own: Path, kind: str) -> None:
    data = own.with_name("model.onnx.data")
    data.unlink()
    if kind != "gone":
        (os.mkfifo if kind == "pipe" else os.mkdir)(data)
    said = refusal(own)
    assert "no plain file" in said if kind != "gone" else "not beside it" in said


def test_weights_of_another_model_are_not_taken(own: Path, tmp_path: Path) -> None:
    """Of the same shape, so that nothing but the digest tells."""
    other = tmp_path / "other.onnx"
    exporting.export(tiny_model(in_chans=3, seed=1), other, {})
    data = own.with_name("model.onnx.data")
    assert other.with_name("other.onnx.data").stat().st_size == data.stat().st_size
    shutil.copy(other.with_name("other.onnx.data"), data)
    assert "does not belong to model.onnx" in refusal(own)


@pytest.mark.parametrize("spoil", [lambda b: b[:-1], lambda b: b"", lambda b: b + b"x", lambda b: b[:-1] + b"\x7f"])
def test_weights_that_are_not_whole(own: Path, spoil: Callable[[bytes], bytes]) -> None:
    data = own.with_name("model.onnx.data")
    data.write_bytes(spoil(data.read_bytes()))
    assert "model.onnx.data" in refusal(own)


@pytest.mark.parametrize(
    "changed",
    [{"offset": "-1"}, {"offset": "x"}, {"length": "99999999999999999"}, {"length": "9" * 40}, {"offset": "٣"},
     {"length": "1e3"}, {"offset": "18446744073709551615"}],
)  # fmt: skip
def test_places_that_no_file_has(own: Path, changed: dict[str, str]) -> None:
    refusal(relocated(own, "model.onnx.data", **changed))


def test_a_digest_that_cannot_be_used(own: Path) -> None:
    for value in (
        "",
        "[]",
        '{"file": 1}',
        '{"file": "x", "bytes": true, "sha256": ""}',
        '{"file": "../x", "bytes": 1, "sha256": "a"}',
    ):
        proto = onnx.load(str(own), load_external_data=False)
        next(e for e in proto.metadata_props if e.key == external.KEY).value = value
        own.write_bytes(proto.SerializeToString())
        refusal(own)


def test_weights_in_every_corner_of_a_graph_are_seen(tmp_path: Path) -> None:
    def outside(name: str) -> onnx.TensorProto:
        made = TENSOR(name=name, dims=[2], data_type=TENSOR.FLOAT, data_location=TENSOR.EXTERNAL)
        entry = made.external_data.add()
        entry.key, entry.value = "location", f"../{name}"
        return made

    helper, empty = onnx.helper, onnx.helper.make_graph([], "g", [], [])
    inner = helper.make_graph([], "g", [], [], [outside("x")])
    corners = {
        "a constant": helper.make_graph([helper.make_node("Constant", [], ["y"], value=outside("x"))], "g", [], []),
        "a branch": helper.make_graph([helper.make_node("If", ["c"], ["y"], then_branch=inner)], "g", [], []),
        "a list": helper.make_graph([helper.make_node("X", [], ["y"], many=[outside("x")])], "g", [], []),
        "sparse": helper.make_graph([], "g", [], [], sparse_initializer=[
            helper.make_sparse_tensor(outside("x"), TENSOR(dims=[1], data_type=TENSOR.INT64), [4])]),
    }  # fmt: skip
    models = {name: helper.make_model(graph) for name, graph in corners.items()}
    node = helper.make_node("Constant", [], ["y"], value=outside("x"))
    function = helper.make_function("d", "f", [], ["y"], [node], [helper.make_opsetid("", 17)])
    models["a function"] = helper.make_model(empty, functions=[function])
    models["training"] = helper.make_model(empty)
    models["training"].training_info.add().initialization.CopyFrom(inner)
    for name, model in models.items():
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(model.SerializeToString())
        with pytest.raises(UserError, match="outside its folder"):
            external.check(path)
    twice = helper.make_model(empty).SerializeToString() + helper.make_model(inner).SerializeToString()
    (tmp_path / "twice.onnx").write_bytes(twice)  # protobuf merges the two
    with pytest.raises(UserError, match="outside its folder"):
        external.check(tmp_path / "twice.onnx")


def test_graphs_without_end(tmp_path: Path) -> None:
    content = b""
    for _ in range(200):  # a graph in an attribute of a node of a graph …
        for tag in (0x32, 0x2A, 0x0A):
            size = onnx.StringStringEntryProto(key="x" * len(content)).ByteSize() - len(content) - 1
            content = bytes([tag]) + _varint(len(content)) + content if size else content
    (tmp_path / "m.onnx").write_bytes(b"\x3a" + _varint(len(content)) + content)
    with pytest.raises(UserError, match="too deep"):
        external.check(tmp_path / "m.onnx")


def _varint(value: int) -> bytes:
    made = b""
    while value > 127:
        made += bytes([value & 127 | 128])
        value >>= 7
    return made + bytes([value])


@pytest.mark.parametrize("seed", range(30))
def test_damaged_files_are_one_line_or_read(own: Path, seed: int) -> None:
    draw = np.random.default_rng(seed)
    content = bytearray(own.read_bytes())
    for at in draw.integers(0, len(content), 8):
        content[at] = draw.integers(256)
    own.write_bytes(bytes(content[: draw.integers(1, len(content))] if seed % 3 == 0 else content))
    said = "one line"
    try:
        external.check(own)
    except UserError as error:
        said = str(error)
    assert len(said.splitlines()) == 1


def test_a_file_of_another_tool_that_keeps_weights_beside_is_read(own: Path, model: nn.Module) -> None:
    """Without our digest, in a folder below, all of a file, and with places that need not be said."""
    (own.parent / "sub").mkdir()
    shutil.move(own.with_name("model.onnx.data"), own.parent / "sub" / "w.bin")
    assert max(exporting.parity(model, relocated(own, "sub/w.bin"), images()).values()) < 1e-4
