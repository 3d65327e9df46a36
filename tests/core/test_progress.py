"""What a command says while it works: lines that fit, rates, one ETA, no long silence, a log."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from vitprune.core.errors import UserError
from vitprune.core.progress import Reporter, reporter, words
from vitprune.core.progress.ahead import Ahead


def test_rates_and_clocks() -> None:
    assert [words.clock(s) for s in (0.4, 59.6, 725, 11220, 3e5)] == ["0:00", "1:00", "12:05", "3:07:00", "3 days"]
    assert words.rate(1200, 10) == "120/s" and words.rate(31, 10) == "3.1/s" and words.rate(10, 10) == "1.0 s/item"
    assert words.rate(4, 10) == "2.5 s/item" and words.rate(1, 300) == "300 s/item" and words.rate(0, 3) == ""

    assert words.broken("in 12,345 of /a/b-c/d e", 10) == "in 12,345\nof\n/a/b-c/d e" and words.broken("", 80) == ""


@pytest.mark.parametrize("width", [40, 60, 79, 120])
@pytest.mark.parametrize("total", [3, 400, 50_000, 1_281_167])
def test_a_bar_fits_and_no_number_is_cut(width: int, total: int) -> None:
    label = "evaluate, fisher-obs without the repair, of group footwear"
    for done in (0, total // 2, total):
        line = words.bar(width, label, done, total, 100.0)
        assert len(line) <= width and f"{done}/{total}" in line and words.rate(done, 100.0) in line
        assert line.startswith("evaluate"[:3])
    assert "━" in words.bar(79, label, total, total, 1.0) and "#" in words.bar(79, label, total, total, 1.0, plain=True)


def test_the_estimate_is_corrected_by_what_was_measured() -> None:
    ahead = Ahead({"split": 10.0, "discover": 100.0, "prune": 50.0}, {})
    assert ahead.left() == 160.0 and ahead.place("discover") == (2, 3)
    ahead.finished("split", 35.0)
    factor = (5 + 35) / (5 + 10)
    assert ahead.left() == pytest.approx(factor * 150)
    assert ahead.left("discover", 40.0) == pytest.approx(factor * 150 - 40)
    assert ahead.left("discover", 40.0, own=1000.0) == pytest.approx(1000 + factor * 50)  # the work knows better
    slower = (5 + 35 + 900) / (5 + 10 + 100)
    late = max(slower * 100 - 900, 0.1 * 900)
    assert ahead.left("discover", 900.0) == pytest.approx(slower * 50 + late)  # past its estimate: so is the rest
    ahead.finished("discover", 0.0, worked=False)
    assert ahead.left() == pytest.approx(factor * 50)  # what was there already says nothing of the machine
    ahead.finished("prune", 10.0)
    assert ahead.left() == 0.0


def test_budgets_of_a_frontier_share_the_time_of_a_stage() -> None:
    ahead = Ahead({"prune": 30.0}, {"prune": 3})
    ahead.finished("prune", 10.0)
    assert ahead.left() == pytest.approx(20.0)
    ahead.finished("prune", 0.0, worked=False)
    assert ahead.left() == pytest.approx(10.0)
    for _ in range(3):  # found done more often than it was expected at all
        ahead.finished("prune", 0.0, worked=False)
        ahead.finished("evaluate", 0.0, worked=False)
    assert ahead.left() == 0.0


def told(made: Reporter, width: int = 80) -> io.StringIO:
    text = io.StringIO()
    made.console = Console(file=text, width=width, highlight=False, force_terminal=False)
    return text


def test_a_log_has_lines_with_the_etas(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Standard error that is no terminal, and the log beside it; quiet leaves the log alone."""
    monkeypatch.setattr(reporter, "LOG_EVERY", 0.0)
    made = Reporter(log=tmp_path / "run.log")
    text = told(made)
    made.expect({"discover": 10.0, "prune": 60.0})
    with made.stage("discover"):
        assert list(made.track(iter("ab"), "jas", 8, 4)) == ["a", "b"]
    made.note("once")
    made.note("once")
    lines = text.getvalue().splitlines()
    assert re.fullmatch(r"jas: 4/8, \d+/s, run ETA 1:1\d", lines[0]) and re.fullmatch(
        r"jas: 8/8 in \d\.\d s", lines[-2]
    )
    assert lines[-1] == "note: once" and lines.count("note: once") == 1
    written = (tmp_path / "run.log").read_text().splitlines()
    assert [line[20:] for line in written] == lines and all(
        re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", w) for w in written
    )
    quiet = Reporter(quiet=True, log=tmp_path / "run.log")
    text = told(quiet)
    assert list(quiet.track([1], "more", 1)) == [1]
    assert text.getvalue() == "" and "more: 1/1" in (tmp_path / "run.log").read_text()
    with pytest.raises(UserError, match="--log"):
        Reporter(log=tmp_path)


