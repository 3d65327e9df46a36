"""The script for a GPU, tried without one: its stages run, it ends in one JSON object, its minutes are what was measured."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(name="script")
def importing(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("gpu")


def ran(script: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *more: str) -> dict[str, Any]:
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--device", "cpu", "--quick", "--date", "2026-11-28", *more])
    assert script.main() == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found


def test_it_ends_in_one_object(
    script: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = ran(script, monkeypatch, capsys, "--only", "forward", "elimination", "sums", "loading")
    assert made["about"]["date"] == "2026-11-28" and made["about"]["device"] == "cpu" and made["about"]["torch"]
    assert list(made["stages"]) == ["forward", "loading", "sums", "elimination"]
    assert made["stages"]["elimination"]["seconds_per_block"] > 0
    assert made["minutes"]["float32"]["sums"] > 0 and made["minutes"]["float32"]["default_recipe"] is None


@pytest.mark.slow
def test_every_stage_runs(script: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    made = ran(script, monkeypatch, capsys)
    assert not any("error" in stage or "skipped" in stage for stage in made["stages"].values())
    assert len(made["stages"]) == 8 and all(made["minutes"]["bfloat16"].values())
    rows = made["stages"]["onnx"]["rows"]
    assert [row["batch"] for row in rows[::3]] == [1, 8, 32] and {row["precision"] for row in rows} == {"fp16"}
    assert all(0.2 < row["mac_ratio"] <= 0.25 for row in rows if row["model"] == "x0.25")


def test_minutes_by_hand(script: Any) -> None:
    """40,000 images at 100 a second, 8,000 at 40 and the fits, 10,000 at 500; twelve blocks of 5 s."""
    rates = {"forward": 900.0, "jas": 20.0, "sums": 100.0, "exam": 500.0}
    found: dict[str, Any] = {name: {"float32": {"images_per_s": rate}} for name, rate in rates.items()}
    found |= {"repair": {"float32": {"images_per_s": 40.0, "fits_s": 30.0}}, "elimination": {"seconds_per_block": 5.0}}
    [row] = script.minutes(found, 12).values()
    parts = {"jas": 2000 / 60, "sums": 400 / 60, "repair": 230 / 60, "exam_row": 20 / 60, "elimination": 1.0}
    assert row == pytest.approx(parts | {"default_recipe": (400 + 230 + 20 + 60) / 60})
