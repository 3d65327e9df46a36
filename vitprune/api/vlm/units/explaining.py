"""Explanations of the shown units, without another model and by a server, tried on pairs that they were not made from."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from vitprune.api.vlm.units.looked import Looked
from vitprune.api.vlm.units.server import Asked
from vitprune.core import files
from vitprune.core.progress import Reporter
from vitprune.core.reading import Json
from vitprune.model.vlm.tokens import TYPES
from vitprune.see.pictures import drawing
from vitprune.see.types import simulating, words
from vitprune.see.types.shown import Unit

STRIP = 6, 2  # images of a unit in the report: its strongest, and random ones behind a gap
EDGE = 96  # pixels of each

Values = dict[Unit, Sequence[np.ndarray]]


def explained(looked: Looked, folder: Path, reporter: Reporter) -> Json:
    """What is known of every shown unit, and how well it tells; pictures go to `folder`/units, replies of a server to
    `folder`/cache."""
    own = _words(looked)
    readings = {
        u: words.Reading.of(
            [looked.found[n].ids[looked.found[n].text] for n in looked.side(fit=True)],
            [looked.found[n].line(u) for n in looked.side(fit=True)],
        )
        for u, unit in enumerate(looked.units)
        if unit.reads and looked.side(fit=True)
    }
    rows = [_row(looked, u, own.get(unit, []), readings.get(u)) for u, unit in enumerate(looked.units)]
    for u, row in enumerate(rows):
        row["picture"] = _strip(looked, u, folder) if looked.units[u].sees else None
    found: Json = {
        "by": looked.see.names.by, "pairs": {"explain": len(looked.side(True)), "score": len(looked.side(False))},
        "grid": list(looked.grid) if looked.grid else None, "units": rows,
        "simulator": {"words": _offline(looked, own, readings)},
    }  # fmt: skip
    if looked.see.names.by == "server" and looked.units:
        asked = Asked(looked, folder / "cache", reporter)
        for row, text in zip(rows, asked.names(), strict=True):
            row["name"] = text
        found["simulator"]["server"] = asked.tried()
        found["server"] = asked.told()
    return found


def _words(looked: Looked) -> dict[Unit, list[tuple[str, float]]]:
    """Of every unit that sees its words, from the pairs for explanations."""
    side = looked.side(fit=True)
    texts, seeing = [looked.pairs[n].text for n in side], [u for u, unit in enumerate(looked.units) if unit.sees]
    known = words.vocabulary(texts)
    if not seeing or not known:
        return {}
    means = np.array([[looked.found[n].map(u).mean() for u in seeing] for n in side])
    found = words.explained(words.table(texts, known), means, known)
    return {looked.units[u]: own for u, own in zip(seeing, found, strict=True)}


def _row(looked: Looked, u: int, own: list[tuple[str, float]], reading: words.Reading | None) -> Json:
    unit = looked.units[u]
    tokens = reading.listed(looked.word) if reading is not None else []
    name = ", ".join(word for word, _ in own) or None
    if not unit.sees:
        name = ", ".join(word for word, _, _ in tokens[:3]) or None
    return {
        "unit": unit.name, "block": unit.block, "number": unit.number, "type": TYPES[unit.kind],
        "chosen": "drawn" if unit.drawn else "strongest", "name": name,
        "words": [[word, round(weight, 5)] for word, weight in own],
        "tokens": [[word, round(mean, 2), n] for word, mean, n in tokens],
    }  # fmt: skip


def _strip(looked: Looked, u: int, folder: Path) -> str:
    """The name of a picture, seen from the folder above: the unit's strongest images with contours, then random ones."""
    top, drawn = (some[:most] for some, most in zip(looked.exemplars(u), STRIP, strict=True))
    pictures = [_tile(looked.outlined(u, n)) for n in (*top, *drawn)]
    path = folder / "units" / f"{looked.units[u].name.replace(':', '-')}.png"
    with files.replacing(path) as temporary:
        temporary.write_bytes(drawing.png(drawing.side_by_side(pictures, len(top), 8)))
    return f"{folder.name}/units/{path.name}"


def _tile(png: bytes) -> np.ndarray:
    """A picture of any shape in the middle of a grey square."""
    with Image.open(io.BytesIO(png)) as picture:
        whole = picture.convert("RGB")
    whole.thumbnail((EDGE, EDGE), Image.Resampling.BOX)
    square = Image.new("RGB", (EDGE, EDGE), (drawing.BETWEEN,) * 3)
    square.paste(whole, ((EDGE - whole.width) // 2, (EDGE - whole.height) // 2))
    return np.asarray(square)


def _offline(
    looked: Looked, own: Mapping[Unit, list[tuple[str, float]]], readings: Mapping[int, words.Reading]
) -> Json:
    """Scores of words on maps, and of tokens on texts."""
    fit, held = looked.placed(fit=True), looked.placed(fit=False)
    said: Values = {}
    true: Values = {}
    for u, unit in enumerate(looked.units):
        known = [word for word, _ in own.get(unit, [])]
        if known and fit and held:
            tables = [words.table([looked.pairs[n].text for n in side], known) for side in (fit, held)]
            maps = np.array([looked.found[n].map(u) for n in fit])
            said[unit] = list(words.predicted(tables[0], maps, tables[1]))
            true[unit] = [looked.found[n].map(u) for n in held]
    lines = looked.side(fit=False)
    told = {
        looked.units[u]: [one.predicted(looked.found[n].ids[looked.found[n].text]) for n in lines]
        for u, one in readings.items()
    }
    spoken = {looked.units[u]: [looked.found[n].line(u) for n in lines] for u in readings}
    seed = looked.see.units.seed
    return {"image": simulating.scored(said, true, seed), "text": simulating.scored(told, spoken, seed)}
