"""Where a run may work: in a folder that is new, empty, or vitprune's own, and not among the system's.

A folder is vitprune's own when it has the list of what vitprune made in it (ledger.py). One from before there was such a
list is known by the sealed records of its stages, and gets the list then.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import yaml

from vitprune.core import ledger
from vitprune.core.errors import UserError
from vitprune.core.files import explain
from vitprune.core.ledger import Ledger
from vitprune.core.reading import Json, read_sealed

STAGES = {"split", "discover", "moments", "prune", "evaluate", "export", "choose", "cluster", "see"}
ONNX = ("model.onnx", "model.fp16.onnx", "model.int8.onnx")
AT_ROOT = (
    "config.json", "model.safetensors", "masks.safetensors", "split.json", "recipe.yaml", "README.md", "report.json",
    "report.md", "report.html", "compare.json", "compare.md", "compare.svg", *ONNX, *(f"{name}.data" for name in ONNX),
)  # fmt: skip
OLD_TEMPORARY = re.compile(r"\.(.+)\.[a-z0-9_]{4,8}\.tmp")
HOUSEKEEPING = {".DS_Store", "Thumbs.db", "desktop.ini"}
SYSTEM = {
    "bin", "boot", "dev", "etc", "lib", "lib32", "lib64", "libx32", "opt", "proc", "root", "run", "sbin", "snap", "srv",
    "sys", "usr", "var", "System", "Library", "Applications", "private",
}  # fmt: skip
TEMPORARY_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm", "/var/folders")
PAGES = {"comparison.md", "comparison.html"}


def claim(root: Path) -> None:
    """Make `root` a folder of vitprune's, if it is not one. Raises UserError where it may not become one."""
    try:
        if Ledger(root).exists():
            return
        if ledger.of(root) is None:
            _refuse_system(root.parent)
        found = sorted(p.name for p in root.iterdir() if p.name not in HOUSEKEEPING) if root.is_dir() else []
        if found and found != [".lock"]:
            if is_old(root):
                return adopt(root)
            shown = ", ".join(found[:3]) + (", …" if len(found) > 3 else "")
            raise UserError(f"{root}: holds files that vitprune did not make ({shown}); choose another `name` or --out")
        root.mkdir(parents=True, exist_ok=True)
        Ledger(root).create()
    except OSError as error:
        raise explain(error, root) from error


def recognise(root: Path) -> None:
    """Give a run's folder from before there were lists its own; any other folder stays as it is."""
    try:
        if ledger.of(root / "any") is None and root.is_dir() and is_old(root):
            adopt(root)
    except OSError as error:
        raise explain(error, root) from error


def refuse_strangers(root: Path, groups: Iterable[str], recipe: Path | None) -> None:
    """Raise UserError for a file in a run's folder that stands where the run will write and is not vitprune's.

    `recipe` is the file that the run was read from, which stays as it is wherever it lies.
    """
    for folder in (root, *(root / group for group in groups)):
        for name in AT_ROOT:
            path = folder / name
            if not (name == "recipe.yaml" and same(path, recipe)):
                ledger.guard(path)


def refuse_inputs(root: Path, inputs: Iterable[tuple[str, Path | None]]) -> None:
    """Raise UserError for a model that is read from the very folder the run will write its own into."""
    for key, path in inputs:
        if path is not None and Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root)):
            raise UserError(f"{key} {path}: lies in the run's own folder {root}, which would replace it; change `name`")


def same(path: Path, other: Path | None) -> bool:
    """Whether both are one file that is there."""
    try:
        return other is not None and path.samefile(other)
    except OSError:
        return False


def is_old(root: Path) -> bool:
    """Whether this is a run's folder from before there were lists."""
    stages, compared = root / "stages", root / "compare"
    if any(_records(stages)) or _only_begun(root):
        return True
    inner = [p for p in compared.glob("seed-*") if p.is_dir()] if compared.is_dir() else []
    return any(Ledger(p).exists() or is_old(p) for p in inner)


