"""Which files are images: one rule for folders, tar files and `predict`.

- Hidden names and the housekeeping of systems and archivers are left out, folders of such names with all they hold.
- A file with an ending of images is one (`decode` says by name if it cannot be read). Any other is one if Pillow takes
  its content for one. What remains is counted by its kind, to be told in a note.
- Links are followed, each real folder read once, so that no link leads in a circle.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from vitprune.core.errors import UserError
from vitprune.images.decode import EXTENSIONS, is_image
from vitprune.images.names import printable

HOUSEKEEPING = {
    "__macosx", "@eadir", "@tmp", "@recycle", "@recently-snapshot", "#recycle", "#snapshot", "$recycle.bin",
    "system volume information", "lost+found", "__pycache__", "thumbs.db", "ehthumbs.db", "ehthumbs_vista.db",
    "desktop.ini", "icon\r",
}  # fmt: skip
SHOWN = 8  # kinds of files in a note
BESIDE = "images beside the class folders"


@dataclass
class Found:
    """Images in order, and how many other files there were of each kind."""

    files: list[Path] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)


def is_housekeeping(name: str) -> bool:
    """Whether a file or folder of this name is some system's own and never an image of the user's."""
    return name.lower() in HOUSEKEEPING


def is_left_out(name: str) -> bool:
    """Hidden, or some system's own."""
    return name.startswith(".") or is_housekeeping(name)


def named_as_image(name: str) -> bool:
    """Whether a name ends as those of images do."""
    return PurePosixPath(name).suffix.lower() in EXTENSIONS


def kind_of(name: str) -> str:
    """What a note calls a file that is no image."""
    return printable(PurePosixPath(name).suffix.lower()[:12]) or "without an ending"


def note(others: Counter[str], where: str) -> str | None:
    """What was left out, as one sentence for people; None where nothing was."""
    if not others:
        return None
    kinds = sorted(others.items(), key=lambda item: (-item[1], item[0]))
    shown = ", ".join(f"{count:,} {kind}" for kind, count in kinds[:SHOWN]) + (", …" if len(kinds) > SHOWN else "")
    return f"Files of {where} left out, as no images of a class: {shown}."


def below(folder: Path) -> Found:
    """The images in a folder and anywhere below it, by name. Raises UserError for a folder that may not be read."""
    found, links = Found(), [folder]
    home, visited = folder.resolve(), set[tuple[int, int]]()
    while links:  # real folders first: what is there without a link goes by its own path
        waiting = [links.pop(0)]
        while waiting:
            here = waiting.pop()
            for entry in [] if _seen(here, visited) else _entries(here):
                path = here / entry.name
                if not _is_folder(entry):
                    sort_in(path, found)
                elif not entry.is_symlink():
                    waiting.append(path)
                elif not home.is_relative_to(path.resolve()):  # a link to where we come from leads in a circle
                    links.append(path)
    found.files.sort()
    return found


def folders(folder: Path) -> list[str]:
    """The names of the folders in a folder, links to folders among them."""
    return [entry.name for entry in _entries(folder) if _is_folder(entry)]


def loose(folder: Path) -> Counter[str]:
    """Files that lie beside the class folders, by their kind."""
    found = Found()
    for entry in _entries(folder):
        if not _is_folder(entry):
            sort_in(folder / entry.name, found)
    return found.others + Counter({BESIDE: len(found.files)})


def _seen(folder: Path, visited: set[tuple[int, int]]) -> bool:
    about = folder.stat()
    known = (about.st_dev, about.st_ino) in visited
    visited.add((about.st_dev, about.st_ino))
    return known


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What a folder holds and is not left out, by name."""
    try:
        with os.scandir(folder) as entries:
            return sorted((e for e in entries if not is_left_out(e.name)), key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"{folder}: may not be read ({error.strerror}); mend its permissions or remove it") from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def sort_in(path: Path, found: Found) -> None:
    """Put a file among the images or count its kind."""
    try:
        regular = stat.S_ISREG(path.stat().st_mode)
        kind = kind_of(path.name) if regular else "neither file nor folder"
        if regular and not named_as_image(path.name):
            with path.open("rb") as file:
                regular = is_image(file)
    except OSError as error:
        regular, kind = False, "not readable" if isinstance(error, PermissionError) else "broken links"
    if regular:
        found.files.append(path)
    else:
        found.others[kind] += 1
