"""`see`, `run` and `plan` of a recipe whose model is a vision-language model; the other verbs are for classifiers."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from vitprune.api.vlm import ahead, tables
from vitprune.api.vlm import recipe as recipes
from vitprune.api.vlm.road import Road
from vitprune.core import places
from vitprune.core.progress import Reporter
from vitprune.core.reading import Json, read_json

VERBS = ("see", "run", "plan")


def carry_out(
    verb: str, source: Path, out: Path | None, device: str, force: bool, as_json: bool, reporter: Reporter
) -> None:
    """Print what the verb finds; files go to the recipe's folder."""
    recipe = recipes.load(source, out)
    command = f"vitprune {verb if verb != 'see' else 'run'} {shlex.quote(places.place(source))}"
    if out is not None:
        command += f" --out {shlex.quote(places.place(out))}"
    road = Road(recipe, device, force, reporter, command)
    seconds = road.expect(["types", "units"] if verb == "see" else [])
    found: Json
    if verb == "plan":
        found, lines = ahead.told(seconds), [ahead.line(seconds)]
    elif verb == "see":
        types, units = road.see(), road.units()
        found = types | {"shown": units}
        lines = [*tables.lines_of_types(types), "", *tables.lines_of_units(units)]
        if not _examined(road.folder):
            road.told(types, units, [])
    else:
        found = road.run()
        lines = [*tables.lines_of_types(found["types"]), "", *tables.lines_of_units(found["units"]), ""]
        lines += [*tables.lines_of_exam(found["exam"]), found["said"]]
    print(json.dumps(found, indent=1) if as_json else "\n".join(lines))
    if not as_json and verb != "plan":
        print(f"Written: {road.folder}")


def _examined(folder: Path) -> bool:
    """Whether a page with an exam stands there, which a look at the units leaves as it is."""
    path = folder / "report.json"
    found = read_json(path) if path.is_file() else None
    return isinstance(found, dict) and bool(found.get("exam"))
