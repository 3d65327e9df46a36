"""Paths as they may be told: nothing that is handed on names a place of this machine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


def place(path: str | Path, beside: Path | None = None) -> str:
    """A path as it may be told; `beside` is the folder of the file that it is written to, which may be opened again."""
    given = Path(path)
    if not given.is_absolute():
        return str(path)
    plain, here = Path(os.path.normpath(given)), Path.cwd()
    if plain != here and plain.is_relative_to(here) and _tells_nothing(here):
        return plain.relative_to(here).as_posix()
    folder = beside.resolve() if beside is not None else None
    if folder is not None and _tells_nothing(Path(os.path.commonpath([plain, folder]))):
        return Path(os.path.relpath(plain, folder)).as_posix()
    return plain.name or "."


def _tells_nothing(shared: Path) -> bool:
    """Whether paths from here tell no more than names below it: `/home` and what is above a home folder tell users' names."""
    home = Path.home()
    return shared != Path(shared.anchor) and (shared == home or not home.is_relative_to(shared))


def names(given: Sequence[str]) -> list[str]:
    """Names of images; of those that are absolute paths, what comes after the folder that all of these share."""
    absolute = {name: Path(os.path.normpath(name)) for name in given if name.startswith(os.sep)}
    if not absolute:
        return list(given)
    shared = Path(os.path.commonpath([path.parent for path in absolute.values()]))
    return [f"…/{absolute[name].relative_to(shared).as_posix()}" if name in absolute else name for name in given]
