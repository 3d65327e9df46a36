"""Which files of a folder vitprune made: the list `.vitprune` in a run's folder, by which nothing else is ever replaced.

One JSON array a line: [path relative to the folder] or [path, sha256], the last line of a path counts. A line is written
before the file is put in its place, so that a run that is killed at any moment knows its own. What people like to write
on in (README.md, recipe.yaml) is listed with the digest of what was written: changed since then, it is theirs.

Outside such a folder a file counts as ours by what it says of itself.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from vitprune.core.errors import UserError

NAME = ".vitprune"
HEADER = '["made by vitprune: the files it may replace or remove, one a line"]'
WRITTEN_ON = {"README.md", "recipe.yaml"}
TEMPORARY = ".vitprune.tmp"  # how every temporary name of ours ends
HEAD = 1 << 16  # bytes in which a file says whose it is
LARGEST = 1 << 26


@dataclass(frozen=True, slots=True)
class Ledger:
    """The list of a folder."""

    root: Path

    @property
    def path(self) -> Path:
        return self.root / NAME

    def exists(self) -> bool:
        """Whether this folder has one: a regular file that starts as ours do, or is empty as a killed run left it."""
        try:
            found = self.path.lstat()
            if not stat.S_ISREG(found.st_mode):
                return False
            with self.path.open("rb") as handle:
                start = handle.read(len(HEADER))
        except OSError:
            return False
        return HEADER.encode().startswith(start)

    def create(self) -> None:
        """Start the list; one that is there stays."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with suppress(FileExistsError):
            handle = os.open(self.path, flags, 0o666)
            try:
                os.write(handle, f"{HEADER}\n".encode())
            finally:
                os.close(handle)

    def read(self) -> dict[str, str | None]:
        """Path → digest of what was written, None where any content is ours. Lines that cannot be read are left out."""
        now = self.path.stat()
        return _entries(self.path, now.st_ino, now.st_size, now.st_mtime_ns)

    def add(self, path: Path, seal: str | None = None) -> None:
        """List a file below the folder. The line begins with its end, so that half a line before it spoils nothing."""
        entry = [self.name_of(path), *([seal] if seal else [])]
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW)
        try:
            line = f"\n{json.dumps(entry)}\n".encode()
            if os.write(handle, line) < len(line):
                os.write(handle, b"\n")  # a disk that is full says so now
        finally:
            os.close(handle)

    def tidy(self) -> None:
        """Forget files that are gone, where they have become many."""
        known = self.read()
        kept = {name: seal for name, seal in known.items() if os.path.lexists(self.root / name)}
        if len(known) - len(kept) > 100 + len(kept):
            lines = [HEADER, *(json.dumps([name, *([seal] if seal else [])]) for name, seal in kept.items())]
            temporary = self.root / f"{NAME}.tidy{TEMPORARY}"
            temporary.write_text("\n".join([*lines, ""]), encoding="utf-8")
            os.replace(temporary, self.path)

    def name_of(self, path: Path) -> str:
        """A path below the folder as it is listed."""
        return plain(path).relative_to(plain(self.root)).as_posix()

    def files(self, below: Path) -> set[Path]:
        """Every listed file below a folder that is there and ours; links are not followed out of the ledger's folder."""
        root, below = plain(self.root), plain(below)
        found = {Path(os.path.normpath(root / name)) for name in self.read()}
        found = {p for p in found if below in p.parents and os.path.lexists(p) and not p.is_dir()}
        real = root.resolve()
        return {p for p in found if p.parent.resolve().is_relative_to(real) and why_not(p, self) is None}


def plain(path: Path) -> Path:
    """The absolute path, `..` worked out, links as they are."""
    return Path(os.path.normpath(path.absolute()))


@lru_cache(maxsize=8)
def _entries(path: Path, inode: int, size: int, changed: int) -> dict[str, str | None]:
    """The entries of a list as it is now."""
    found: dict[str, str | None] = {}
    with path.open("rb") as handle:
        text = handle.read(LARGEST).decode(errors="replace")
    for line in text.split("\n")[1:]:
        with suppress(ValueError, RecursionError):
            entry = json.loads(line) if line else None
            if isinstance(entry, list) and entry and all(isinstance(part, str) for part in entry):
                found[entry[0]] = entry[1] if len(entry) > 1 else None
    return found


def of(path: Path) -> Ledger | None:
    """The list that speaks of a path: that of the nearest folder above it which has one."""
    for folder in plain(path).parents:
        made = Ledger(folder)
        if made.exists():
            return made
    return None


def why_not(path: Path, made: Ledger) -> str | None:
    """Why a file may not be replaced, or None."""
    known, name = made.read(), made.name_of(path)
    if name not in known:
        return "was not made by vitprune"
    seal = known[name]
    if seal is not None and path.is_file() and seal != digest_of(path):
        return "was changed since vitprune wrote it"
    return None


def guard(path: Path, anywhere: bool = False) -> None:
    """Raise UserError where something stands at `path` in a folder of ours that is not ours to replace; with `anywhere`,
    in any folder, where a file is ours if it says so."""
    if not os.path.lexists(path) or (path.is_dir() and not path.is_symlink()):
        return  # the second is the system's to refuse
    made = of(path)
    foreign = None if says_so(path) or not anywhere else "was not made by vitprune"
    reason = why_not(path, made) if made else foreign
    if reason:
        raise UserError(f"{path}: {reason}, so it is not replaced; move it away, or choose another place (--out)")


def enter(path: Path, content: Path) -> None:
    """List `path`, which is about to get the bytes of the file `content`."""
    made = of(path)
    if made is None:
        return
    seal = digest_of(content) if path.name in WRITTEN_ON else None
    if not os.path.lexists(path) or (seal and made.read().get(made.name_of(path)) != seal):
        made.add(path, seal)


def discard(path: Path) -> None:
    """Remove a file if it is there and ours."""
    if os.path.lexists(path) and (path.is_symlink() or not path.is_dir()):
        made = of(path)
        if why_not(path, made) is None if made else says_so(path):
            path.unlink(missing_ok=True)


def digest_of(path: Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def says_so(path: Path) -> bool:
    """Whether a file outside any listed folder bears vitprune's name where vitprune puts it."""
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return False
        with path.open("rb") as handle:
            head = handle.read(HEAD)
    except OSError:
        return False
    if path.suffix == ".onnx":
        from vitprune.core.external import producer

        return producer(path) == "vitprune"
    if path.name.endswith(".onnx.data"):
        return says_so(path.with_suffix(""))
    if path.suffix in (".html", ".md"):
        card = path.name == "README.md" and head.startswith(b"---\n") and b" made smaller by vitprune: " in head
        return card or head.startswith(b"# vitprune ") or b"<title>vitprune " in head[:4000]
    if path.name in ("config.json", "report.json"):
        return _names_us(path)
    return path.suffix == ".safetensors" and says_so(path.with_name("config.json"))


def _names_us(path: Path) -> bool:
    """A configuration with our block, or the record of a run."""
    try:
        content = json.loads(path.read_bytes()) if path.stat().st_size <= LARGEST else None
    except (OSError, ValueError, RecursionError):
        return False
    if not isinstance(content, dict):
        return False
    versions = content.get("versions")
    return isinstance(content.get("vitprune"), dict) or (isinstance(versions, dict) and "vitprune" in versions)
