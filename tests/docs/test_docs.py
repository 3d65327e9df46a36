"""The documentation: it builds without a broken link, its examples run, and every promise has its test."""

from __future__ import annotations

import ast
import functools
import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
import yaml

import vitprune
from vitprune.api.vlm.recipe import VlmRecipe
from vitprune.criteria import catalog
from vitprune.criteria.catalog import CRITERIA
from vitprune.recipe import parse, recipe

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
NAMED = re.compile(r"`(tests/(?:\w+/)?\w+\.py)::(\w+)`")


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.M | re.S)


@functools.cache
def names_in(path: Path) -> dict[str, list[str]]:
    """Of every test its decorators."""
    tests = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)]
    return {node.name: [ast.unparse(mark) for mark in node.decorator_list] for node in tests}


def test_every_promise_names_tests_that_exist() -> None:
    rows = [line for line in (ROOT / "docs" / "promises.md").read_text().splitlines() if line.startswith("| ")]
    rows = [row for row in rows if not row.startswith("| promise ")]
    assert len(rows) > 30
    for row in rows:
        named = NAMED.findall(row)
        assert named, f"a promise without a test: {row}"
        for path, name in named:
            assert name.startswith("test_") and name in names_in(ROOT / path), f"{path}::{name}"


def test_every_promise_has_a_quick_test() -> None:
    """One that `make test` runs: a slow one stands in the table only beside it."""
    for row in (ROOT / "docs" / "promises.md").read_text().splitlines():
        named = [names_in(ROOT / path)[name] for path, name in NAMED.findall(row)]
        assert not named or any("pytest.mark.slow" not in marks for marks in named), row
    assert '-m "not slow"' in (ROOT / "Makefile").read_text()


def test_what_contributors_are_told_is_there() -> None:
    """Files that CONTRIBUTING.md, the architecture page and the hooks speak of exist; one version stands everywhere."""
    for page in ("CONTRIBUTING.md", "docs/architecture.md", ".pre-commit-config.yaml"):
        text = (ROOT / page).read_text()
        named = re.findall(r"\b(?:tests|vitprune|docs|benchmarks|recipes)/[\w/]+\.(?:py|md|yaml)\b", text)
        assert named, page
        for name in named:
            assert (ROOT / name).is_file(), f"{page}: {name}"
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
    assert set(re.findall(r"`make ([a-z-]+)`", (ROOT / "CONTRIBUTING.md").read_text())) <= set(targets)
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["version"] == vitprune.__version__ and cited["license"] == "MIT"
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert headings == [vitprune.__version__, "0.1.0"]  # nothing unreleased is told of
    assert f'version = "{vitprune.__version__}"' in (ROOT / "pyproject.toml").read_text()
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    assert [hook["id"] for hook in hooks] == ["ruff", "ruff-format", "mypy", "layers"]


def test_the_recipes_of_the_documentation_are_recipes() -> None:
    found = {page.stem: blocks(page, "yaml") for page in PAGES}
    assert found["quickstart"]
    for texts in found.values():
        for text in texts:
            of_vlm = "pairs" in yaml.safe_load(text).get("data", {})
            assert (VlmRecipe.model_validate(yaml.safe_load(text)) if of_vlm else parse.parse(text)).name
    lines = [line for line in found["quickstart"][0].splitlines() if line.strip()]
    assert len(lines) <= 10


def test_the_readme_is_short_and_its_figures_are_those_of_the_results() -> None:
    """Its picture and its table are what benchmarks/readme.py makes of committed results, to the byte."""
    page = ROOT / "README.md"
    assert len(page.read_text().splitlines()) <= 150
    script = [sys.executable, str(ROOT / "benchmarks" / "readme.py"), "--check"]
    got = subprocess.run(script, capture_output=True, text=True, check=False)
    assert got.returncode == 0, got.stderr
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (ROOT / target).exists(), target
    (text,) = blocks(page, "yaml")
    assert parse.parse(text).name == "footwear"


@pytest.mark.parametrize("page", ["README.md", pytest.param("docs/library.md", marks=pytest.mark.slow)])
def test_the_lines_for_python_run_as_they_stand(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "vitprune").symlink_to(ROOT / "vitprune")
    monkeypatch.chdir(tmp_path)
    for lines in blocks(ROOT / page, "python"):
        exec(compile(lines, page, "exec"), {})
    assert (tmp_path / "slim.onnx").is_file() and (tmp_path / "slim" / "config.json").is_file()


