"""What the stage `see` depends on beside the model and the images: its section, and the files that names are made from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vitprune.core.errors import UserError
from vitprune.core.reading import Json, sha256
from vitprune.model.load.weights import shards
from vitprune.recipe.recipe import Recipe
from vitprune.see.naming import prompts

OWN = ("names", "simulator")  # the parts, which are also the keys of their settings
HOW = {"max_calls", "timeout", "url"}  # how it is asked, not what


def of_recipe(recipe: Recipe) -> Any:
    """The section, without the settings of names where there are none; what names are made from by its content."""
    assert recipe.see is not None
    named = set(OWN) & set(recipe.see.parts)
    made: Json = recipe.see.model_dump(mode="json", exclude=set() if named else set(OWN))
    if not named:
        return made
    how = recipe.see.names
    made["names"] = {key: value for key, value in made["names"].items() if key not in HOW | {"folder", "concepts"}}
    files = [recipe.data.attributes, how.concepts]
    files += [how.folder / "config.json", *_weights(how.folder)] if how.folder else []
    asked = [prompts.about(name) for name in (prompts.NAME, prompts.SIMULATE)] if how.by == "server" else []
    return made | {"files": [_content(path) for path in files], "prompts": asked}


def _weights(folder: Path) -> list[Path]:
    """The files that its weights are in, whatever can be known of them; a folder that cannot be read is refused elsewhere."""
    try:
        return shards.files(shards.weights_of(folder) or folder / shards.WHOLE)
    except UserError:
        return [folder / shards.INDEX]


def _content(path: Path | None) -> str | None:
    return sha256(path) if path is not None and path.is_file() else None
