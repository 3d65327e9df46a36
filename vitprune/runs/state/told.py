"""What is handed on tells no place of this machine: reports, cards and recipes hold no absolute path.

In a recipe that lies in a run's folder an absolute path becomes one from the working folder where it lies below that, else
one from the recipe's own folder, else its last name; elsewhere it becomes its last name. Relative paths stay as given.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from vitprune.core.places import place

if TYPE_CHECKING:
    from vitprune.recipe.inputs import Data, Model
    from vitprune.recipe.recipe import Recipe
    from vitprune.recipe.seeing import See

    P = TypeVar("P", Model, Data)

PATHS = ("path", "probe", "test", "labels", "attributes")  # of a recipe's `data`
NAMERS = ("folder", "concepts")  # of `see.names`


def model_name(name: str, beside: Path | None = None) -> str:
    """A recipe's model.name: the folder in `local-dir:/x/vit` and its like."""
    source, colon, rest = name.partition(":")
    return f"{source}:{place(rest, beside)}" if colon and Path(rest).is_absolute() else name


def recipe(given: Recipe, beside: Path | None = None) -> Recipe:
    """The recipe for a file in the folder `beside`; where its runs are tracked is nobody else's business."""
    model, data = given.model, given.data
    changed: dict[str, Any] = {"name": model_name(model.name, beside)}
    if model.checkpoint is not None:
        changed["checkpoint"] = Path(place(model.checkpoint, beside))
    found = {key: getattr(data, key) for key in PATHS}
    moved: dict[str, Any] = {k: Path(place(v, beside)) for k, v in found.items() if isinstance(v, Path)}
    if data.dataset is not None:
        source, slash, rest = data.dataset.partition("/")
        moved["dataset"] = f"{source}/{place(rest)}" if slash and Path(rest).is_absolute() else data.dataset
    return given.model_copy(
        update={
            "model": _with(model, changed),
            "data": _with(data, moved),
            "see": given.see and _seen(given.see, beside),
            "out": Path(place(given.out)),
            "track": None,
        }
    )


def _seen(see: See, beside: Path | None) -> See:
    """What names units is told as all files are."""
    found = {key: getattr(see.names, key) for key in NAMERS}
    moved = {key: Path(place(path, beside)) for key, path in found.items() if path is not None}
    return see.model_copy(update={"names": see.names.model_copy(update=moved)}) if moved else see


def _with(part: P, changed: dict[str, Any]) -> P:
    return part.model_copy(update=changed)


def found(model: Model, folder: Path) -> Model:
    """The model of a recipe that lies in `folder`, its relative paths from there where they lead to something."""
    source, colon, rest = model.name.partition(":")
    changed: dict[str, Any] = (
        {"name": f"{source}:{folder / rest}"} if colon and rest and (folder / rest).is_dir() else {}
    )
    if model.checkpoint is not None and (folder / model.checkpoint).is_file():
        changed["checkpoint"] = folder / model.checkpoint
    return _with(model, changed)


def scrubbed(value: Any, given: Recipe, folder: Path) -> Any:
    """JSON-like `value` with every absolute path of the run in its texts told by its last name."""
    model, data = given.model, given.data
    paths = [model.checkpoint, *(getattr(data, key) for key in PATHS), given.out, folder]
    paths += [getattr(given.see.names, key) for key in NAMERS] if given.see else []
    paths += [Path(model.name.partition(":")[2]), Path((data.dataset or "").partition("/")[2])]
    known = {str(p) for path in paths if isinstance(path, Path) and str(path) != "." for p in (path, path.absolute())}
    known |= {str(Path(path).resolve()) for path in known}
    known = {path for path in known if path.startswith(os.sep) and len(Path(path).parts) > 1}
    replaced = {path: place(path) for path in known}
    replaced |= {f"{root}/": put for root, put in ((Path.cwd(), ""), (Path.home(), "~/")) if len(root.parts) > 1}
    if not replaced:
        return value
    pattern = "|".join(
        re.escape(p) + ("" if p.endswith("/") else r"(?![\w-]|\.\w)") for p in sorted(replaced, key=len)[::-1]
    )
    return _replaced(value, re.compile(rf"(?<![\w./-])(?:{pattern})"), replaced)


def _replaced(value: Any, pattern: re.Pattern[str], by: dict[str, str]) -> Any:
    if isinstance(value, str):
        return pattern.sub(lambda found: by[found[0]], value)
    if isinstance(value, dict):
        return {key: _replaced(part, pattern, by) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_replaced(part, pattern, by) for part in value]
    return value
