"""A latency that may be wrong says so, beside the figure, wherever the figure is printed."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from records import Page, made_record
from typer.testing import CliRunner

from vitprune.cli import app, tables
from vitprune.deploy import bench, runtime, timing
from vitprune.report import compare_reports, write_report
from vitprune.report.bars import Bar, check, line
from vitprune.report.card import card


class Clock:
    """Time that passes only inside the calls, by what `script` says of the round."""

    def __init__(self, patch: pytest.MonkeyPatch, others: float = 0.0) -> None:
        self.now, self.round, self.others = 0.0, 0, others
        patch.setattr(runtime.time, "perf_counter", lambda: self.now)
        patch.setattr(timing.time, "monotonic", lambda: self.now)
        patch.setattr(timing, "_own", lambda: self.now)
        patch.setattr(timing, "_busy", lambda: self.now * (1 + self.others))

    def call(self, script: Callable[[int], float], first: bool = False) -> Callable[[np.ndarray], None]:
        def run(_: np.ndarray) -> None:
            self.round += first
            self.now += script(self.round)

        return run


def measured(clock: Clock, slim: Callable[[int], float], seconds: float = 1.0) -> dict[str, Any]:
    runners = {"dense": clock.call(lambda _: 0.1, True), "slim": clock.call(slim)}
    return runtime.interleaved(runners, np.zeros(1), seconds=seconds)["slim"]


def test_rounds_go_on_until_the_quartiles_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first second is disturbed; what follows outvotes it."""
    quiet = measured(Clock(monkeypatch), lambda _: 0.05)
    calm = measured(Clock(monkeypatch), lambda n: 0.05 if n > 9 else 0.05 + 0.02 * (n % 4))
    assert quiet["rounds"] == 7 and timing.notes(quiet, 1.0) == []
    assert calm["rounds"] > 2 * quiet["rounds"] and calm["relative"] == pytest.approx(0.5)
    low, high = calm["relative_quartiles"]
    assert (high - low) / calm["relative"] <= timing.SPREAD and timing.notes(calm, 1.0) == []


def test_time_is_up_and_the_spread_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    wild = measured(clock, lambda n: 0.05 * (1 + n % 3))
    assert timing.PATIENCE <= clock.now <= timing.PATIENCE + 1.5
    (note,) = timing.notes(wild, 1.0)
    assert note.startswith("wide spread: half of the ") and "0.5 to 1.5" in note
    assert measured(Clock(monkeypatch), lambda n: 0.05 * (1 + n % 3), 0.0)["rounds"] == 5


@pytest.mark.parametrize(("others", "told"), [(0.0, False), (0.1, False), (0.9, True)])
def test_load_of_others(monkeypatch: pytest.MonkeyPatch, others: float, told: bool) -> None:
    monkeypatch.setattr(timing.os, "cpu_count", lambda: 2)
    found = measured(Clock(monkeypatch, others), lambda _: 0.05)
    assert found["other_cores"] == pytest.approx(others)
    notes = timing.notes(found, None)
    assert (notes == [f"other processes used {others:.1f} of the 2 cores meanwhile"]) == told and bool(notes) == told


def test_many_cores_idle_along(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing.os, "cpu_count", lambda: 64)
    assert timing.notes(measured(Clock(monkeypatch, 0.9), lambda _: 0.05), None) == []


def test_what_the_system_counts() -> None:
    """Time stolen counts, waiting for disks does not; a guest's time is counted once."""
    spent = [10.0, 1.0, 3.0, 50.0, 7.0, 0.0, 0.0, 2.0, 4.0, 0.0]
    names = ["user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal", "guest", "guest_nice"]

    class Times(tuple):
        def __getattr__(self, name: str) -> float:
            return spent[names.index(name)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing.psutil, "cpu_times", lambda: Times(spent))
        assert timing._busy() == 10 + 1 + 3 + 2 + 4 - 4
        patch.setattr(timing.psutil, "cpu_times", lambda: (_ for _ in ()).throw(OSError()))
        assert timing._busy() is None and timing.Load().others() is None


