"""The benchmark of backbones: images without folders, means over seeds, the table for the page."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small import image_folder


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module("backbones")


def seed(number: int, cosine: float, low: float) -> dict[str, Any]:
    """What one split gave at one budget, two ways."""
    row = dict.fromkeys(("fvu", "tokens_cosine", "tokens_fvu", "neighbours"), 0.5) | {"cosine": cosine}
    ours = row | {"predicted_cosine_loss": 0.04, "measured_over_predicted": 1.0 + number}
    gap = {"cosine": 0.01, "cosine_ci95": [low, 0.02], "tokens_cosine": 0.1, "tokens_cosine_ci95": [0.05, 0.2]}
    return {"seed": number, "budgets": {"0.5": {"fisher-obs": ours, "obs": row | {"gap": gap}}}}


def test_the_images_lie_in_one_folder_and_stay_what_they_are(script: Any, tmp_path: Path) -> None:
    data = image_folder(tmp_path / "data")
    for _ in range(2):  # again, nothing is copied twice
        folder = script.flat(data, tmp_path / "work")
    files = sorted(folder.iterdir())
    assert files and all(path.is_file() for path in files)
    below = sorted(path for path in data.rglob("*") if path.is_file() and path.suffix in script.IMAGES)
    assert [path.read_bytes() for path in files] == [path.read_bytes() for path in below]


def test_the_gap_is_paired_over_images(script: Any) -> None:
    ours, other = {"cosine": np.array([0.9, 0.8, 0.7])}, {"cosine": np.array([0.8, 0.8, 0.6])}
    found = script.gap(ours, other)
    sd = np.std([0.1, 0.0, 0.1], ddof=1)
    assert found["cosine"] == pytest.approx(0.2 / 3)
    assert found["cosine_ci95"] == pytest.approx([0.2 / 3 - 1.96 * sd / 3**0.5, 0.2 / 3 + 1.96 * sd / 3**0.5])


def test_means_and_the_table_for_the_page(script: Any) -> None:
    seeds = [seed(0, 0.9, 0.001), seed(1, 0.8, -0.001)]
    made = {"seeds": seeds, "mean": script.mean(seeds)}
    assert made["mean"]["0.5"]["fisher-obs"]["cosine"] == pytest.approx(0.85)
    text = script.markdown(made)
    assert "| x0.5 | obs | 0.850 | 0.500 | 0.500 | 0.500 | 50 % | +0.010 (1 of 2) | +0.100 (2 of 2) |" in text
    assert "the plan said 1 - cosine 0.040 and came out 1.50 times that" in text
    assert len({line.count("|") for line in text.splitlines()}) == 1
