"""`vitprune bench`: what is timed, the arithmetic of its figures, its explanations, and providers that are not there."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from small import plan_of, tiny_model
from typer.testing import CliRunner

from vitprune.cli import app, torch_runners
from vitprune.core.errors import UserError
from vitprune.deploy import bench, runtime
from vitprune.deploy.onnx import exporting
from vitprune.model import size
from vitprune.pruning import surgery


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a run leaves it: dense, slim, and a group."""
    root = tmp_path_factory.mktemp("run")
    dense = tiny_model()
    slim = surgery.slim(dense, plan_of([torch.arange(64) < 16] * 2))
    exporting.export(dense, root / bench.FILES[0], size.size(dense))
    exporting.export(slim, root / "model.onnx", size.size(slim))
    (root / "shoes").mkdir()
    shutil.copy(root / "model.onnx", root / "shoes" / "model.onnx")
    return root


def facts(**changed: Any) -> bench.Facts:
    return {"macs": 100, "ffn_macs": 60, "widths": [64, 64], "precision": "fp32"} | changed


# ---- which files


def test_the_files_of_a_run_and_of_a_group(run: Path) -> None:
    assert bench.find([run]) == {"dense": run / bench.FILES[0], "model": run / "model.onnx"}
    assert bench.find([run / "shoes"]) == {"dense": run / bench.FILES[0], "model": run / "shoes" / "model.onnx"}
    both = bench.find([run, run / "shoes"])
    assert list(both) == ["dense", str(run / "model.onnx"), str(run / "shoes" / "model.onnx")]
    assert bench.find([run / "model.onnx"]) == {"model": run / "model.onnx"}