@pytest.mark.parametrize(("efficiency", "told"), [(None, False), (1.15, False), (1.16, True), (38.9, True)])
def test_more_time_saved_than_arithmetic(efficiency: float | None, told: bool) -> None:
    row = {"relative": 0.5, "relative_quartiles": [0.5, 0.5], "rounds": 9, "other_cores": None}
    assert [f"efficiency {efficiency or 0:.2f}" in note for note in timing.notes(row, efficiency)] == [True] * told


def test_bench_says_so_of_the_same_precision_only(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """int8 may well save more time than multiply-adds; fp32 against fp32 hardly."""
    precision = {"dense": "fp32", "model": "fp32", "int8": "int8"}
    monkeypatch.setattr(runtime, "session", lambda path, *_, **__: path.name)
    monkeypatch.setattr(bench, "_shape", lambda sessions: (1, 2, 2))
    monkeypatch.setattr(
        bench, "facts_of",
        lambda made: {"macs": 100 if made == "dense" else 50, "ffn_macs": 20, "widths": [16], "precision": precision[made]},
    )  # fmt: skip
    row = {"q25_ms": 1.0, "median_ms": 1.0, "q75_ms": 1.0, "relative": 0.2, "rounds": 9, "other_cores": 0.0}
    row["relative_quartiles"] = [0.2, 0.2]
    monkeypatch.setattr(runtime, "interleaved", lambda runners, *_, **__: {n: copy.deepcopy(row) for n in runners})
    rows = {r["model"]: r for r in bench.bench({n: Path(n) for n in precision}, [1], ["cpu"])}
    assert [bool(rows[n]["notes"]) for n in ("model", "int8")] == [True, False]
    bench.show(list(rows.values()))
    assert "batch 1, model: in doubt: efficiency 2.50" in capsys.readouterr().out
    json.dumps(list(rows.values()))


NOTES = ["wide spread: half of the 9 rounds lie outside 0.3 to 0.9", "efficiency 1.61: more time saved"]


@pytest.fixture
def doubtful(tmp_path: Path) -> tuple[dict[str, Any], Path]:
    made = made_record()
    made["result"]["latency_notes"] = NOTES
    made["latency"][0]["notes"] = NOTES
    write_report(made, tmp_path)
    return made, tmp_path


def test_the_report_says_so_beside_the_figure(doubtful: tuple[dict[str, Any], Path]) -> None:
    _, folder = doubtful
    page = " ".join(Page((folder / "report.html").read_text("utf-8")).text)
    text = (folder / "report.md").read_text("utf-8")
    for note in NOTES:
        assert page.count(note) == 2 and text.count(note) == 2, "headline and table"
    assert "of its latency (in doubt)" in page and "Batch 1 is in doubt" in page
    write_report(made_record(), folder)
    assert "in doubt" not in (folder / "report.html").read_text("utf-8")


def test_check_card_terminal_and_comparison_say_so(
    doubtful: tuple[dict[str, Any], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    made, folder = doubtful
    rows = check(folder, [Bar("latency_ratio", 0.7), Bar("top1", 0.5, True)])
    assert [row["notes"] for row in rows] == [NOTES, []]
    assert NOTES[0] in line(rows[0]) and len(line(rows[0]).splitlines()) == 1
    shown = CliRunner().invoke(app.app, ["check", str(folder), "--max-latency-ratio", "0.7"])
    assert shown.exit_code == 0 and NOTES[1] in shown.output
    assert f"In doubt: {NOTES[0]}; {NOTES[1]}." in card(made, made["result"], {"architecture": "vit"})
    tables.show(made, "run", folder)
    printed = capsys.readouterr().out
    assert all(f"The latency is in doubt: {note}" in printed for note in NOTES)
    compare_reports([(folder / "report.json", made), (folder / "b.json", made_record())], folder)
    page = " ".join(Page((folder / "comparison.html").read_text("utf-8")).text)
    assert "in doubt" in page and all(note in page for note in NOTES)


def test_a_busy_machine_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The counters of this machine, asked for real."""
    monkeypatch.setattr(timing, "SHORTEST", 0.0)
    load = timing.Load()
    sum(i * i for i in range(200_000))
    assert load.others() is None or load.others() >= 0.0
    assert isinstance(timing._own(), float)
