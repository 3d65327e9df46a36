"""The header of a safetensors file, read by hand: eight bytes of length, then JSON. No tensor is touched, nothing imported."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from vitprune.core.errors import UserError

LARGEST = 100_000_000  # bytes: safetensors' own bound
BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "F64": 64, "I64": 64, "U64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Name → shape of every tensor. Raises UserError for a header that lies about the file."""
    try:
        if not path.is_file():
            raise UserError(f"{path}: no such file, or not a regular one")
        size = path.stat().st_size
        with path.open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            if size < 8 or not 2 <= length <= min(LARGEST, size - 8):
                raise _unsound(path, "it does not begin with a header's length")
            header = json.loads(handle.read(length))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    except (ValueError, RecursionError) as error:
        raise _unsound(path, "its header is not JSON") from error
    if not isinstance(header, dict):
        raise _unsound(path, "its header is not an object")
    tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
    places = {name: _place(path, name, entry) for name, entry in tensors.items()}
    end = 0
    for name, (start, stop) in sorted(places.items(), key=lambda item: item[1]):
        if start != end:
            raise _unsound(path, f"`{name[:80]}` does not begin where the tensor before it ends")
        end = stop
    if end != size - 8 - length:
        raise _unsound(path, f"the header tells of {end:,} bytes, the file holds {size - 8 - length:,}")
    return {name: tuple(entry["shape"]) for name, entry in tensors.items()}


def _place(path: Path, name: str, entry: Any) -> tuple[int, int]:
    """First and last byte of a tensor, which are as many as its shape and type need."""
    entry = entry if isinstance(entry, dict) else {}
    shape, place, bits = entry.get("shape"), entry.get("data_offsets"), BITS.get(str(entry.get("dtype")))
    if not _counts(shape) or not _counts(place) or len(place) != 2 or bits is None:
        raise _unsound(path, f"`{name[:80]}` has no shape, type and place")
    if (place[1] - place[0]) * 8 != math.prod(shape) * bits:
        raise _unsound(path, f"`{name[:80]}` is of {tuple(shape)}, but takes {place[1] - place[0]:,} bytes")
    return place[0], place[1]


def _counts(values: Any) -> bool:
    return isinstance(values, list) and len(values) <= 16 and all(type(v) is int and 0 <= v < 1 << 50 for v in values)


def _unsound(path: Path, why: str) -> UserError:
    return UserError(f"{path}: not a sound safetensors file ({why}); copy or export it again")
