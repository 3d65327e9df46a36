"""A short fuzz run of every kind, and that the judge sees what it is there to see. `make fuzz` is the long one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import fuzz
import fuzz_cases
import pytest
from fuzz import Case

from vitprune.cli import app
from vitprune.core.errors import UserError

CASES = {"recipe text": 50, "recipe values": 40, "weights": 24, "check": 24, "predict": 20, "report": 2, "cells": 2}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[fuzz_cases.Lab]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MPLCONFIGDIR", str(tmp_path_factory.mktemp("matplotlib")))
        yield fuzz_cases.Lab.build(tmp_path_factory.mktemp("lab"))


@pytest.mark.parametrize("kind", fuzz_cases.KINDS)
@pytest.mark.parametrize("half", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_damaged_input_is_one_line_or_success(lab: fuzz_cases.Lab, kind: str, half: int) -> None:
    failed, codes = [], set()
    for number in range(half, CASES.get(kind, 6), 2):
        code, why = fuzz.attempt(lab, fuzz_cases.KINDS[kind], 1, number)
        codes.add(code)
        failed += [f"case {number} of seed 1: {why}"] if why else []
    assert not failed, "\n".join(failed)
    assert codes <= {0, 1, 2}


def test_the_same_case_is_the_same_damage(lab: fuzz_cases.Lab, tmp_path: Path) -> None:
    made = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        fuzz_cases.config(lab, tmp_path / name, Random("1/2"))
        made.append((tmp_path / name / "model" / "config.json").read_bytes())
    assert made[0] == made[1]
    assert {fuzz_cases.kind(0, n) for n in range(600)} == set(fuzz_cases.KINDS)


# ---- the judge


def crash() -> None:
    raise KeyError("ours")


def bare() -> None:
    print("vitprune: one\nvitprune: two", file=sys.stderr)
    sys.exit(2)


def trace() -> None:
    print("Traceback (most recent call last):", file=sys.stderr)


def write() -> None:
    Path("../beside").write_text("x")


def folder() -> None:
    os.mkdir("../outside")  # noqa: PTH102


def program() -> None:
    subprocess.run(["true"], check=True)


def connection() -> None:
    socket.socket().connect(("127.0.0.1", 9))


def hang() -> None:
    while True:
        time.sleep(0.01)


WRONG: dict[Callable[[], None], str] = {
    crash: "exit 1", bare: "exit 2 with", trace: "a trace", write: "touched open", folder: "touched os.mkdir",
    program: "touched subprocess.Popen", connection: "touched socket.connect", hang: "more than",
}  # fmt: skip


def judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, work: Callable[[], None], out: Path | None) -> str | None:
    (tmp_path / "case").mkdir()
    monkeypatch.chdir(tmp_path / "case")
    monkeypatch.setattr(app, "app", lambda **_: work())
    monkeypatch.setattr(fuzz, "HANG", 0.3)
    case = Case([], out)
    return fuzz.fault(case, *fuzz.call(case))


@pytest.mark.parametrize("work", WRONG, ids=lambda f: f.__name__)
def test_the_judge_sees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, work: Callable[[], None]) -> None:
    assert WRONG[work] in (judged(tmp_path, monkeypatch, work, None) or "")


def test_the_judge_is_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def good() -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "file").write_text("x")
        raise UserError("file: is not a recipe; mend it")

    assert judged(tmp_path, monkeypatch, good, tmp_path / "out") is None
