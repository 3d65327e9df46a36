"""The weights that an ONNX file keeps in files beside it: found, held to the file's own folder, and checked.

A file above two gigabytes cannot hold its weights: it names files and places in them. Such a name is taken only if it
leads to a regular file in the file's own folder or below, by no link, long enough for what is read from it; and where
our own metadata says its digest, with those bytes. The graph is walked in its own bytes, so that nothing is loaded
before that, and neither onnx nor torch is needed.
"""

from __future__ import annotations

import json
import mmap
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitprune.core.errors import UserError
from vitprune.core.reading import Json, opened, sha256

KEY = "external_data"  # in metadata_props: {"file": …, "bytes": …, "sha256": …}
DEEPEST = 64
# message → field → message inside it; ONNX's own numbers (onnx.proto), which never change
FIELDS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 14: "entry", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "place"},
}
PRODUCER = 2  # field of the model


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor's bytes are: a file's name as the graph gives it, first byte, length (None: to its end)."""

    file: str
    offset: int = 0
    length: int | None = None


def check(path: Path) -> list[Path]:
    """The files beside an ONNX file that hold its weights. Raises UserError where one may not be read or is not whole."""
    places, metadata, _ = _walked(path)
    known = _sealed(metadata, path)
    found: dict[str, Path] = {}
    for place in places:
        if place.file not in found:
            found[place.file] = _inside(path, place.file)
        size = found[place.file].stat().st_size
        if place.offset + (place.length or 0) > size:
            raise UserError(f"{found[place.file]}: is shorter than {path.name} says; copy or export both again")
    if known is not None:
        data = found.get(known["file"])
        if data is None or data.stat().st_size != known["bytes"] or sha256(data) != known["sha256"]:
            where = data or path.parent / str(known["file"])
            raise UserError(f"{where}: does not belong to {path.name} or is damaged; copy or export both again")
    return sorted(found.values())


def producer(path: Path) -> str:
    """Which tool a file says it is from; empty where it says nothing or is no ONNX file."""
    try:
        return _walked(path)[2]
    except UserError:
        return ""


def _walked(path: Path) -> tuple[list[Place], dict[str, str], str]:
    """Every place of external data in a graph, the metadata, and the tool's name."""
    places: list[Place] = []
    metadata: dict[str, str] = {}
    tool = ""
    with opened(path) as handle:
        if os.fstat(handle.fileno()).st_size == 0:
            raise UserError(f"{path}: onnxruntime cannot open it, it is empty")
        with mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as content:
            try:
                for kind, start, end in _messages(content, "model", 0, len(content), 0):
                    if kind == "tensor":
                        place = _place(content, start, end)
                        places += [place] if place else []
                    elif kind == "entry":
                        key, value = _pair(content, start, end)
                        metadata[key] = value
                    elif kind == "producer":
                        tool = content[start:end].decode(errors="replace")
            except (ValueError, IndexError, OverflowError, UnicodeDecodeError) as error:
                raise UserError(f"{path}: onnxruntime cannot open it, it is no sound ONNX file ({error})") from error
    return places, metadata, tool


def _messages(content: Any, kind: str, start: int, end: int, depth: int) -> Iterator[tuple[str, int, int]]:
    """Every message inside one of `kind`, itself included: what it is, its first byte and its end."""
    if depth > DEEPEST:
        raise ValueError("graphs too deep inside each other")
    yield kind, start, end
    inside = FIELDS.get(kind)
    if inside is None or kind in ("tensor", "entry"):
        return
    for number, first, last in _fields(content, start, end):
        if kind == "model" and number == PRODUCER:
            yield "producer", first, last
        elif number in inside:
            yield from _messages(content, inside[number], first, last, depth + 1)


def _fields(content: Any, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Number, first byte and end of every field of a message that has a length; the others are stepped over."""
    at = start
    while at < end:
        tag, at = _varint(content, at, end)
        number, wire = tag >> 3, tag & 7
        if number == 0:
            raise ValueError("a field without a number")
        if wire == 0:
            _, at = _varint(content, at, end)
        elif wire in (1, 5):
            at += 8 if wire == 1 else 4
        elif wire == 2:
            size, at = _varint(content, at, end)
            if at + size > end:
                raise ValueError("cut short")
            yield number, at, at + size
            at += size
        else:
            raise ValueError("a kind of field that ONNX does not use")
    if at != end:
        raise ValueError("cut short")


def _varint(content: Any, at: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            raise ValueError("cut short")
        byte = content[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, at
    raise ValueError("a number without an end")


def _pair(content: Any, start: int, end: int) -> tuple[str, str]:
    """Key and value of a StringStringEntryProto; the last of each counts."""
    found = {1: b"", 2: b""}
    for number, first, last in _fields(content, start, end):
        found[number] = content[first:last]
    return found[1].decode(), found[2].decode()


def _place(content: Any, start: int, end: int) -> Place | None:
    """Where a tensor's bytes lie outside, or None."""
    entries = [_pair(content, a, b) for number, a, b in _fields(content, start, end) if number == 13]
    if not entries:
        return None
    known = dict(entries)
    if len(known) < len(entries):
        raise ValueError("a tensor with two places")
    if "location" not in known:
        raise ValueError("a tensor without a place")
    return Place(
        known["location"], _whole(known.get("offset", "0")), _whole(known["length"]) if "length" in known else None
    )


def _whole(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise ValueError(f"{text[:20]!r} is no place in a file")
    return int(text)


def _inside(path: Path, name: str) -> Path:
    """The file that `name` means, in the ONNX file's folder or below it and reached by no link."""
    parts = name.split("/")
    bad = not name or "\\" in name or ":" in name or "\0" in name or name.startswith("/") or ".." in parts
    if bad:
        raise UserError(f"{path}: keeps its weights at `{_printable(name)}`, outside its folder; they are not read")
    place = path.parent
    for part in parts:
        place = place / part
        try:
            mode = place.lstat().st_mode
        except (OSError, ValueError) as error:
            raise UserError(
                f"{path}: its weights are in `{_printable(name)}`, which is not beside it; copy both"
            ) from error
        if stat.S_ISLNK(mode):
            raise UserError(f"{path}: keeps its weights behind the link `{_printable(name)}`, which is not followed")
    if not stat.S_ISREG(mode):
        raise UserError(f"{path}: keeps its weights in `{_printable(name)}`, which is no plain file")
    return place


def _printable(name: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in name[:80])


def _sealed(metadata: dict[str, str], path: Path) -> Json | None:
    """What our own metadata says of the file beside it."""
    if KEY not in metadata:
        return None
    try:
        known = json.loads(metadata[KEY])
        if all(type(known[key]) is kind for key, kind in (("file", str), ("bytes", int), ("sha256", str))):
            return dict(known)
    except (ValueError, TypeError, KeyError, RecursionError):
        pass
    raise UserError(f"{path}: `{KEY}` in its metadata cannot be used; export it again")
