"""What a shell is told of the verbs, options and values that can come next."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command as a shell finds it: `vitprune` on the path."""
    found = tmp_path_factory.mktemp("bin") / "vitprune"
    found.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec {sys.executable} -m vitprune "$@"\n')
    found.chmod(0o755)
    return found


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("vitprune comple", {"completion"}),
        pytest.param("vitprune run --bud", {"--budget"}, marks=pytest.mark.slow),
        pytest.param("vitprune run --budget ma", {"macs="}, marks=pytest.mark.slow),
        pytest.param("vitprune plan dem", {"demo"}, marks=pytest.mark.slow),
    ],
)
def test_bash_completes(command: Path, line: str, expected: set[str]) -> None:
    """The script is read by a real bash, and its function called as bash calls it."""
    script = (
        'eval "$(vitprune completion bash)"\n'
        f"COMP_WORDS=({line}); COMP_CWORD=$((${{#COMP_WORDS[@]}}-1)); _vitprune_completion vitprune\n"
        'printf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    env = os.environ | {"PATH": f"{command.parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=120, env=env)
    assert done.returncode == 0 and set(done.stdout.split()) == expected, done.stderr


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_scripts_of_other_shells(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    from vitprune.cli.around import completion

    completion.completion(completion.Shell(shell))
    made = capsys.readouterr().out
    assert "_VITPRUNE_COMPLETE" in made and f"complete_{shell}" in made
