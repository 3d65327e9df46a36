"""The paths in a recipe: looked for in the working folder, then beside the recipe; the error says where, in full."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from vitprune.core.errors import UserError

if TYPE_CHECKING:
    from vitprune.recipe.parts import Part
    from vitprune.recipe.recipe import Recipe

PREFIXES = ("local-dir:", "transformers:")
CLASS_NAME = re.compile(r"\w+ForImageClassification\w*")  # `transformers:ViTForImageClassification` is no folder
IMAGES = {".csv", ".parquet", ".tar"}


@dataclass(frozen=True, slots=True)
class Named:
    """A path of a recipe: where it stands, the value as it is written, the path in it, and what is needed there."""

    section: str
    key: str
    value: Any
    path: str
    what: str

    def moved(self, path: Path) -> Any:
        """The value with another path in it, of the same type."""
        prefix = str(self.value)[: len(str(self.value)) - len(self.path)] if isinstance(self.value, str) else ""
        return f"{prefix}{path}" if isinstance(self.value, str) else path


def named(recipe: Recipe) -> Iterator[Named]:
    """Every path that has to be there before the run."""
    model, data = recipe.model, recipe.data
    prefix = next((p for p in PREFIXES if model.name.startswith(p)), None)
    if prefix and not (prefix == "transformers:" and CLASS_NAME.fullmatch(model.name.removeprefix(prefix))):
        yield Named("model", "name", model.name, model.name.removeprefix(prefix), "model folder")
    if model.checkpoint is not None:
        yield Named("model", "checkpoint", model.checkpoint, str(model.checkpoint), "file")
    for key in ("path", "probe", "test"):
        value = getattr(data, key)
        if value is not None and not (key == "path" and data.dataset is not None):  # a dataset makes its own folder
            what = "file" if Path(value).suffix.lower() in IMAGES else "folder"
            yield Named("data", key, value, str(value), what)
    if data.masks is not None:
        yield Named("data", "masks", data.masks, str(data.masks), "folder")
    if isinstance(data.labels, Path):  # `by-order` is a word
        yield Named("data", "labels", data.labels, str(data.labels), "file")
    if data.attributes is not None:
        yield Named("data", "attributes", data.attributes, str(data.attributes), "file")
    if recipe.see is not None:
        for key, what in (("folder", "model folder"), ("concepts", "file")):
            value = getattr(recipe.see.names, key)
            if value is not None:
                yield Named("see.names", key, value, str(value), what)


def located(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe with the paths that are not in the working folder, but beside the recipe, as they are found there."""
    for entry in named(recipe):
        if not _there(Path(entry.path)) and not Path(entry.path).is_absolute() and _there(folder / entry.path):
            recipe = _changed(recipe, (*entry.section.split("."), entry.key), entry.moved(folder / entry.path))
    return recipe


P = TypeVar("P", bound="Part")


def _changed(part: P, keys: Sequence[str], value: Any) -> P:
    """A section with one value of it, or of a section inside it, changed."""
    inner = value if len(keys) == 1 else _changed(getattr(part, keys[0]), keys[1:], value)
    return part.model_copy(update={keys[0]: inner})


def require(recipe: Recipe, folders: Sequence[Path] = ()) -> None:
    """Raises UserError for a path where nothing is, with every place it was looked for; `folders` beside the working one."""
    for entry in named(recipe):
        if not _there(Path(entry.path)):
            tried = [folder / entry.path for folder in (Path.cwd(), *folders)]
            places = dict.fromkeys(str(path.absolute()) for path in tried)
            raise UserError(
                f"{entry.section}.{entry.key} {entry.path}: no such {entry.what}; looked for {' and '.join(places)}"
            )


def _there(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that no file can have
        return False
