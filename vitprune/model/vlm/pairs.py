"""Images with what is said of them: a file with one JSON object a line, `image`, `text`, and a `prompt` if there is one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vitprune.core.errors import UserError
from vitprune.core.reading import read_bytes

KEYS = ("image", "text", "prompt")
MOST = 1 << 28
IMAGE = "<image>"  # stands for the image in a prompt, whatever a model's own token is


@dataclass(frozen=True, slots=True)
class Pair:
    """One line: an image's file (under one name, however many the file has), its text, what stands before the text, and where
    this was read (`FILE:LINE`)."""

    image: Path
    text: str
    prompt: str | None
    where: str


def read_pairs(path: Path) -> list[Pair]:
    """Every pair of a file, in order; images are looked for beside it. Raises UserError naming the line that is wrong."""
    lines = _text(path).split("\n")
    found = [_pair(line, path, f"{path}:{n}") for n, line in enumerate(lines, 1) if line.strip()]
    names: dict[Path, Path] = {}  # of every image the name that it is first given
    found = [replace(pair, image=names.setdefault(pair.image.resolve(), pair.image)) for pair in found]
    if len(found) < 2:
        raise UserError(f"data.pairs: {path}: holds {len(found)} pairs; two at the least, one JSON object a line")
    return found


def images_of(pairs: Sequence[Pair]) -> list[int]:
    """Of every pair the number of its image, images in the order in which they first come."""
    known: dict[Path, int] = {}
    return [known.setdefault(pair.image, len(known)) for pair in pairs]


def _text(path: Path) -> str:
    """The file as text, line ends as `\\n`, without the mark that some editors begin with."""
    content = read_bytes(path, MOST, f"data.pairs: {path}")
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        line = content[: error.start].replace(b"\r\n", b"\n").replace(b"\r", b"\n").count(b"\n") + 1
        raise UserError(f"{path}:{line}: is not UTF-8 ({error.reason}); save the file as UTF-8") from error


def _pair(line: str, path: Path, where: str) -> Pair:
    try:
        content: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: is not JSON ({str(error)[:80]}); one object a line: image, text, prompt") from error
    if not isinstance(content, dict):
        raise UserError(f'{where}: is not an object; write {{"image": FILE, "text": TEXT}}')
    for key in content:
        if key not in KEYS:
            raise UserError(f"{where}: `{key[:40]}` is not known; there are {', '.join(KEYS)}")
    for key in ("image", "text"):
        if not isinstance(content.get(key), str) or not content[key].strip():
            raise UserError(f"{where}: `{key}` is missing or empty")
    prompt = content.get("prompt")
    if prompt is not None and not isinstance(prompt, str):
        raise UserError(f"{where}: `prompt` is not a text")
    image = path.parent / content["image"]
    if "\0" in content["image"] or not image.is_file():
        raise UserError(f"{where}: there is no image {str(image)[:200]}")
    return Pair(image, content["text"], prompt, where)
