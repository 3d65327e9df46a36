"""Steps of a road and what they left: one whose inputs and files are what they were is not done again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeAlias

import yaml

from vitprune.api.vlm.recipe import VlmRecipe
from vitprune.core import files, ledger, places
from vitprune.core.errors import UserError
from vitprune.core.ledger import Ledger
from vitprune.core.progress import Reporter
from vitprune.core.reading import Json, digest, read_json
from vitprune.model.vlm.pairs import Pair

MADE_BY = "vitprune"
Leaves: TypeAlias = Sequence[str] | Callable[[Json], Sequence[str]]


@dataclass
class Steps:
    """The steps of a folder. `inputs`: what every one of them depends on."""

    folder: Path
    inputs: str
    force: bool
    reporter: Reporter
    met: set[str] = field(default_factory=set)  # steps that this command has done or found done

    def known(self, name: str, of: Json) -> Json | None:
        """What a step left, None where it has to be done: with other inputs, or files that are gone or were
        written to since."""
        path = self._path(name)
        if (self.force and name not in self.met) or not path.is_file():
            return None
        with suppress(UserError):
            found = read_json(path)
            if isinstance(found, dict) and found.get("key") == self._key(of) and self._there(found.get("files")):
                content = found.get("content")
                return content if isinstance(content, dict) else None
        return None

    def once(self, name: str, of: Json, make: Callable[[], Json], leaves: Leaves = ()) -> Json:
        """What a step leaves, from its file or made now; `leaves`: files and folders that it writes, by their names, or what
        tells them from what was made."""
        found = self.known(name, of)
        if found is not None:
            if name not in self.met:
                self.reporter.skipped(name)
            self.met.add(name)
            return found
        self.met.add(name)
        self.reporter.say(name)
        began = time.monotonic()
        with self.reporter.stage(name):
            made = make()
        written = self._stamps(leaves(made) if callable(leaves) else leaves)
        content = {
            "made_by": MADE_BY, "key": self._key(of), "files": written, "content": made,
            "seconds": round(time.monotonic() - began, 2), "ended": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }  # fmt: skip
        files.write_json(self._path(name), content)
        return made

    def spent(self, names: Sequence[str]) -> tuple[list[Json], str]:
        """The seconds of every step of these that was done, and when the last one ended."""
        rows, ended = [], ""
        for name in names:
            with suppress(UserError):
                found = read_json(self._path(name))
                rows.append({"name": name, "seconds": found.get("seconds")})
                ended = max(ended, str(found.get("ended", "")))
        return rows, ended

    def _path(self, name: str) -> Path:
        return self.folder / "steps" / f"{name}.json"

    def _key(self, of: Json) -> str:
        return digest({"inputs": self.inputs, "of": of})

    def _there(self, stamps: object) -> bool:
        if not isinstance(stamps, dict):
            return False
        with suppress(OSError):
            return all(_changed(self.folder / name) == stamp for name, stamp in stamps.items())
        return False

    def _stamps(self, leaves: Sequence[str]) -> Json:
        root = ledger.plain(self.folder)
        every = (ledger.plain(path) for name in leaves for path in _below(root / name))
        return {path.relative_to(root).as_posix(): _changed(path) for path in every}


def _below(path: Path) -> Iterator[Path]:
    """A file, or the files of a folder that are ours."""
    if path.is_dir():
        yield from sorted(Ledger(path).files(path))
    else:
        yield path


def without(folder: Path) -> None:
    """Remove what we wrote into a folder with a list of its own, and the folder where nothing else is in it."""
    made = Ledger(folder)
    if not made.exists():
        return
    for path in made.files(folder):
        path.unlink()
    if {path.name for path in folder.iterdir()} == {made.path.name}:
        made.path.unlink()
        folder.rmdir()


def claimed(recipe: VlmRecipe) -> Path:
    """The recipe's folder, ours from now on, with the recipe in it. Raises UserError for one with other people's files."""
    folder = recipe.folder
    made = Ledger(folder)
    if folder.exists() and not made.exists() and any(folder.iterdir()):
        raise UserError(f"{folder}: holds files that vitprune did not make; choose another name or --out")
    folder.mkdir(parents=True, exist_ok=True)
    made.create()
    content = recipe.model_dump(mode="json", exclude_none=True)
    content["model"]["name"] = f"transformers:{places.place(recipe.model.folder, folder)}"
    content["data"]["pairs"] = places.place(recipe.data.pairs, folder)
    content["out"] = places.place(recipe.out)
    files.write_text(folder / "recipe.yaml", yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
    return folder


def inputs_of(model: Path, pairs: Sequence[Pair], about: Json) -> str:
    """The digest of the model's files, the images and what is said of them, and `about`."""
    weights = [_stamp(path) for path in sorted(model.iterdir()) if path.is_file()]
    images = [_stamp(pair.image) for pair in pairs]
    said = [[pair.text, pair.prompt] for pair in pairs]
    return digest({"model": weights, "images": images, "pairs": said, "about": about})


def _stamp(path: Path) -> list[str | int]:
    """A file's name, size and time of change: reading the weights of a large model to tell whether they are the same takes
    as long as opening it."""
    return [path.name, *_changed(path)]


def _changed(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]
