"""What is built around the package: images for docker, the action for GitHub, the wheel."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DOCKERFILES = sorted((ROOT / "docker").glob("Dockerfile.*"))
KNOWN = {"FROM", "RUN", "COPY", "WORKDIR", "USER", "ENV", "ENTRYPOINT", "CMD"}


def instructions(path: Path) -> list[tuple[str, str]]:
    """Of a Dockerfile, its continued lines as one."""
    text = re.sub(r"\\\n\s*", "", re.sub(r"(?m)^#.*\n", "", path.read_text()))
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in text.splitlines() if line.strip()]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.suffix[1:])
def test_a_dockerfile_does_as_it_should(path: Path) -> None:
    """Known instructions, a pinned base, files that are there and not ignored, an extra that exists, no root, no cache."""
    found = instructions(path)
    assert {word for word, _ in found} <= KNOWN and found[0][0] == "FROM"
    image, _, tag = found[0][1].partition(":")
    assert image and tag and tag != "latest"
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    needed = {"pyproject.toml", "README.md", "LICENSE", "vitprune", "recipes"}
    copied = {name.removeprefix("./") for word, rest in found if word == "COPY" for name in rest.split()[:-1]}
    assert copied == needed == allowed and all((ROOT / name).exists() for name in copied)
    (install,) = [rest for word, rest in found if word == "RUN" and "pip install" in rest]
    asked = re.search(r'"\.\[([\w,]+)\]"', install)
    assert asked and set(asked[1].split(",")) <= extras.keys() and "--no-cache-dir" in install
    assert not {"cpu", "gpu"} <= set(asked[1].split(","))
    users = [rest for word, rest in found if word == "USER"]
    assert users and users[-1] != "root" and found[-2] == ("ENTRYPOINT", '["vitprune"]')
    assert all("apt-get" not in rest or "rm -rf /var/lib/apt/lists/*" in rest for word, rest in found if word == "RUN")
    for word, rest in found:
        if word == "RUN":
            subprocess.run(["sh", "-n", "-c", rest], check=True, timeout=60)


def docker() -> bool:
    """Whether there is a docker here that can build."""
    if shutil.which("docker") is None:
        return False
    return subprocess.run(["docker", "info"], capture_output=True, timeout=60).returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(not docker(), reason="no docker that can build")
def test_the_image_is_built_and_answers() -> None:
    command = ["docker", "build", "--quiet", "-f", "docker/Dockerfile.cpu", "."]
    image = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=3600).stdout.strip()
    done = subprocess.run(["docker", "run", "--rm", image, "--version"], check=True, capture_output=True, text=True)
    assert done.stdout.startswith("vitprune ")


def step(name: str) -> str:
    """The script of a step of the action."""
    made = yaml.safe_load((ROOT / "action.yml").read_text())
    (found,) = [one for one in made["runs"]["steps"] if one["name"] == name]
    assert found["shell"] == "bash"
    return str(found["run"])


def test_the_action_is_one() -> None:
    """Inputs that are read exist, and none of them is put into a script's text, where it would be run."""
    made = yaml.safe_load((ROOT / "action.yml").read_text())
    assert made["runs"]["using"] == "composite" and made["inputs"]["report"]["required"]
    text = (ROOT / "action.yml").read_text()
    assert set(re.findall(r"inputs\.([\w-]+)", text)) == made["inputs"].keys()
    assert all("${{" not in one["run"] for one in made["runs"]["steps"])
    for one in made["runs"]["steps"]:
        subprocess.run(["bash", "-n", "-c", one["run"]], check=True, timeout=60)


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
@pytest.mark.parametrize("code", [0, 1])
def test_the_action_checks_and_posts(tmp_path: Path, code: int) -> None:
    """Its steps run as GitHub runs them, with a vitprune and a gh that write down what they were asked."""
    folder, bins = tmp_path / "my run", tmp_path / "bin"
    folder.mkdir()
    bins.mkdir()
    (folder / "report.md").write_text("# A report\n")
    (folder / "report.json").write_text("{}")
    (bins / "vitprune").write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > "$HERE/asked"\necho "[{{}}]"\nexit {code}\n')
    (bins / "gh").write_text('#!/bin/sh\nprintf "%s\\n" "$@" > "$HERE/said"\ncat "$7" >> "$HERE/said"\n')
    for file in bins.iterdir():
        file.chmod(0o755)
    env = os.environ | {"PATH": f"{bins}{os.pathsep}{os.environ['PATH']}", "HERE": str(tmp_path)}
    env |= {"RUNNER_TEMP": str(tmp_path), "GITHUB_OUTPUT": str(tmp_path / "out")}
    env |= {"GITHUB_STEP_SUMMARY": str(tmp_path / "summary"), "GITHUB_REPOSITORY": "me/it"}
    bars = {"MIN_TOP1": "0.87", "MAX_LATENCY_RATIO": "", "MAX_PARAMS_RATIO": "0.5", "MAX_MACS_RATIO": ""}
    asked = {"REPORT": str(folder / "report.json")} | bars
    done = subprocess.run(["bash", "-e", "-c", step("Check")], env=env | asked, timeout=60)
    assert done.returncode == code
    assert (tmp_path / "asked").read_text().split("\n")[:5] == [
        "check", "--min-top1=0.87", "--max-params-ratio=0.5", "--json", "--",
    ]  # fmt: skip
    assert (tmp_path / "summary").read_text() == "# A report\n"
    assert f"folder={folder}" in (tmp_path / "out").read_text().splitlines()
    subprocess.run(["bash", "-e", "-c", step("Comment")], env=env | {"FOLDER": str(folder), "NUMBER": "7"}, check=True)
    said = (tmp_path / "said").read_text()
    assert said.startswith("pr\ncomment\n7\n--repo\nme/it\n") and said.endswith("# A report\n")


def test_the_package_says_that_it_is_typed() -> None:
    assert (ROOT / "vitprune" / "py.typed").read_bytes() == b""
