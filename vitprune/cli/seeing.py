"""The verb `see`: what a run's units are, as tables in the report, an atlas, and one unit's card in the terminal."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vitprune.cli.given.groups import Allowed, Crew, File, Source, Told
from vitprune.cli.given.spread import spread
from vitprune.cli.options import Force
from vitprune.core.errors import UserError
from vitprune.core.reading import Json

if TYPE_CHECKING:
    from vitprune.core.progress import Reporter
    from vitprune.recipe.recipe import Recipe
    from vitprune.runs.state.run import Run

Parts = Annotated[
    str | None, typer.Option("--parts", help="in place of the recipe's see.parts: exemplars,alignment,drift")
]
Unit = Annotated[list[str] | None, typer.Option("--unit", metavar="BLOCK:UNIT", help="also print this unit's card")]
Class = Annotated[str | None, typer.Option("--class", help="also print the units that speak for a class")]
Shown = Annotated[
    int | None, typer.Option(min=0, help="in place of the recipe's see.units: units that the report shows")
]


@spread
def see(
    source: Source,
    crew: Crew,
    told: Told,
    allowed: Allowed,
    parts: Parts = None,
    unit: Unit = None,
    of_class: Class = None,
    kept: Shown = None,
    removed: Shown = None,
    force: Force = False,
) -> None:
    """What was removed: the images that move each unit, what it writes and fires for, what the repair changed."""
    from vitprune.cli.runs import asking, carried_out, command_of
    from vitprune.runs import pipeline
    from vitprune.runs.costs import estimate, telling
    from vitprune.runs.engine import opening
    from vitprune.runs.seeing.shown import require_unit

    named = {"--parts": parts, "--unit": unit, "--class": of_class, "--kept": kept, "--removed": removed}
    others = {flag: value is not None for flag, value in named.items()}
    if carried_out("see", source, crew, told, allowed, force, others):
        return
    recipe, reporter = _recipe(source, told)
    recipe = _asked(recipe, parts, kept, removed)
    units = [_address(text) for text in unit or []]
    for folder in _folders(recipe):
        _there(folder, units, of_class)

    def before(run: Run) -> None:
        for block, number in units:
            require_unit([site.size for site in run.sites], block, number)
        telling.tell(run, lambda: estimate.of_run(run, "run", force), allowed.max_hours, allowed.yes, asking(reporter))

    pipeline.run(
        recipe, "run", device=crew.device, force=force, reporter=reporter, command=command_of("see", source, "auto"),
        workers=opening.Crew(crew.workers, crew.engine, crew.address), before=before,
    )  # fmt: skip
    for folder in _folders(recipe):
        _print(folder, units, of_class, told.as_json)


def _recipe(source: Source, told: Told) -> tuple[Recipe, Reporter]:
    """The recipe, of a file, of flags, or as a run left it in its folder, where it stays; and where progress goes."""
    from vitprune.cli.runs import opened
    from vitprune.recipe.recipe import Origin

    folder = None if source.recipe is None else Path(source.recipe)
    if folder is None or not folder.is_dir():
        return opened(source, told)
    if not (folder / "recipe.yaml").is_file():
        raise UserError(f"{folder}: has no recipe.yaml; give a recipe, or the folder of a run")
    if source.out is not None:
        raise UserError("--out: a run stays in its folder; --out goes with a recipe")
    loaded, reporter = opened(File(str(folder / "recipe.yaml")), told)
    made = loaded.model_copy(update={"out": folder.resolve().parent, "name": folder.resolve().name})
    made._origin = Origin(folder / "recipe.yaml")
    return made, reporter


def _asked(recipe: Recipe, parts: str | None, kept: int | None, removed: int | None) -> Recipe:
    """The recipe with what the flags say of `see`. Raises UserError for a word that is no part."""
    from pydantic import ValidationError

    from vitprune.recipe.seeing import PARTS, See

    content: Json = {} if recipe.see is None else recipe.see.model_dump(mode="json", exclude_unset=True)
    if parts is not None:
        content["parts"] = [word.strip() for word in parts.split(",") if word.strip()]
        for word in content["parts"]:
            if word not in PARTS:
                raise UserError(f"--parts {word}: is no part; there are {', '.join(PARTS)}")
    counts = {name: value for name, value in (("kept", kept), ("removed", removed)) if value is not None}
    if counts:
        content["units"] = content.get("units", {}) | counts
    try:
        made = See.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"see.{where}: {first['msg'].removeprefix('Value error, ')}") from error
    changed = recipe.model_copy(update={"see": made})
    changed._origin = recipe._origin
    return changed


def _address(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,9}):(\d{1,9})", text)
    if not found:
        raise UserError(f"--unit {text[:40]}: a unit is BLOCK:UNIT, both from 0, such as 5:17")
    return int(found[1]), int(found[2])


def _folders(recipe: Recipe) -> list[Path]:
    """The folders of the run's models: its own, or one for each budget of a frontier."""
    root = recipe.out / recipe.name
    return [root / one.folder for one in recipe.frontier] or [root]


def _there(folder: Path, units: list[tuple[int, int]], of_class: str | None) -> None:
    """Raises UserError for a unit or a class that an earlier look at this run knows not to be there, before any work."""
    from vitprune.runs.seeing import cards

    if (units or of_class is not None) and (folder / "see" / "see.json").is_file():
        found = cards.Cards(folder)
        for block, number in units:
            found.require_unit(block, number)
        if of_class is not None:
            found.require_class(of_class)


def _print(folder: Path, units: list[tuple[int, int]], of_class: str | None, as_json: bool) -> None:
    from vitprune.runs.seeing import cards

    found = cards.Cards(folder)
    rows = [found.unit(block, number) for block, number in units]
    lines = [] if of_class is None else found.of_class(of_class)
    if as_json:
        print(json.dumps({"folder": str(folder), "see": found.told} | ({"units": rows} if units else {}), indent=1))
        return
    for row in rows:
        print("\n".join(found.card(row)))
    if lines:
        print("\n".join(lines))
    if not rows and not lines:
        print("\n".join(found.summary()))
