"""Images with what is said of them: a file with one JSON object a line, `image`, `text`, and a `prompt` if there is one."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitprune.core.errors import UserError
from vitprune.core.reading import read_text

KEYS = ("image", "text", "prompt")
MOST = 1 << 28
IMAGE = "<image>"  # stands for the image in a prompt, whatever a model's own token is


@dataclass(frozen=True, slots=True)
class Pair:
    """One line: an image's file, its text, what stands before the text, and where this was read (`FILE:LINE`)."""

    image: Path
    text: str
    prompt: str | None
    where: str


def read_pairs(path: Path) -> list[Pair]:
    """Every pair of a file, in order; images are looked for beside it. Raises UserError naming the line that is wrong."""
    lines = read_text(path, MOST, f"data.pairs: {path}").split("\n")
    found = [_pair(line, path, f"{path}:{n}") for n, line in enumerate(lines, 1) if line.strip()]
    if len(found) < 2:
        raise UserError(f"data.pairs: {path}: holds {len(found)} pairs; two at the least, one JSON object a line")
    return found


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
