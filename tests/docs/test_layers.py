"""The house's import rules: a file imports only from lower floors, rooms of one floor do not know each other, no circles."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import vitprune

FLOORS = "core | images | model demo | criteria exam deploy | pruning see | recipe report | runs | paper api | cli"
FLOOR = {room: n for n, floor in enumerate(FLOORS.split(" | ")) for room in floor.split()}
ROOT = Path(vitprune.__file__).parent
FILES = {
    ".".join(f.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__"): f for f in ROOT.rglob("*.py")
}
OUTSIDE = {
    "torch_pruning": ("vitprune.criteria.weights",),
    "onnxruntime": ("vitprune.deploy", "vitprune.cli"),
    "loky": ("vitprune.runs.engine",),
    "ray": ("vitprune.runs.engine.ray",),
    "fastapi": ("vitprune.deploy.serve",),
    "uvicorn": ("vitprune.deploy.serve",),
    "mlflow": ("vitprune.runs.record.tracking",),
}


def imports(module: str) -> set[str]:
    """Every module that a file imports anywhere: inside functions and for type checking too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(FILES[module].read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in FILES else node.module for name in names}
    return found


def test_every_import_goes_down() -> None:
    for module in FILES.keys() - {"vitprune", "vitprune.__main__"}:
        room = module.split(".")[1]
        for name in imports(module):
            if name.split(".")[0] == "vitprune":
                assert name != "vitprune", f"{module}: the package root is for users"
                other = name.split(".")[1]
                assert room == other or FLOOR[other] < FLOOR[room], f"{module} → {name}"
            for package, homes in OUTSIDE.items():
                assert name.split(".")[0] != package or module.startswith(homes), f"{module} → {name}"


def test_no_circles() -> None:
    TopologicalSorter({module: (imports(module) & FILES.keys()) - {module, "vitprune"} for module in FILES}).prepare()
