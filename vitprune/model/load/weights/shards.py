"""The weights of a folder that transformers wrote: one file or, above five gigabytes, several that an index names.

Nothing in the index is trusted: a shard is a file of this very folder, every header is held against its file's size, and
index and headers have to tell of the same tensors, before one of them is read. No torch here until tensors are asked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from vitprune.core.errors import UserError, one_line
from vitprune.core.reading import read_json
from vitprune.model.load import headers

if TYPE_CHECKING:
    from torch import Tensor

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
LARGEST = 1 << 25  # bytes of an index: a million names
MOST = 4096  # shards
SHARD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,200}\.safetensors")  # a name: no folder, and nothing above it
Shapes = dict[str, tuple[int, ...]]


def weights_of(folder: Path) -> Path | None:
    """The folder's weights: model.safetensors, else the index of several files; None where neither is there."""
    return next((path for path in (folder / WHOLE, folder / INDEX) if path.is_file()), None)


def missing(folder: Path, name: str) -> UserError:
    """What is said of a model folder without one of its two files."""
    more = f"; the files that {INDEX} names are read as transformers:{folder}" if (folder / INDEX).is_file() else ""
    return UserError(f"{folder}: has no {name}; a model folder holds config.json and model.safetensors{more}")


def files(weights: Path) -> list[Path]:
    """Every file that the weights are made of, an index before its shards. Raises UserError for an index that is none."""
    return [weights] if weights.name != INDEX else [weights, *sorted(set(_places(weights).values()))]


def shapes(weights: Path) -> Shapes:
    """Name → shape of every tensor, of one file or of all that an index names.

    Raises UserError for a header that lies about its file, for a shard that is not there or outside of the folder, and
    where index and shards do not tell of the same tensors.
    """
    if weights.name != INDEX:
        return headers.shapes(weights)
    places = _places(weights)
    found: Shapes = {}
    for shard in sorted(set(places.values())):
        if not shard.is_file():
            raise UserError(f"{weights}: names {shard.name}, which is not there; copy all files of the folder")
        for name, shape in headers.shapes(shard).items():
            if places.get(name) != shard:
                said = f"in {places[name].name}" if name in places else "nowhere"
                raise UserError(f"{shard}: holds `{name[:80]}`, which {INDEX} has {said}; copy or export it again")
            found[name] = shape
    if missing := places.keys() - found.keys():
        name = min(missing)
        raise UserError(f"{places[name]}: does not hold `{name[:80]}`, as {INDEX} says; copy or export it again")
    return found


def tensors(weights: Path, names: Iterable[str]) -> dict[str, Tensor]:
    """These tensors by name; of a folder in shards every file is opened once. Raises UserError for one that is not there."""
    wanted = list(names)
    places = _places(weights) if weights.name == INDEX else dict.fromkeys(wanted, weights)
    made: dict[str, Tensor] = {}
    for file in sorted({places[name] for name in wanted if name in places}):
        try:
            with safe_open(file, "pt") as held:
                made |= {name: held.get_tensor(name) for name in wanted if places.get(name) == file}
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"{file}: not a sound safetensors file ({one_line(error)}); copy or export it again"
            ) from error
    if absent := [name for name in wanted if name not in made]:
        raise UserError(f"{weights}: does not name `{absent[0][:80]}`; copy or export it again")
    return made


def _places(index: Path) -> dict[str, Path]:
    """Name → the shard that has it, as an index says. Raises UserError for a name that is no file's of its folder."""
    record = read_json(index, LARGEST)
    said = record.get("weight_map") if isinstance(record, dict) else None
    if not isinstance(said, dict) or not said:
        raise UserError(f"{index}: has no weight_map of names to files; copy or export it again")
    odd = [name for name in said.values() if not isinstance(name, str) or not SHARD.fullmatch(name)]
    if odd:
        raise UserError(
            f"{index}: weight_map names {str(odd[0])[:60]!r}, which is no safetensors file of its folder; it is not read"
        )
    if len(set(said.values())) > MOST:
        raise UserError(f"{index}: names more than {MOST:,} files; it is not read")
    return {name: index.parent / file for name, file in said.items()}