def adopt(root: Path) -> None:
    """Start the list of a run's folder from before there were lists."""
    stages = root / "stages"
    files = {path for record in _records(stages) for path in _listed(root, record)}
    files |= {p for p in stages.rglob("*") if not p.is_dir()}
    groups = {p for p in root.iterdir() if p.is_dir() and ledger.says_so(p / "config.json")}
    for place in {root} | groups | {p.parent for p in files if p.parent.parent == root and p.parent != stages}:
        files |= {place / name for name in AT_ROOT if _is_ours(place / name)}
    files |= {p for p in (root / "report-data").rglob("*") if p.is_file()}
    files |= {p for p in root.glob("paper-*.*") if p.suffix in (".json", ".md", ".svg")}
    made = Ledger(root)
    made.create()
    for path in sorted(files):
        if os.path.lexists(path):
            made.add(path, ledger.digest_of(path) if path.name in ledger.WRITTEN_ON and path.is_file() else None)
    known = made.read()
    for path in list(root.rglob(".*.tmp")):
        of = OLD_TEMPORARY.fullmatch(path.name)
        if of and path.is_file() and path.with_name(of[1]).relative_to(root).as_posix() in known:
            path.unlink(missing_ok=True)


def _records(stages: Path) -> Iterator[Path]:
    """The sealed records of finished stages."""
    for path in stages.glob("*/stage.json"):
        if path.parent.name in STAGES and _record(path) is not None:
            yield path


def _only_begun(root: Path) -> bool:
    """A folder that holds nothing but what the very first stage of a run leaves, in its own form."""
    names = {p.name for p in root.iterdir()}
    begun = {".lock", "stages"} <= names <= {".lock", "stages", "recipe.yaml"} and (root / "stages").is_dir()
    return begun and {p.name for p in (root / "stages").iterdir()} <= STAGES


def _record(path: Path) -> Json | None:
    found = read_sealed(path)
    return found if found is not None and isinstance(found.get("files"), dict) and "inputs" in found else None


def _listed(root: Path, record: Path) -> Iterator[Path]:
    """What a stage's record says it made, inside the folder."""
    for name in (_record(record) or {}).get("files", {}):
        path = Path(os.path.normpath(root / name))
        if path.is_relative_to(root):
            yield path


def _is_ours(path: Path) -> bool:
    """Whether a file of an old run's folder is as vitprune writes it: what people like to write on is looked into."""
    if not path.is_file() or path.is_symlink():
        return False
    if path.name == "recipe.yaml":
        return _as_dumped(path)
    return ledger.says_so(path) if path.name == "README.md" else True


def _as_dumped(path: Path) -> bool:
    """Whether a recipe is in the form that vitprune writes: every default spelled out, no comments."""
    try:
        text = path.read_text(encoding="utf-8") if path.stat().st_size <= 1 << 20 else ""
        content = yaml.safe_load(text)
        return isinstance(content, dict) and text == yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    except (OSError, ValueError, RecursionError, yaml.YAMLError, json.JSONDecodeError):
        return False


def _refuse_system(out: Path) -> None:
    """Raise UserError for a folder of the system's, unless somebody made it for this: it is there, and empty or full of
    vitprune's own folders."""
    place = Path(os.path.realpath(out))
    near = next(p for p in (place, *place.parents) if p.exists())
    if (near.parent != near or near == Path.cwd()) and len(place.parts) > 1 and place.parts[1] not in SYSTEM:
        return
    if any(place.is_relative_to(home) for home in _free()):
        return
    if place.is_dir() and all(_own(p) for p in place.iterdir()):
        return
    raise UserError(
        f"{out}: lies among the system's folders; choose another --out, or make that folder yourself, empty, before"
    )


def _free() -> Iterator[Path]:
    """The home, the working folder and the folders for temporary files, unless one of them is the root of everything."""
    places = [os.environ.get("HOME") or "~", str(Path.cwd()), *TEMPORARY_FOLDERS]
    with suppress(OSError):  # where nothing can be written, none is found
        places.append(tempfile.gettempdir())
    places += [
        os.environ[key] for key in ("TMPDIR", "TEMP", "TMP", "XDG_RUNTIME_DIR", "XDG_CACHE_HOME") if os.environ.get(key)
    ]
    for place in places:
        found = Path(os.path.realpath(Path(place).expanduser()))
        if len(found.parts) > 1:
            yield found


def _own(path: Path) -> bool:
    return path.name in HOUSEKEEPING | PAGES or (path.is_dir() and (Ledger(path).exists() or is_old(path)))
