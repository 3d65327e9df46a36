"""The atlas of every unit, and of every direction of attention where they were looked at: the data in the page, the pictures
in a folder beside it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vitprune.core.files import write_text
from vitprune.core.reading import Json
from vitprune.recipe.seeing import Site
from vitprune.report.atlas import page
from vitprune.runs.seeing.looking import Looking
from vitprune.runs.seeing.pictures import ACROSS, Pictures

STRONGEST = 4  # images of a unit
LARGEST = 40_000  # units of a page that opens at once
FILES: dict[Site, str] = {"ffn": "atlas.html", "attention": "attention.html"}
KEPT = {"no": "0", "yes": "1", "turned": "2"}
Columns = dict[str, list[Any]]


def write(looking: Looking, pictures: Pictures, of: Site = "ffn") -> Path | None:
    """see/atlas.html (of attention: see/attention.html) and its thumbnails; None, and a line, for a model of more units than a
    page can hold."""
    units = sum(looking.widths(of))
    if units > LARGEST:
        what = "units" if of == "ffn" else "directions of attention"
        looking.run.reporter.say(f"see: no atlas: {units:,} {what} are more than the {LARGEST:,} that a page holds")
        return None
    path = looking.folder / FILES[of]
    write_text(path, page.html(data(looking, pictures, of)))
    looking.files.append(path)
    return path


def data(looking: Looking, pictures: Pictures, of: Site = "ffn") -> Json:
    """What the page shows. Units stand one after the other, block by block; classes are numbers into `classes`, names into
    `named`, labels of pixels into `labels`, pictures into the sheets; shares and correlations are in hundredths; None where
    something is not known. Of attention `dims` has the dimensions of a head, and `other` is the page that is not this one."""
    names = _Names()
    columns = looking.columns if of == "ffn" else looking.of_attention
    group = next(iter(looking.kept))
    end = f"_{group}" if group else ""
    told = looking.told if of == "ffn" else looking.told["attention"]
    made: Json = {
        "name": looking.run.recipe.name,
        "group": group or "",
        "widths": looking.widths(of),
        "kept": "".join(KEPT[one] for one in columns[f"kept{end}"]),
        "blocks": told.get("alignment", {}).get("blocks", []),
    }
    if of == "attention":
        made["dims"] = [site.dim for site in looking.directions]
    other: Site = "ffn" if of == "attention" else "attention"
    if looking.directions and sum(looking.widths(other)) <= LARGEST:
        made["other"] = FILES[other]
    if "fires" in columns:
        made["silent"] = "".join("0" if one == "yes" else "1" for one in columns["fires"])
    for key, column in (("writes", "writes_1"), ("fires", _fires(columns))):
        if column in columns:
            made[key] = [names.number(name) for name in columns[column]]
    for key, column in (("between", _between(columns)), ("drift", f"drift_corr{end}"), ("twinned", f"twin_corr{end}")):
        if column in columns:
            made[key] = [None if v is None else round(100 * v) for v in columns[column]]
    if f"twin{end}" in columns:
        made["twin"] = [-1 if v is None else int(v.split(":")[1]) for v in columns[f"twin{end}"]]
    made |= _called(columns, "named", "called", "name", "name_score", "name_control")
    made |= _called(columns, "labels", "shows", "concept", "concept_iou", "concept_iou_chance")
    made["read"] = "class token" if "fires_class_1" in columns else "patches"
    return made | {"classes": list(names.place)} | _pictures(looking, pictures, of)


@dataclass
class _Names:
    """Names as numbers, in the order of their first use."""

    place: dict[str, int] = field(default_factory=dict)

    def number(self, name: str | None) -> int:
        """The number of a name; -1 where there is none."""
        return -1 if name is None else self.place.setdefault(name, len(self.place))


def _called(columns: Columns, into: str, key: str, column: str, score: str, control: str) -> Json:
    """A column of words, as numbers into `into`, and their scores beside their controls."""
    if column not in columns:
        return {}
    words = sorted({word for word in columns[column] if word is not None})
    place = {word: at for at, word in enumerate(words)}
    made: Json = {into: words, key: [-1 if word is None else place[word] for word in columns[column]]}
    for end, other in (("score", score), ("control", control)):
        if other in columns:
            made[f"{key}_{end}"] = [None if v is None else round(100 * v) for v in columns[other]]
    return made


def _fires(columns: Columns) -> str:
    return "fires_class_1" if "fires_class_1" in columns else "fires_patches_1"


def _between(columns: Columns) -> str:
    return "between_class" if "between_class" in columns else "between_patches"


def _pictures(looking: Looking, pictures: Pictures, of: Site) -> Json:
    found = looking.left.get("exemplars" if of == "ffn" else "directions")
    if found is None:
        return {}
    lists = np.concatenate([found[f"top.images.{i}"][:, :STRONGEST] for i in range(len(looking.widths(of)))])
    used = np.unique(lists[lists >= 0])
    sheets = pictures.sheets([int(position) for position in used], "" if of == "ffn" else "attention-")
    shown = np.where(lists >= 0, np.searchsorted(used, lists), -1)
    return {"sheets": sheets, "across": ACROSS, "images": shown.ravel().tolist(), "each": lists.shape[1]}
