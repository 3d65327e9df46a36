"""The house stays small to read: files, functions, folders, and what the type checker is asked to believe."""

from __future__ import annotations

import ast
from pathlib import Path

import vitprune

ROOT = Path(vitprune.__file__).parent
FILES = {file.relative_to(ROOT).as_posix(): file.read_text("utf-8") for file in sorted(ROOT.rglob("*.py"))}
LONG_FILES = {  # the schema of recipes; a script that trains the bundled model; an open run, until it is split
    "recipe/recipe.py",
    "demo/train.py",
    "runs/state/run.py",
}


def lines_with(text: str) -> list[str]:
    """Every line of the package with a text, with its file."""
    return [f"{name}: {line.strip()}" for name, source in FILES.items() for line in source.splitlines() if text in line]


def test_no_file_is_long() -> None:
    long = {name: n for name, source in FILES.items() if (n := len(source.splitlines())) > 300}
    assert long.keys() <= LONG_FILES, long


def test_hardly_a_function_is_longer_than_a_screen() -> None:
    long = [
        f"{name}: {node.name}"
        for name, source in FILES.items()
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (node.end_lineno or 0) - node.lineno >= 40
    ]
    assert len(long) <= 3, long


def test_folders_can_be_taken_in_at_a_glance() -> None:
    for folder in {ROOT, *(path for path in ROOT.rglob("*") if path.is_dir())}:
        entries = {entry.name for entry in folder.iterdir()} - {"__init__.py", "__pycache__", "py.typed"}
        assert folder.name == "__pycache__" or len(entries) <= (16 if folder == ROOT else 12), (folder, sorted(entries))


def test_the_type_checker_is_seldom_silenced() -> None:
    silenced = lines_with("type: ignore")
    assert len(silenced) <= 25, silenced


def test_dictionaries_of_anything_are_few() -> None:
    """`Json` is the one name for the content of a record; a dictionary of anything else has a type of its own."""
    free = lines_with("dict[str, Any]")
    assert len(free) <= 142, free
