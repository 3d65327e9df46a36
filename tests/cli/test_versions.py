"""The oldest releases that the package admits can do what it asks of them, and `doctor` says which one cannot."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest

from vitprune.cli.around import doctor
from vitprune.core.errors import UserError
from vitprune.deploy import runtime
from vitprune.deploy.onnx import exporting

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize("extra", ["cpu", "gpu"])
def test_the_oldest_onnxruntime_knows_the_opset(extra: str) -> None:
    (line,) = PROJECT["optional-dependencies"][extra]
    floor = re.fullmatch(r"onnxruntime(?:-gpu)?>=(\d+)\.(\d+)", line)
    assert floor and tuple(map(int, floor.groups())) == runtime.OLDEST
    assert runtime.OLDEST >= (1, 23) and exporting.OPSET == 23, "opset 23 came with 1.23; a later one needs a later one"


@pytest.mark.parametrize(
    ("version", "old"),
    [("1.22.1", True), ("1.9.0", True), ("1.23.0", False), ("1.100.0", False), ("2.0", False), ("dev", False), (None, False)],
)  # fmt: skip
def test_an_onnxruntime_that_is_too_old(version: str | None, old: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_versions", lambda: {"onnxruntime": version, "onnxruntime-gpu": None})
    problems = [p for p in doctor.examine()["problems"] if "opset" in p]
    assert bool(problems) == old
    if old:
        assert problems == [
            f"onnxruntime {version} is too old for the files made here (opset 23): pip install 'onnxruntime>=1.23'"
        ]


def test_work_with_an_old_onnxruntime_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    old = SimpleNamespace(__version__="1.22.0", InferenceSession=None)
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", old)
    with pytest.raises(UserError, match=r"onnxruntime 1\.22\.0 is too old"):
        runtime.onnxruntime()
    old.__version__ = "1.23.0+custom"
    assert runtime.onnxruntime() is old


@pytest.mark.parametrize(
    ("torch", "torchvision", "right"),
    [
        ("2.15.0", "0.29.2", True), ("2.15.0+cu132", "0.29.2+cpu", True), ("2.14.1", "0.29.0", True),
        ("2.13.0", "0.28.0", True), ("2.15.0", "0.28.0", False), ("2.13.0+cpu", "0.29.2", False),
        ("3.0.0", "1.0.0", True), (None, "0.29.2", True), ("2.15.0", None, True),
    ],
)  # fmt: skip
def test_torch_and_torchvision_are_pairs(torch: str | None, torchvision: str | None, right: bool) -> None:
    found = doctor.wrong_pair(torch, torchvision)
    assert (found is None) == right
    if found:
        assert f"torch {torch} goes with torchvision 0.2" in found and "pip install 'torch==" in found


def test_the_admitted_range_is_that_of_the_known_pairs() -> None:
    ranges = {line.split(">=")[0]: line for line in PROJECT["dependencies"]}

    def ends(name: str) -> tuple[str, str]:
        low, high = re.fullmatch(rf"{name}>=([\d.]+),<([\d.]+)", ranges[name]).groups()  # type: ignore[union-attr]
        return low, high

    releases = list(doctor.PAIRS)
    assert ends("torch") == (releases[0], f"2.{int(releases[-1].split('.')[1]) + 1}")
    assert ends("torchvision")[0] == doctor.PAIRS[releases[0]][0]
