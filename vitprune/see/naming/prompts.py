"""The prompts, which are files of this package with a version in their names, and what a reply to each must be."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path

from vitprune.core.reading import Json

FOLDER = Path(__file__).parent / "prompts"
NAME, SIMULATE = "name-1", "simulate-1"
LONGEST = 120  # characters of a name
HIGHEST = 10  # of a cell


@dataclass(frozen=True, slots=True)
class Prompt:
    """A request: text, then images as PNG; about which unit, and how many cells the reply has (0: it is a name)."""

    template: str
    text: str
    images: tuple[bytes, ...]
    unit: str
    cells: int = 0


def template(name: str) -> str:
    """A prompt before anything is put in."""
    return (FOLDER / f"{name}.txt").read_text(encoding="utf-8")


def about(name: str) -> Json:
    """What a record has of a prompt: its file and the digest of it."""
    return {"file": f"{name}.txt", "sha256": hashlib.sha256(template(name).encode()).hexdigest()}


def naming(unit: str, top: list[bytes], drawn: list[bytes]) -> Prompt:
    """What the images that move a unit most have in common, those at random have not."""
    text = template(NAME).format(unit=unit, top=len(top), drawn=len(drawn), longest=LONGEST)
    return Prompt(NAME, text, (*top, *drawn), unit)


def simulating(unit: str, explanation: str, image: bytes, rows: int, columns: int) -> Prompt:
    """How active a unit of which only the explanation is known is in every cell of an image."""
    cells = rows * columns
    text = template(SIMULATE).format(unit=unit, explanation=explanation, rows=rows, columns=columns, cells=cells)
    return Prompt(SIMULATE, text, (image,), unit, cells)


class BadReplyError(ValueError):
    """A reply that is not what was asked for; says why."""


def parsed(content: object, prompt: Prompt) -> Json:
    """The reply to a prompt: {"text": …} with None for no name, or {"cells": [whole numbers]}.

    Raises BadReplyError for anything that is not exactly the JSON object that was asked for, and for one of another unit.
    """
    if not isinstance(content, str):
        raise BadReplyError("it has no text")
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BadReplyError(f"no JSON: {_shown(content)}") from error
    keys = {"unit", "cells"} if prompt.cells else {"unit", "text", "none"}
    if not isinstance(found, dict) or found.keys() != keys:
        raise BadReplyError(f"not the keys {', '.join(sorted(keys))}: {_shown(content)}")
    if found["unit"] != prompt.unit:
        raise BadReplyError(f"about unit {_shown(str(found['unit']))} in the place of {prompt.unit}")
    return _cells(found["cells"], prompt.cells) if prompt.cells else _text(found)


def _text(found: Json) -> Json:
    text, none = found["text"], found["none"]
    if type(none) is not bool or not isinstance(text, str) or len(text) > LONGEST:
        raise BadReplyError(f"text is up to {LONGEST} characters, none is true or false")
    plain = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    if not none and not plain:
        raise BadReplyError("an empty text without none: true")
    return {"text": None if none else plain}


def _cells(cells: object, count: int) -> Json:
    if not isinstance(cells, list) or len(cells) != count:
        raise BadReplyError(f"cells are {count} whole numbers")
    if any(type(v) is not int or not 0 <= v <= HIGHEST for v in cells):
        raise BadReplyError(f"cells are whole numbers from 0 to {HIGHEST}")
    return {"cells": cells}


def expected(cells: list[int], choice: Json) -> list[float]:
    """The cells' expected values, where the reply says how probable other numbers were (`logprobs`), else the cells.

    Tokens that are a whole number from 0 to 10 stand for the cells in their order; where there are not as many, or a token is
    another number, nothing is made of them. The unit's own digits are before the list, so the last ones count.
    """
    logprobs = choice.get("logprobs")
    entries = logprobs.get("content") if isinstance(logprobs, dict) else None
    tokens = [one for one in entries if isinstance(one, dict)] if isinstance(entries, list) else []
    numbers = [one for one in tokens if _number(one.get("token")) is not None][-len(cells) :]
    if [_number(one.get("token")) for one in numbers] != cells:
        return [float(v) for v in cells]
    return [_mean(one, cell) for one, cell in zip(numbers, cells, strict=True)]


def _mean(token: Json, cell: int) -> float:
    weight = value = 0.0
    top = token.get("top_logprobs")
    for other in top if isinstance(top, list) else []:
        number = _number(other.get("token")) if isinstance(other, dict) else None
        logprob = other.get("logprob") if number is not None else None
        if number is not None and isinstance(logprob, int | float) and logprob <= 0:
            weight, value = weight + math.exp(logprob), value + number * math.exp(logprob)
    return value / weight if weight > 0 else float(cell)


def _number(token: object) -> int | None:
    plain = token.strip() if isinstance(token, str) else ""
    return int(plain) if plain.isascii() and plain.isdigit() and len(plain) <= 2 and int(plain) <= HIGHEST else None


def _shown(text: str) -> str:
    return f"`{text[:40]}{'…' if len(text) > 40 else ''}`"
