"""Intervals that say something at 0 and 100 %, and losses that a paired test speaks about."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from records import Page, made_record, row

from vitprune.exam import metrics
from vitprune.report import write_report
from vitprune.report.sections.verdict.result import paired


def wilson_by_hand(k: int, n: int) -> tuple[float, float]:
    z, p = 1.959963984540054, k / n
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)


@pytest.mark.parametrize(("right", "n"), [(0, 1), (1, 1), (0, 9), (9, 9), (500, 500), (3, 7), (1, 1000)])
def test_wilson_by_hand(right: int, n: int) -> None:
    low, high = metrics.wilson(right, n)
    assert (low, high) == pytest.approx(wilson_by_hand(right, n), abs=1e-9)
    assert 0 <= low <= right / n <= high <= 1 and low < high


@pytest.mark.parametrize("n", [1, 5, 300])
@pytest.mark.parametrize("right", [True, False])
def test_where_the_bootstrap_is_a_point_wilson_is_taken(n: int, right: bool) -> None:
    found = metrics.interval(np.full(n, right))
    assert found == metrics.wilson(n * right, n) and found[0] < found[1]
    logits = np.tile(np.array([[2.0, 0.0]], np.float32), (n, 1))
    assert metrics.metrics(logits, np.full(n, 0 if right else 1)).top1_ci95 == found


def test_elsewhere_it_is_the_bootstrap() -> None:
    hit = np.arange(200) % 10 > 0
    draws = np.random.default_rng(3).integers(0, 200, (metrics.BOOTSTRAPS, 200), dtype=np.int32)
    assert metrics.interval(hit, 3) == tuple(np.percentile(hit[draws].mean(1), [2.5, 97.5]))


@pytest.mark.parametrize(
    ("dense", "says"),
    [
        ({"mcnemar_p": 0.4, "only_right": [7, 4]}, "p 0.4 (7 images only dense gets right, 4 only slim), these"),
        ({"mcnemar_p": 0.001, "only_right": [27, 4]}, "these images show a difference"),
        ({"mcnemar_p": 1.0}, "p 1, these images cannot tell the two apart"),
        ({"mcnemar_p": None, "only_right": None}, ""),
        ({}, ""),
    ],
)  # fmt: skip
def test_a_loss_is_spoken_of_by_the_paired_test(dense: dict[str, object], says: str) -> None:
    assert says in paired(dense) if says else paired(dense) == ""


def test_the_headline_never_reads_a_loss_off_the_interval(tmp_path: Path) -> None:
    """The dense model's figure inside the interval proves nothing: the same images were asked."""
    made = made_record()
    made["rows"][0] |= {"mcnemar_p": 0.0021, "only_right": [31, 14]}
    made["rows"][1]["mcnemar_p"] = None
    made["results"] = {"tops": row("jas", 0.8, group="tops")}
    made["rows"].append(row("dense", 0.83, group="tops", mcnemar_p=0.031))
    write_report(made, tmp_path)
    page = Page((tmp_path / "report.html").read_text("utf-8"))
    text = " ".join(page.text)
    assert "the interval" not in text.replace("% interval", "") or "lies" not in text
    assert "paired test against dense: p 0.0021 (31 images only dense gets right, 14 only slim)" in text
    assert "0.031" in page.tables["Exported models, one per group"][1]


def test_classes_have_their_interval(tmp_path: Path) -> None:
    made = made_record()
    made["per_class"][1] |= {"n": 9, "slim_top1": 1.0, "slim_ci95": list(metrics.wilson(9, 9))}
    write_report(made, tmp_path)
    table = Page((tmp_path / "report.html").read_text("utf-8")).tables["Top-1 per class, sorted by change"]
    assert any("70.1 to 100.0" in cell for line in table for cell in line)
