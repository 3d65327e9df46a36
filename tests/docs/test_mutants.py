"""The table of mutants: every fault has its place in today's source, is sound Python, and belongs to a promise."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import mutants
import pytest
from mutants import MUTANTS, ROOT, Mutant

NAMED = mutants.named_in_promises()


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.what)
def test_a_mutant_has_its_place_and_its_promise(mutant: Mutant) -> None:
    """Its old text stands once in its file; its tests are named in docs/promises.md, whose own test looks for them."""
    path = ROOT / "vitprune" / mutant.file
    assert path.read_text().count(mutant.old) == 1, f"{mutant.file}: the text has changed; change the mutant with it"
    text = mutants.mutated(mutant)
    assert text is not None and text != path.read_text()
    assert ast.dump(ast.parse(text)) != ast.dump(ast.parse(path.read_text()))
    assert mutant.tests and set(mutant.tests) <= NAMED, "the tests of a mutant are those of a promise"


def test_the_table_is_long_and_says_nothing_twice() -> None:
    assert len(MUTANTS) >= 40
    assert len({m.what for m in MUTANTS}) == len({(m.file, m.old, m.new) for m in MUTANTS}) == len(MUTANTS)
    assert len({m.file for m in MUTANTS}) >= 15


def test_text_that_is_gone_is_told() -> None:
    gone = Mutant("gone", "masks.py", "this text stands nowhere", "", ("test_paths_masks.py::test_width",))
    assert mutants.mutated(gone) is None and mutants.outcome(gone) == "stale"


def test_the_runner_tells_a_guarded_promise_from_one_that_nothing_guards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a tree of two files: killed, survived, and a test that is not there is no kill."""
    for name, text in {
        "vitprune/__init__.py": "",
        "vitprune/sums.py": "def add(a, b):\n    return a + b\n",
        "tests/test_sums.py": "from vitprune.sums import add\n\ndef test_add():\n    assert add(2, 3) == 5\n\n"
        "def test_two():\n    assert add(2, 0) == 2\n",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(mutants, "ROOT", tmp_path)
    found = {
        test: mutants.outcome(Mutant("sign", "sums.py", "a + b", "a - b", (f"test_sums.py::{test}",)))
        for test in ("test_add", "test_two", "test_none")
    }
    assert found == {"test_add": "killed", "test_two": "survived", "test_none": "broken"}
    assert "a + b" in (tmp_path / "vitprune" / "sums.py").read_text()


def test_help_is_there() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "mutants.py"), "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0 and "--only" in done.stdout and "--jobs" in done.stdout
