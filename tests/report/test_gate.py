"""`vitprune check`: what passes, what is missed, and what cannot be judged."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from records import Record, made_record, row
from typer.testing import CliRunner

from vitprune.cli.app import app
from vitprune.core.errors import UserError
from vitprune.report.bars import Bar, check


def saved(record: Any, folder: Path) -> Path:
    path = folder / "report.json"
    path.write_text(json.dumps(record), "utf-8")
    return path


def ask(path: Path, *options: str) -> tuple[int, str]:
    found = CliRunner().invoke(app, ["check", str(path), *options])
    return found.exit_code, found.output


@pytest.mark.parametrize(
    ("option", "value", "key"),
    [
        ("--min-top1", 0.8649, "top1"),
        ("--max-latency-ratio", 0.62, "latency_ratio"),
        ("--max-params-ratio", 302346 / 677386, "params_ratio"),
        ("--max-macs-ratio", 14123000 / 35480000, "macs_ratio"),
    ],
)
def test_a_bar_is_cleared_when_it_is_reached_and_missed_beyond(
    tmp_path: Path, option: str, value: float, key: str
) -> None:
    path = saved(made_record(), tmp_path)
    beyond = value + (0.001 if option.startswith("--min") else -0.001)
    assert ask(path, option, repr(value))[0] == 0
    code, text = ask(path, option, repr(beyond))
    assert code == 1 and text.startswith(f"MISSED  {key} ") and len(text.splitlines()) == 1
    (line,) = json.loads(ask(path, option, repr(beyond), "--json")[1])
    assert (line["name"], line["passed"], line["group"]) == (key, False, None)
    assert line["value"] == pytest.approx(value) and line["limit"] == beyond


def test_one_line_per_bar_and_one_missed_is_enough(tmp_path: Path) -> None:
    saved(made_record(), tmp_path)
    code, text = ask(tmp_path, "--min-top1", "0.8", "--max-latency-ratio", "0.5")
    assert code == 1
    assert text.splitlines() == ["ok      top1 0.8649, at least 0.8", "MISSED  latency_ratio 0.62, at most 0.5"]


def test_every_group_must_clear_it(tmp_path: Path) -> None:
    record = made_record()
    record["results"] = {"footwear": row("jas", 0.9, group="footwear"), "tops": row("jas", 0.8, group="tops")}
    found = check(saved(record, tmp_path), [Bar("top1", 0.85, at_least=True)])
    assert [(line["group"], line["passed"]) for line in found] == [("footwear", True), ("tops", False)]


def broken(**changed: Any) -> Record:
    return copy.deepcopy(made_record()) | changed


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ([], "not the report of a finished run"),
        ({}, "not the report of a finished run"),
        (broken(complete=False, missing=["export"]), "missing: export"),
        (broken(result=3), "not the report of a finished run"),
        (broken(result=made_record()["result"] | {"protocol": "oracle"}), "not an honest measurement"),
        (broken(result=made_record()["result"] | {"top1": None}), "holds no top1"),
        (broken(result=made_record()["result"] | {"top1": "0.99"}), "holds no top1"),
    ],
    ids=["list", "empty", "partial", "no result", "oracle", "null", "text"],
)
def test_what_cannot_be_judged_is_refused_in_one_line(tmp_path: Path, record: Any, says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        check(saved(record, tmp_path), [Bar("top1", 0.5, at_least=True)])
    assert len(str(caught.value).splitlines()) == 1


def test_bars_that_are_none(tmp_path: Path) -> None:
    path = saved(made_record(), tmp_path)
    with pytest.raises(UserError, match="at least one bar"):
        check(path, [])
    for limit in (float("nan"), float("inf"), -0.1, 90.0):
        with pytest.raises(UserError, match="is no bar"):
            check(path, [Bar("top1", limit, at_least=True)])
    with pytest.raises(UserError, match="cannot be read"):
        check(tmp_path / "gone.json", [Bar("top1", 0.5, at_least=True)])
