"""The verb `see`: what a run's units are, as tables in the report, an atlas, and one unit's card in the terminal."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vitprune.cli.given.groups import Allowed, Crew, Source, Told
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
Sites = Annotated[str | None, typer.Option("--sites", help="in place of the recipe's see.sites: ffn, or ffn,attention")]
Unit = Annotated[
    list[str] | None,
    typer.Option(
        "--unit", metavar="BLOCK:UNIT", help="also print this unit's card; BLOCK:hHEAD.DIMENSION of attention"
    ),
]
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
    sites: Sites = None,
    unit: Unit = None,
    of_class: Class = None,
    kept: Shown = None,
    removed: Shown = None,
    force: Force = False,
) -> None:
    """What was removed: the images that move each unit, what it writes and fires for, what the repair changed."""
    from vitprune.cli.runs import asking, carried_out, command_of

    words, shown = {"parts": parts, "sites": sites}, {"kept": kept, "removed": removed}
    named = words | shown | {"unit": unit, "class": of_class}
    others = {f"--{flag}": value is not None for flag, value in named.items()}
    if carried_out("see", source, crew, told, allowed, force, others):
        return
    recipe, reporter = _recipe(source, told)
    recipe = _asked(recipe, words, shown)
    units = [_address(text) for text in unit or []]
    _looked_at(recipe, units)
    for folder in _folders(recipe):
        _there(folder, units, of_class)
    from vitprune.runs import pipeline  # seconds of libraries: what is wrong with the words is said before
    from vitprune.runs.costs import estimate, telling
    from vitprune.runs.engine import opening

    def before(run: Run) -> None:
        _require(run, units)
        telling.tell(run, lambda: estimate.of_run(run, "run", force), allowed.max_hours, allowed.yes, asking(reporter))

    pipeline.run(
        recipe, "run", device=crew.device, force=force, reporter=reporter, command=command_of("see", source, "auto"),
        workers=opening.Crew(crew.workers, crew.engine, crew.address), before=before,
    )  # fmt: skip
    for folder in _folders(recipe):
        _print(folder, units, of_class, told.as_json)


def _recipe(source: Source, told: Told) -> tuple[Recipe, Reporter]:
    """The recipe, of a file, of flags, or as a run left it in its folder, where it stays; and where progress goes."""
    from vitprune.cli.runs import opened, reporting
    from vitprune.recipe import parse
    from vitprune.recipe.paths import require
    from vitprune.recipe.recipe import Origin

    folder = None if source.recipe is None else Path(source.recipe)
    if folder is None or not folder.is_dir():
        return opened(source, told)
    if not (folder / "recipe.yaml").is_file():
        raise UserError(f"{folder}: has no recipe.yaml; give a recipe, or the folder of a run")
    if source.out is not None:
        raise UserError("--out: a run stays in its folder; --out goes with a recipe")
    loaded = parse.load(str(folder / "recipe.yaml"))
    require(loaded, parse.beside(str(folder / "recipe.yaml")))
    made = loaded.model_copy(update={"out": folder.resolve().parent, "name": folder.resolve().name})
    made._origin = Origin(folder / "recipe.yaml")
    return made, reporting(made, told)  # of the folder as it is, which is said once


def _asked(recipe: Recipe, words: dict[str, str | None], shown: dict[str, int | None]) -> Recipe:
    """The recipe with what the flags say of `see`: lists of words, and how many units are shown. Raises UserError for a word
    that is none."""
    from pydantic import ValidationError

    from vitprune.recipe.seeing import PARTS, SITES, See

    content: Json = {} if recipe.see is None else recipe.see.model_dump(mode="json", exclude_unset=True)
    for flag, (known, what) in {"parts": (PARTS, "part"), "sites": (SITES, "site")}.items():
        given = words[flag]
        if given is None:
            continue
        content[flag] = [word.strip() for word in given.split(",") if word.strip()]
        for word in content[flag]:
            if word not in known:
                raise UserError(f"--{flag} {word}: is no {what}; there are {', '.join(known)}")
    counts = {name: value for name, value in shown.items() if value is not None}
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


def _address(text: str) -> tuple[int, ...]:
    """Block and number of a unit; block, head and dimension of a direction of attention."""
    found = re.fullmatch(r"(\d{1,9}):(?:h(\d{1,9})\.)?(\d{1,9})", text)
    if not found:
        raise UserError(f"--unit {text[:40]}: a unit is BLOCK:UNIT, both from 0, such as 5:17 (of attention 5:h2.17)")
    return tuple(int(number) for number in found.groups() if number is not None)


def _looked_at(recipe: Recipe, units: list[tuple[int, ...]]) -> None:
    """Raises UserError for a direction of attention where attention is not looked at."""
    sites = ["ffn"] if recipe.see is None else recipe.see.sites
    if "attention" not in sites and (one := next((u for u in units if len(u) == 3), None)):
        name = f"{one[0]}:h{one[1]}.{one[2]}"
        raise UserError(f"--unit {name}: a direction of attention, which is not looked at; add --sites ffn,attention")


def _require(run: Run, units: list[tuple[int, ...]]) -> None:
    """Raises UserError for one that the run's model does not have."""
    from vitprune.model.sites.attention import attention_sites
    from vitprune.runs.seeing.parts.directions import require_direction
    from vitprune.runs.seeing.shown import require_unit

    for one in units:
        if len(one) == 2:
            require_unit([site.size for site in run.sites], *one)
        else:
            sites = attention_sites(run.loaded.model)
            require_direction([site.heads for site in sites], [site.dim for site in sites], *one)


def _folders(recipe: Recipe) -> list[Path]:
    """The folders of the run's models: its own, or one for each budget of a frontier."""
    root = recipe.out / recipe.name
    return [root / one.folder for one in recipe.frontier] or [root]


def _there(folder: Path, units: list[tuple[int, ...]], of_class: str | None) -> None:
    """Raises UserError for a unit or a class that an earlier look at this run knows not to be there, before any work."""
    from vitprune.runs.seeing import cards

    if (units or of_class is not None) and (folder / "see" / "see.json").is_file():
        found = cards.Cards(folder)
        for one in units:
            if len(one) == 2:
                found.require_unit(*one)
        if of_class is not None:
            found.require_class(of_class)


def _print(folder: Path, units: list[tuple[int, ...]], of_class: str | None, as_json: bool) -> None:
    from vitprune.runs.seeing import cards

    found = cards.Cards(folder)
    rows = [found.unit(*one) if len(one) == 2 else found.direction(*one) for one in units]
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
