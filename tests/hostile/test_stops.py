"""SIGTERM and SIGKILL while each stage in turn writes its first file; the same command goes on to the same result."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from small import contents, image_folder, model_folder, recipe_dict, write_recipe

DRIVER = """
import dataclasses, gc, json, os, signal, sys
from pathlib import Path
import pytest, torch
from small import leftovers, quicken
from vitprune.cli import app as cli, tables
from vitprune.deploy.onnx import exporting
from vitprune.model.load import opening
from vitprune.runs import pipeline
from vitprune.runs.record import record
import vitprune.core.progress
recipe, base, model = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
torch.set_num_threads(1)
quicken(pytest.MonkeyPatch())
exporting.export(opening.load(model), base / "warm.onnx", {})  # the children find its program converted
gc.collect()
gc.freeze()
armed, replace = [], os.replace

def replacing(source, target):
    if armed:
        os.kill(os.getpid(), how)
    replace(source, target)

def at(work):
    return lambda *args: (armed.append(True), work(*args))[1]

def child(out, stage):
    global how
    torch.set_num_threads(1)  # makes the thread pool that fork broke anew, before two threads at once find it broken
    how = getattr(signal, out.name, None)
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(base / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.replace = replacing
    pipeline.STAGES = tuple(dataclasses.replace(s, work=at(s.work)) if s.name == stage else s for s in pipeline.STAGES)
    if stage == "report":
        record.write = at(record.write)
    sys.argv = ["vitprune", "run", recipe, "--out", str(out)]
    code = 1
    try:
        cli.main()
    except SystemExit as end:
        code = end.code or 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

stages = [s.name for s in pipeline.STAGES] + ["report"]
plan = [("whole", None)] + [(how, stage) for how in ("SIGTERM", "SIGKILL") for stage in [*stages, None]]
for name, stage in plan:
    out = base / name
    pid = os.fork()
    if not pid:
        child(out, stage)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    known = {"how": name, "stage": stage, "code": code, "left": leftovers(out), "err": (base / "err").read_text()}
    print(json.dumps(known | {"report": (out / "tiny" / "report.html").exists()}), flush=True)
"""
STAGES = ["split", "discover", "moments", "prune", "evaluate", "export"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where one undisturbed run is, and one that was stopped seven times by each signal; `runs.json` says how they went."""
    tmp_path = tmp_path_factory.mktemp("stops")
    content = recipe_dict(model_folder(tmp_path / "m"), image_folder(tmp_path / "i", 5), tmp_path / "out", baselines=[])
    content |= {"keep": 1.0, "export": {"onnx": True, "latency_batches": [1]}}  # dense and slim convert alike
    path = write_recipe(tmp_path / "r.yaml", content)
    tests = Path(__file__).parents[1]
    here = os.pathsep.join(map(str, [tests / "helpers", tests.parent]))
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": here}
    command = [sys.executable, "-W", "ignore", "-c", DRIVER, path, tmp_path, tmp_path / "m"]
    got = subprocess.run(command, capture_output=True, text=True, timeout=400, env=env)
    assert got.returncode == 0, got.stderr
    (tmp_path / "runs.json").write_text(json.dumps([json.loads(line) for line in got.stdout.splitlines()]))
    return tmp_path


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=lambda how: how.name)
def test_a_stop_in_every_stage(folder: Path, how: signal.Signals) -> None:
    runs: list[dict[str, Any]] = json.loads((folder / "runs.json").read_text())
    runs = [run for run in runs if run["how"] == how.name]
    assert [run["stage"] for run in runs] == [*STAGES, "report", None]
    for number, run in enumerate(runs):
        last = run is runs[-1]
        assert run["code"] == (0 if last else 143 if how == signal.SIGTERM else -how), run["err"]
        skipped = [line.split(":")[0] for line in run["err"].splitlines() if line.endswith("unchanged, skipped")]
        assert skipped == STAGES[: max(number - 1, 0)], "what an earlier run finished is not done again"
        assert bool(run["left"]) == (how == signal.SIGKILL and not last), "killed while a file was being written"
        if how == signal.SIGTERM and not last:
            assert run["err"].splitlines()[-1] == "vitprune: stopped; the same command continues where it was"
        assert "Traceback" not in run["err"] and run["report"] == last
    results = [
        {
            k: v
            for k, v in contents(folder / name / "tiny").items()
            if k.endswith((".safetensors", ".onnx", "config.json"))
        }
        for name in ("whole", how.name)
    ]
    differing = [k for k in results[0].keys() | results[1].keys() if results[0].get(k) != results[1].get(k)]
    assert not differing and "model.onnx" in results[0]
