"""The atlas of every unit: its data in the page, its pictures in a folder beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from vitprune.core.files import write_text
from vitprune.core.reading import Json
from vitprune.report.atlas import page
from vitprune.runs.seeing.looking import Looking
from vitprune.runs.seeing.pictures import ACROSS, Pictures

STRONGEST = 4  # images of a unit
LARGEST = 40_000  # units of a page that opens at once


def write(looking: Looking, pictures: Pictures) -> Path | None:
    """see/atlas.html and its thumbnails; None, and a line, for a model of more units than a page can hold."""
    units = sum(site.size for site in looking.sites)
    if units > LARGEST:
        looking.run.reporter.say(f"see: no atlas: {units:,} units are more than the {LARGEST:,} that a page holds")
        return None
    path = looking.folder / "atlas.html"
    write_text(path, page.html(data(looking, pictures)))
    looking.files.append(path)
    return path


def data(looking: Looking, pictures: Pictures) -> Json:
    """What the page shows. Units stand one after the other, block by block; classes are numbers into `classes`, names into
    `named`, pictures into the sheets; shares and correlations are in hundredths; None where something is not known."""
    names: list[str] = []
    place: dict[str, int] = {}

    def number(name: Any) -> int:
        if name is None:
            return -1
        if name not in place:
            place[name] = len(names)
            names.append(name)
        return place[name]

    columns = looking.columns
    group = next(iter(looking.kept))
    end = f"_{group}" if group else ""
    made: Json = {
        "name": looking.run.recipe.name,
        "group": group or "",
        "widths": [site.size for site in looking.sites],
        "kept": "".join("1" if one == "yes" else "0" for one in columns[f"kept{end}"]),
        "blocks": looking.told.get("alignment", {}).get("blocks", []),
    }
    if "fires" in columns:
        made["silent"] = "".join("0" if one == "yes" else "1" for one in columns["fires"])
    for key, column in (("writes", "writes_1"), ("fires", _fires(columns))):
        if column in columns:
            made[key] = [number(name) for name in columns[column]]
    for key, column in (("between", _between(columns)), ("drift", f"drift_corr{end}"), ("twinned", f"twin_corr{end}")):
        if column in columns:
            made[key] = [None if v is None else round(100 * v) for v in columns[column]]
    if f"twin{end}" in columns:
        made["twin"] = [-1 if v is None else int(v.split(":")[1]) for v in columns[f"twin{end}"]]
    made |= _called(columns)
    made["read"] = "class token" if "fires_class_1" in columns else "patches"
    return made | {"classes": names} | _pictures(looking, pictures)


def _called(columns: dict[str, list[Any]]) -> Json:
    """The names of units, as numbers into `named`, and their scores."""
    if "name" not in columns:
        return {}
    named = sorted({name for name in columns["name"] if name is not None})
    place = {name: at for at, name in enumerate(named)}
    made: Json = {"named": named, "called": [-1 if name is None else place[name] for name in columns["name"]]}
    for key, column in (("called_score", "name_score"), ("called_control", "name_control")):
        if column in columns:
            made[key] = [None if v is None else round(100 * v) for v in columns[column]]
    return made


def _fires(columns: dict[str, list[Any]]) -> str:
    return "fires_class_1" if "fires_class_1" in columns else "fires_patches_1"


def _between(columns: dict[str, list[Any]]) -> str:
    return "between_class" if "between_class" in columns else "between_patches"


def _pictures(looking: Looking, pictures: Pictures) -> Json:
    found = looking.left.get("exemplars")
    if found is None:
        return {}
    lists = np.concatenate([found[f"top.images.{i}"][:, :STRONGEST] for i in range(len(looking.sites))])
    used = np.unique(lists[lists >= 0])
    sheets = pictures.sheets([int(position) for position in used])
    shown = np.where(lists >= 0, np.searchsorted(used, lists), -1)
    return {"sheets": sheets, "across": ACROSS, "images": shown.ravel().tolist(), "each": lists.shape[1]}
