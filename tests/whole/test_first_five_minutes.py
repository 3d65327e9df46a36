"""A new user's first minutes: the wheel in an environment of its own, README's commands there, and the demo on few images."""

from __future__ import annotations

import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
RUN_THERE = ("recipe new", "recipe schema", "criteria", "models", "recipe check demo", "completion bash")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")


def commands() -> list[str]:
    """The lines of README's code that call the command, without their comments; `a|b` and `a | b` are a line for each."""
    found: list[str] = []
    for line in README.splitlines():
        text = re.sub(r"\s{2,}#.*|\s+#\s.*", "", line).strip()
        if not re.match(r"vitprune [a-z]", text) or not line.startswith((" ", "vitprune")):
            continue
        for piece in text.removeprefix("vitprune ").split(" | "):
            words = [word.split("|") for word in piece.split()]
            found += [" ".join(("vitprune", *chosen)) for chosen in itertools.product(*words)]
    return found


def run(*command: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    env |= {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2"), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    return subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=3600, env=env, **options)  # type: ignore[call-overload,no-any-return]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, made from a copy."""
    base = tmp_path_factory.mktemp("wheel")
    for name in ("vitprune", "recipes"):
        shutil.copytree(ROOT / name, base / "src" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, base / "src" / name)
    done = run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", base, base / "src")
    if done.returncode and re.search(
        r"No matching distribution found for hatchling|Connection|Temporary failure", done.stderr
    ):
        pytest.skip("no hatchling to build with, and no index to fetch it from")
    assert done.returncode == 0, done.stderr
    (made,) = base.glob("*.whl")
    return made


@pytest.fixture(scope="module", params=["borrowed", "empty"])
def installed(request: pytest.FixtureRequest, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The programs of an environment with the wheel in it: dependencies are those of this one, or its own from an index."""
    base = tmp_path_factory.mktemp("environment")
    assert run(sys.executable, "-m", "venv", base / "venv").returncode == 0
    bins = base / "venv" / ("Scripts" if os.name == "nt" else "bin")
    if request.param == "borrowed":
        own = run(bins / "python", "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])").stdout.strip()
        Path(own, "borrowed.pth").write_text(sysconfig.get_paths()["purelib"] + "\n" + "\n".join(sys.path[1:]) + "\n")
        done = run(bins / "python", "-m", "pip", "install", "--no-deps", "--ignore-installed", wheel)
    elif "VITPRUNE_INDEX" not in os.environ:
        pytest.skip("set VITPRUNE_INDEX=1 to install torch and all else anew, from the index that pip knows")
    else:
        done = run(bins / "python", "-m", "pip", "install", f"{wheel}[cpu]")
    assert done.returncode == 0, done.stderr
    yield bins
    shutil.rmtree(base)


def test_readmes_commands_are_found() -> None:
    """Quick, and beside the slow ones: the lines that they run are there, and their verbs and options are the command's."""
    found = commands()
    assert len(found) >= 8 and all(line.startswith("vitprune ") for line in found)
    from typer.testing import CliRunner

    from vitprune.cli.app import app

    def named(word: str) -> bool:
        return bool(re.fullmatch(r"[a-z]+", word))

    groups = {"recipe"}
    for line in found:
        words = shlex.split(line)[1:]
        verb = words[:2] if words[0] in groups and len(words) > 1 and named(words[1]) else words[:1]
        done = CliRunner().invoke(app, [*verb, "--help"], env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"})
        assert done.exit_code == 0, line
        assert set(OPTION.findall(line)) <= set(OPTION.findall(done.output)), line


@pytest.mark.slow
def test_what_is_in_the_wheel(wheel: Path) -> None:
    """The code, what it reads, that it is typed; no test, no result, no file of a run."""
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"vitprune/py.typed", "vitprune/deploy/serve/page.html", "vitprune/recipes/demo.yaml"} <= names
    assert {
        "vitprune/report/schema.json",
        "vitprune/demo/model/config.json",
        "vitprune/demo/model/model.safetensors",
    } <= names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"vitprune"}
    assert not [name for name in names if name.endswith((".pyc", ".pkl", ".pth"))]


@pytest.mark.slow
def test_readmes_commands_and_the_demo(installed: Path, tmp_path: Path) -> None:
    """In an empty folder, from the wheel: what can be asked at once, then the demo's road on forty images of each class."""
    program = installed / "vitprune"
    where = run(installed / "python", "-c", "import vitprune; print(vitprune.__file__)", cwd=tmp_path)
    assert where.returncode == 0 and str(ROOT / "vitprune") not in where.stdout, where.stderr
    for line in {line for line in commands() if line.removeprefix("vitprune ").startswith(RUN_THERE)}:
        done = run("bash", "-c", f'PATH="{installed}:$PATH"; {line}', cwd=tmp_path)
        assert done.returncode == 0, (line, done.stderr)
    shown = run(program, "recipe", "check", "demo", "--show", cwd=tmp_path)
    recipe = yaml.safe_load(shown.stdout)
    recipe["data"]["limit_per_class"], recipe["paper_protocol"] = 40, None
    recipe["criterion"]["probe_per_class"] = 4
    (tmp_path / "few.yaml").write_text(yaml.safe_dump(recipe))
    done = run(program, "run", "few.yaml", "--yes", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    made = tmp_path / "exported" / "demo"
    assert done.stdout.splitlines()[-1] == "Report: exported/demo/report.html"
    assert {"report.html", "model.safetensors", "model.onnx", "model.int8.onnx"} <= {p.name for p in made.iterdir()}
    asked = run(
        program, "recipe", "new", "--model", "bundled", "--data", "bundled", "--budget", "macs=0.25", cwd=tmp_path
    )
    assert yaml.safe_load(asked.stdout)["budget"] == {"macs": 0.25}
