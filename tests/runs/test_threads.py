"""Threads wait asleep unless the user says otherwise, before torch is there; a crowded machine is told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import vitprune
from vitprune.runs.engine import threads


def test_what_the_user_says_of_waiting_stays() -> None:
    own = {"PATH": "/bin"}
    threads.wait_quietly(own)
    assert own == {"PATH": "/bin", "OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}
    for name in threads.QUIET:
        said = {name: "7"}
        threads.wait_quietly(said)
        assert said == {name: "7"}


def test_the_command_says_so_before_torch_is_imported() -> None:
    """`main` of the command with an import of torch that tells what it finds."""
    script = (
        "import json, os, sys\n"
        "class Watch:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name == 'torch' and not hasattr(self, 'told'):\n"
        "            self.told = True\n"
        "            print(json.dumps({k: os.environ.get(k) for k in ('OMP_WAIT_POLICY', 'GOMP_SPINCOUNT')}))\n"
        "            sys.stdout.flush()\n"
        "            os._exit(0)\n"
        "from vitprune.cli import app\n"
        "assert 'torch' not in sys.modules\n"
        "sys.meta_path.insert(0, Watch())\n"
        "sys.argv = ['vitprune', 'doctor']\n"
        "app.main()\n"
    )
    env = {k: v for k, v in os.environ.items() if k not in threads.QUIET}
    env["PYTHONPATH"] = str(Path(vitprune.__file__).parent.parent)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env, timeout=120)
    assert json.loads(done.stdout) == {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}, done.stderr


def test_how_they_wait_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in threads.QUIET:
        monkeypatch.delenv(name, raising=False)
    assert threads.waiting() == "spinning"
    monkeypatch.setenv("GOMP_SPINCOUNT", "100")
    assert threads.waiting() == "GOMP_SPINCOUNT=100"
    for name, value in threads.QUIET.items():
        monkeypatch.setenv(name, value)
    assert threads.waiting() == "asleep"


def test_a_crowded_machine_is_told_and_no_other() -> None:
    assert threads.crowded(2, 0.3, 2) is None and threads.crowded(1, 9.0, 2) is None
    assert threads.crowded(4, 5.0, 16) is None and threads.crowded(2, None, 2) is None
    said = threads.crowded(2, 2.0, 2)
    assert said is not None and "load is 2.0 on 2 cores" in said and "OMP_NUM_THREADS=1" in said
