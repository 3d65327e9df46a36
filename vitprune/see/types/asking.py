"""What a server is asked of a language unit: what its strongest images or texts have in common, and, of a name, how active a
unit of that name is at every cell of an image or at every token of a text."""

from __future__ import annotations

from collections.abc import Sequence

from vitprune.see.naming.prompts import LONGEST, Prompt, template
from vitprune.see.types.rules import MULTIMODAL, TEXT, VISUAL
from vitprune.see.types.shown import Unit

NAMES = {VISUAL: "vlm-name-image-1", TEXT: "vlm-name-text-1", MULTIMODAL: "vlm-name-both-1"}
IMAGE, LINE = "vlm-simulate-image-1", "vlm-simulate-text-1"
UNSEEN = "�"  # stands for what cannot be printed, or is no letter
LONGEST_TOKEN = 40  # characters of a token in a list


def naming(
    unit: Unit, images: tuple[Sequence[bytes], Sequence[bytes]], texts: tuple[Sequence[str], Sequence[str]]
) -> Prompt:
    """What the strongest samples have in common that those at random have not; `images` and `texts` of both, the latter as
    lists of tokens. Of a visual unit there are no texts, of a text unit no images."""
    name = NAMES[unit.kind]
    top, drawn = (len(pictures or lists) for pictures, lists in zip(images, texts, strict=True))
    strongest, others = ("\n\n".join(f"{n}.\n{text}" for n, text in enumerate(lists, 1)) for lists in texts)
    text = template(name).format(
        unit=unit.name, top=top, drawn=drawn, longest=LONGEST, strongest=strongest, others=others
    )
    return Prompt(name, text, (*images[0], *images[1]), unit.name)


def of_image(unit: Unit, explanation: str, image: bytes, rows: int, columns: int) -> Prompt:
    """How active a unit of which only the explanation is known is in every cell of an image."""
    cells = rows * columns
    about = {"unit": unit.name, "explanation": explanation, "rows": rows, "columns": columns, "cells": cells}
    return Prompt(IMAGE, template(IMAGE).format(**about), (image,), unit.name, cells)


def of_text(unit: Unit, explanation: str, tokens: Sequence[str]) -> Prompt:
    """How active it is at every token of a text."""
    lines = "\n".join(f"{n}\t{token}" for n, token in enumerate(tokens, 1))
    about = {"unit": unit.name, "explanation": explanation, "tokens": lines, "cells": len(tokens)}
    return Prompt(LINE, template(LINE).format(**about), (), unit.name, len(tokens))


def printable(token: str) -> str:
    """A token as it stands in a list: on one line, of bounded length, a space at an end seen as `␣`."""
    plain = "".join("⏎" if c in "\r\n" else c if c.isprintable() else UNSEEN for c in token)
    inner = plain.strip(" ")
    lead, tail = len(plain) - len(plain.lstrip(" ")), len(plain) - len(plain.rstrip(" ")) if inner else 0
    return f"{'␣' * lead}{inner}{'␣' * tail}"[:LONGEST_TOKEN]