def test_nothing_to_time(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no ONNX file"):
        bench.find([tmp_path])
    with pytest.raises(UserError, match="no such file"):
        bench.find([tmp_path / "nowhere"])


# ---- figures


def test_rows_of_a_run(run: Path) -> None:
    rows = bench.bench(bench.find([run]), [1, 2], ["cpu"], threads=1, seconds=0.0)
    assert [(r["batch"], r["model"]) for r in rows] == [(1, "dense"), (1, "model"), (2, "dense"), (2, "model")]
    dense, slim = size.size(tiny_model())["macs"], 2 * 2 * 17 * 16 * 48  # 48 units gone in two blocks
    for row in rows:
        assert 0 < row["q25_ms"] <= row["median_ms"] <= row["q75_ms"] and row["rounds"] >= 5
        expected = 1.0 if row["model"] == "dense" else (dense["total"] - slim) / dense["total"]
        assert row["mac_ratio"] == pytest.approx(expected)
        assert row["speedup"] == pytest.approx(1 / row["relative"])
        assert row["efficiency"] == pytest.approx(row["speedup"] * row["mac_ratio"])
        assert (row["why"] is None) == (row["efficiency"] >= bench.POOR)
    assert rows[0]["relative"] == 1.0


def test_drift_cancels(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that gets slower every round, and one round that is far off: the ratio is still that of a round."""
    now = 0.0
    rounds = 0

    def take(seconds: float) -> Any:
        def call(_: np.ndarray) -> None:
            nonlocal now, rounds
            rounds += seconds == 2.0
            now += seconds * (1 + rounds) * (50 if rounds == 5 else 1)

        return call

    monkeypatch.setattr(runtime.time, "perf_counter", lambda: now)
    found = runtime.interleaved({"a": take(2.0), "b": take(1.0)}, np.zeros(1), seconds=0.0)
    assert found["b"]["relative"] == pytest.approx(0.5) and found["a"]["relative"] == 1.0
    assert found["a"]["rounds"] == 5


def test_models_of_other_images_are_not_timed_together(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grey = runtime.session(run / "model.onnx")

    class Colour:
        def get_inputs(self) -> list[Any]:
            return [SimpleNamespace(shape=["batch", 3, 28, 28], type="tensor(float)")]

        def get_outputs(self) -> Any:
            return grey.get_outputs()

        def get_modelmeta(self) -> Any:
            return grey.get_modelmeta()

    monkeypatch.setattr(runtime, "session", lambda path, *_, **__: Colour() if path.name == "b" else grey)
    with pytest.raises(UserError, match="takes images"):
        bench.bench({"a": Path("a"), "b": Path("b")}, [1], ["cpu"], seconds=0.0)


def test_a_file_from_elsewhere_has_no_efficiency(run: Path, tmp_path: Path) -> None:
    exporting.save(onnx.load(str(run / "model.onnx")), tmp_path / "plain.onnx", {})
    rows = bench.bench({"a": tmp_path / "plain.onnx", "b": run / "model.onnx"}, [1], ["cpu"], seconds=0.0)
    assert [r["efficiency"] for r in rows] == [None, None] and [r["why"] for r in rows] == [None, None]
    bench.show(rows)


@pytest.mark.parametrize(
    ("row", "best", "about", "expected"),
    [
        ({"efficiency": 0.9}, {}, {}, None),
        ({"efficiency": None}, {}, {}, None),
        ({}, {"batch": 32, "efficiency": 0.9}, {}, "batch too small"),
        ({}, {"batch": 32, "efficiency": 0.52}, {}, "not multiply-adds"),
        ({}, {}, {"widths": [64, 37]}, "37 are no multiple of 16: set round_to: 16"),
        ({"provider": "cuda"}, {}, {"widths": [48]}, "no multiple of 64"),
        ({}, {}, {"ffn_macs": 30}, "attention-bound: 70 %"),
        ({"precision": "fp16"}, {}, {}, "fp16 is for GPUs"),
        ({"precision": "fp16", "provider": "cuda"}, {}, {}, "not multiply-adds"),
    ],
)
def test_reasons(row: dict[str, Any], best: dict[str, Any], about: dict[str, Any], expected: str | None) -> None:
    whole = {"efficiency": 0.5, "batch": 1, "provider": "cpu", "precision": "fp32"} | row
    found = bench.reason(whole, whole | best, facts(**about))
    assert found is None if expected is None else expected in str(found)


# ---- torch


def test_torch_beside_the_files(run: Path) -> None:
    def call(images: np.ndarray) -> object:
        return tiny_model()(torch.from_numpy(images))

    others = {"torch eager dense": (call, facts())}
    rows = bench.bench(bench.find([run]), [1], ["cpu"], seconds=0.0, others=others)
    assert [r["model"] for r in rows] == ["dense", "model", "torch eager dense"]


def test_torch_needs_the_folder_of_a_run(run: Path) -> None:
    with pytest.raises(UserError, match=r"recipe\.yaml"):
        torch_runners.torch_runners(run)


# ---- providers


class FakeRuntime:
    """An onnxruntime with the given providers, whose sessions come up with `active`."""

    def __init__(self, have: list[str], active: list[str] | None = None) -> None:
        self.have, self.active, self.asked = have, active, []

    def get_available_providers(self) -> list[str]:
        return self.have

    class SessionOptions(SimpleNamespace):
        def add_session_config_entry(self, key: str, value: str) -> None:
            setattr(self, key, value)

    def InferenceSession(self, path: str, options: Any, providers: list[Any]) -> Any:
        self.asked.append((providers, options))
        names = [one if isinstance(one, str) else one[0] for one in providers]
        return SimpleNamespace(get_providers=lambda: self.active or [*names, "CPUExecutionProvider"])


CPU, CUDA, TRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"


@pytest.mark.parametrize(("provider", "chain"), [("cpu", [CPU]), ("cuda", [CUDA]), ("tensorrt", [TRT, CUDA])])
def test_provider_selection(monkeypatch: pytest.MonkeyPatch, provider: str, chain: list[str]) -> None:
    fake = FakeRuntime([TRT, CUDA, CPU])
    monkeypatch.setattr(runtime, "onnxruntime", lambda: fake)
    assert runtime.available() == ["cpu", "cuda", "tensorrt"]
    made = runtime.session(b"a graph", provider, threads=2, in_turn=True)
    ((asked, options),) = fake.asked
    assert asked == chain and made.get_providers()[0] == chain[0]
    assert options.intra_op_num_threads == 2 and getattr(options, "session.force_spinning_stop") == "1"


@pytest.mark.parametrize(("provider", "active"), [("cuda", [CPU]), ("tensorrt", [CUDA, CPU])])
def test_a_silent_fallback_is_an_error(monkeypatch: pytest.MonkeyPatch, provider: str, active: list[str]) -> None:
    monkeypatch.setattr(runtime, "onnxruntime", lambda: FakeRuntime([TRT, CUDA, CPU], active))
    with pytest.raises(UserError, match=f"`{provider}`: onnxruntime fell back to {active[0]}"):
        runtime.session(b"a graph", provider)


def test_files_of_a_model_on_cuda_are_examined_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32, without tf32; on the processor where either is not there. What is timed has CUDA's own way."""
    fake = FakeRuntime([CUDA, CPU])
    monkeypatch.setattr(runtime, "onnxruntime", lambda: fake)
    assert [runtime.provider_of(kind) for kind in ("cuda", "cpu", "mps")] == ["cuda", "cpu", "cpu"]
    runtime.session(b"", "cuda", exact=True)
    runtime.session(b"", "cuda")
    runtime.session(b"", "cpu", exact=True)
    assert [asked for asked, _ in fake.asked] == [[(CUDA, {"use_tf32": "0"})], [CUDA], [CPU]]
    monkeypatch.setattr(runtime, "onnxruntime", lambda: FakeRuntime([CPU]))
    assert runtime.provider_of("cuda") == "cpu"


def test_only_what_is_there_is_timed_unasked(monkeypatch: pytest.MonkeyPatch, run: Path) -> None:
    monkeypatch.setattr(runtime, "available", lambda: ["cpu"])
    rows = bench.bench(bench.find([run]), [1], None, seconds=0.0)
    assert {r["provider"] for r in rows} == {"cpu"}


# ---- the command


def test_the_command(run: Path) -> None:
    found = CliRunner().invoke(
        app.app, ["bench", str(run), "--batch", "1", "--provider", "cpu", "--seconds", "0", "--json"]
    )
    assert found.exit_code == 0, found.output
    printed = json.loads(found.stdout)
    assert printed["reference"] == "dense" and [r["model"] for r in printed["rows"]] == ["dense", "model"]
    shown = CliRunner().invoke(app.app, ["bench", str(run), "--batch", "2", "--provider", "cpu", "--seconds", "0"])
    assert shown.exit_code == 0 and "speed-up" in shown.stdout and "dense" in shown.stdout


def test_the_command_without_the_provider(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runtime, "onnxruntime", lambda: FakeRuntime([CPU]))
    monkeypatch.setattr(sys, "argv", ["vitprune", "bench", str(run), "--provider", "cuda"])
    with pytest.raises(SystemExit) as ended:
        app.main()
    printed = capsys.readouterr()
    assert ended.value.code == 2 and printed.out == "" and len(printed.err.splitlines()) == 1
    assert "provider `cuda`: not available" in printed.err