def test_the_criterion_of_the_documentation_works(tiny_vit, make_images, monkeypatch: pytest.MonkeyPatch) -> None:
    (text,) = blocks(ROOT / "docs" / "criterion.md", "python")
    assert len([line for line in text.splitlines() if line.strip()]) <= 20
    monkeypatch.setattr("vitprune.criteria.catalog.CRITERIA", dict(CRITERIA))
    monkeypatch.setattr("vitprune.api.scoring.CRITERIA", catalog.CRITERIA)
    exec(compile(text, "criterion.md", "exec"), {})
    model, images = tiny_vit(dtype=torch.float32), make_images(6, dtype=torch.float32)
    labels = torch.arange(6) % 3
    scores = vitprune.discover(model, images, labels, criterion="energy", t=4)
    seen: list[torch.Tensor] = []
    handle = model.blocks[1].mlp.act.register_forward_hook(lambda _, __, out: seen.append(out))
    model(images)
    handle.remove()
    for label in range(3):
        mine = seen[0][labels == label].double().pow(2).mean((0, 1))
        torch.testing.assert_close(scores.rows[1][label].double(), mine, rtol=1e-4, atol=1e-6)
    slim = vitprune.prune(model, scores, keep=0.25, recovery="affine", images=images)
    assert slim.blocks[1].mlp.fc1.out_features == 8


def test_every_key_of_a_recipe_is_described() -> None:
    schema = recipe.Recipe.model_json_schema()
    for name, part in {"Recipe": schema, **schema["$defs"]}.items():
        assert part.get("description"), name
        for key, about in part["properties"].items():
            assert about.get("description"), f"{name}.{key}"


def test_the_picture_is_sound_and_follows_the_reader() -> None:
    text = (ROOT / "docs" / "data-way.svg").read_text()
    tree = ElementTree.fromstring(text)
    assert "prefers-color-scheme: dark" in text and tree.get("role") == "img"
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    if importlib.util.find_spec("mkdocs") is None:
        pytest.skip("mkdocs is not installed")
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    return tmp_path


def build(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", "-m", "mkdocs", "build"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=200)


def test_the_site_builds_and_fetches_nothing(copied: Path) -> None:
    got = build(copied)
    assert got.returncode == 0, got.stderr
    pages = {path.name: path.read_text() for path in (copied / "site").glob("*.html")}
    assert {"index.html", "recipe.html", "families.html", "promises.html"} <= pages.keys()
    for key in recipe.Recipe.model_fields:
        assert f"<code>{key}</code>" in pages["recipe.html"]
    for name, text in pages.items():
        assert not re.search(r'<(?:script|link|img)[^>]*(?:src|href)="(?:https?:)?//', text), name


def test_a_broken_link_or_anchor_fails_the_build(copied: Path) -> None:
    with (copied / "docs" / "index.md").open("a") as page:
        page.write("\n[nowhere](none.md) and [no heading](recipe.md#none)\n")
    got = build(copied)
    assert got.returncode != 0 and "none.md" in got.stderr and "#none" in got.stderr


@pytest.mark.parametrize("nth", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_the_cookbooks_lines_for_python_run_as_they_stand(
    nth: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The backbone of a detector, and tuning afterwards."""
    (tmp_path / "vitprune").symlink_to(ROOT / "vitprune")
    monkeypatch.chdir(tmp_path)
    every = blocks(ROOT / "docs" / "cookbook.md", "python")
    assert len(every) == 2
    exec(compile(every[nth], "cookbook.md", "exec"), {})
    assert (tmp_path / ("slim-backbone", "slim-tuned")[nth] / "config.json").is_file()


@pytest.mark.slow
def test_the_lines_of_backbones_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they stand, but that nothing is fetched and the model is small."""
    monkeypatch.chdir(tmp_path)
    (text,) = blocks(ROOT / "docs" / "backbones.md", "python")
    assert text.count("pretrained=True") == 1
    own = {"images": torch.randn(12, 3, 28, 28)}
    exec(compile(text.replace("pretrained=True", "img_size=28, depth=2"), "backbones.md", "exec"), own)
    assert own["tokens"].shape == (12, 5, 384) and (tmp_path / "slim" / "config.json").is_file()
