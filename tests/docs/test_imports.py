"""What may be imported without torch, and that importing a submodule hides no public function behind it."""

from __future__ import annotations

import json
import os
import pkgutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

import vitprune

WITHOUT_TORCH = (
    "vitprune.core.errors", "vitprune.core.files", "vitprune.images.decode", "vitprune.images.preprocess",
    "vitprune.deploy.runtime", "vitprune.deploy.predict", "vitprune.criteria.catalog",
)  # fmt: skip
HEAVY = ("torch", "torchvision", "timm", "transformers", "torch_pruning", "onnxscript")


def modules(package: str) -> list[str]:
    """Every module below a package, itself included, in order; the package is not imported."""
    folder = Path(vitprune.__file__).parent.joinpath(*package.split(".")[1:])
    files = sorted(folder.rglob("*.py"))
    names = [".".join((package, *file.relative_to(folder).with_suffix("").parts)) for file in files]
    return [name.removesuffix(".__init__") for name in names]


def apart(script: str, *args: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """A script in an interpreter of its own, with `folder` before everything that is installed."""
    places = [*([str(folder)] if folder else []), str(Path(vitprune.__file__).parent.parent)]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(places), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-c", script, *args], capture_output=True, text=True, timeout=300, env=env)


def refused(folder: Path, names: Iterable[str]) -> Path:
    """A folder of modules that cannot be imported."""
    for name in names:
        (folder / f"{name}.py").write_text("raise ImportError('not here')\n")
    return folder


@pytest.mark.parametrize(
    "names", [WITHOUT_TORCH, modules("vitprune.recipe"), modules("vitprune.report")], ids=["alone", "recipe", "report"]
)
def test_imported_without_torch(names: list[str], tmp_path: Path) -> None:
    """Where importing torch fails, and by what is loaded afterwards: a try around the import would not hide it."""
    script = (
        "import importlib, json, sys\n"
        f"heavy = {HEAVY}\n"
        "loaded = {}\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        "    loaded[name] = [other for other in heavy if other in sys.modules]\n"
        "print(json.dumps(loaded))\n"
    )
    assert len(names) >= 6
    done = apart(script, *names, folder=refused(tmp_path, HEAVY))
    assert done.returncode == 0, done.stderr
    assert {name for name, found in json.loads(done.stdout).items() if found} == set()


def test_that_the_one_above_would_notice(tmp_path: Path) -> None:
    done = apart("import vitprune.api", folder=refused(tmp_path, HEAVY))
    assert done.returncode == 1 and "not here" in done.stderr


def test_no_submodule_hides_a_public_name() -> None:
    """Importing `vitprune.x` sets `x` on the package: every module is imported, then each public name is looked at."""
    script = (
        "import importlib, json, sys, types\n"
        "import vitprune\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        "found = {name: getattr(vitprune, name) for name in vitprune.__all__}\n"
        "kinds = {name: isinstance(one, types.ModuleType) or not callable(one) for name, one in found.items()}\n"
        "homes = {name: getattr(one, '__module__', '') for name, one in found.items()}\n"
        "print(json.dumps({'hidden': [name for name, bad in kinds.items() if bad], 'homes': homes}))\n"
    )
    names = [name for name in modules("vitprune") if name.split(".")[-1] != "__main__"]
    assert len(names) > 100
    done = apart(script, *names)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["hidden"] == []
    assert all(said["homes"][name].startswith("vitprune.") for name in vitprune.__all__)


def test_every_module_has_a_name_that_python_finds() -> None:
    """The list above is the package's own: no folder without `__init__.py`, and nothing that only lies there."""
    found = {module.name for module in pkgutil.walk_packages(vitprune.__path__, "vitprune.")}
    assert found | {"vitprune"} == set(modules("vitprune"))
