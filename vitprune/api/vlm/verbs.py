"""`see` and `run` of a recipe whose model is a vision-language model; the other verbs are for classifiers."""

from __future__ import annotations

import json
from pathlib import Path

from vitprune.api.vlm import recipe as recipes
from vitprune.api.vlm import tables
from vitprune.api.vlm.road import Road
from vitprune.core.progress import Reporter

VERBS = ("see", "run")


def carry_out(
    verb: str, source: Path, out: Path | None, device: str, force: bool, as_json: bool, reporter: Reporter
) -> None:
    """Print what the verb finds; files go to the recipe's folder."""
    road = Road(recipes.load(source, out), device, force, reporter)
    if verb == "see":
        found = road.see()
        print(json.dumps(found, indent=1) if as_json else "\n".join(tables.lines_of_types(found)))
    else:
        record = road.run()
        lines = [*tables.lines_of_types(record["types"]), "", *tables.lines_of_exam(record["exam"]), record["said"]]
        print(json.dumps(record, indent=1) if as_json else "\n".join(lines))
    if not as_json:
        print(f"Written: {road.folder}")