def test_silence_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """By what the command does at first, and later by what is at work; the first line is not said twice."""
    monkeypatch.setattr(reporter, "FIRST", 0.0)
    made = Reporter()
    text = told(made)
    made._doing = "demo, into exported/demo"
    made.beat()
    made.say("demo, into exported/demo")
    assert text.getvalue() == "demo, into exported/demo\n"
    made.beat()
    assert text.getvalue().count("\n") == 1  # it is not silent yet
    monkeypatch.setattr(reporter, "SILENT", 0.0)
    made.expect({"export": 40.0})
    with made.stage("export"):
        made.beat()
        for _ in made.track([1], "export, int8", 3):
            made.beat()
    found = text.getvalue().splitlines()
    assert re.fullmatch(r"export: at work, for 0:00, run ETA 0:(40|39)", found[1])
    assert re.fullmatch(r"export, int8: 0/3, run ETA 0:(40|39)", found[2])
    made.resting = True
    made.beat()
    assert len(text.getvalue().splitlines()) == len(found)


SCRIPT = """
import time
from vitprune.core.progress import Reporter, reporter
made = Reporter()
made.watch("tiny, into out/tiny")
made.expect({"split": 1.0, "discover": 4.0})
time.sleep(1.2)
made.note("the load is 4.9 on 2 cores, and this process has 12,345,678 threads: OMP_NUM_THREADS=1 may be as fast")
with made.stage("discover"):
    for _ in made.track(range(4), "discover fisher-obs, statistics of attention", 1281167, 320292):
        time.sleep(0.3)
made.say("discover: done")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="a pseudo-terminal")
def test_a_terminal_of_80_columns() -> None:
    """In a real one: the stage and its place, a bar with its numbers whole, one ETA, and lines that stay."""
    ours, theirs = pty.openpty()
    env = os.environ | {"COLUMNS": "80", "TERM": "xterm", "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONUTF8": "1"}
    started = time.monotonic()
    child = subprocess.Popen([sys.executable, "-c", SCRIPT], stderr=theirs, stdin=subprocess.DEVNULL, env=env)
    os.close(theirs)
    seen = b""
    try:
        while part := os.read(ours, 65536):
            seen += part
    except OSError:  # the other end is closed
        pass
    assert child.wait(60) == 0 and time.monotonic() - started < 60
    os.close(ours)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "\n", seen.decode()).replace("\r", "\n")
    lines = [line for line in text.splitlines() if line]
    assert lines[0] == "tiny, into out/tiny" and max(map(len, lines)) <= 80
    assert lines[1].startswith("note: the load is 4.9") and "12,345,678" in lines[1] + lines[2]
    assert any(re.fullmatch(r"discover \(2 of 2\), 0:0\d, run ETA 0:0\d", line) for line in lines), lines
    assert any(re.search(r"━.* 640584/1281167 +\d+/s$", line) for line in lines), lines
    whole = r"discover fisher-obs, statistics of attention: 1281167/1281167 in \d\.\d s"
    assert any(re.fullmatch(whole, line) for line in lines), lines
    assert lines[-1] == "discover: done"


def test_a_silence_outside_of_stages_is_broken_by_what_was_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in `vitprune bench`, which says nothing that takes less."""
    monkeypatch.setattr(reporter, "SILENT", 0.0)
    made = Reporter()
    text = told(made)
    made.begin("bench: cpu, batch 32")
    assert text.getvalue() == ""
    made.beat()
    assert text.getvalue() == "bench: cpu, batch 32: at work\n"
