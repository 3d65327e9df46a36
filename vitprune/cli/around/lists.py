"""The verbs that list or look: criteria, models, recipes, and what is installed here."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from vitprune.cli.given.groups import Flags
from vitprune.cli.given.spread import spread
from vitprune.cli.options import AsJson, Out, RecipeArg
from vitprune.core import places
from vitprune.core.errors import UserError

recipes = typer.Typer(no_args_is_help=True, help="Check a recipe, print its schema, or print one to start from.")


def criteria(as_json: AsJson = False) -> None:
    """Every criterion with what it needs and where it comes from."""
    from vitprune.criteria.catalog import CRITERIA

    rows = [
        {
            "name": name,
            "sites": row.sites,
            "needs": list(row.needs),
            "ranks_by": row.ranks_by if row.score else "score",
            "source": row.source,
        }
        for name, row in CRITERIA.items()
    ]
    rows.append(
        {"name": "random", "sites": ["ffn", "attention"], "needs": [], "ranks_by": "score", "source": "a seeded draw"}
    )
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    for row in rows:
        sites, needs = " + ".join(row["sites"]), ", ".join(row["needs"]) or "weights alone"
        print(f"{row['name']:<24}{sites:<18}{needs:<40}{row['source']}")


def models(
    everything: Annotated[
        bool, typer.Option("--all", help="every timm name: supported, or why not (takes a while)")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Every family of models with the names that are tested, and which criteria and repairs apply."""
    from vitprune.cli import listing

    if everything:
        if as_json:
            print("[\n" + ",\n".join(map(json.dumps, listing.every())) + "\n]")
            return
        for row in listing.every():
            print(listing.name_line(row))
        return
    rows = listing.families()
    print(json.dumps(rows, indent=1) if as_json else "\n".join(map(listing.line, rows)))


@recipes.command("check")
def recipe_check(
    recipe: RecipeArg,
    model: Annotated[bool, typer.Option("--model", help="also build the model, without its weights")] = False,
    show: Annotated[bool, typer.Option("--show", help="print the recipe with every default spelled out")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="the same as JSON")] = False,
) -> None:
    """Whether a recipe would run: keys, paths, the model's files, class names, budget; one line, what is wrong or ok."""
    from vitprune.recipe import check as precheck
    from vitprune.recipe import parse

    loaded = parse.load(recipe)
    notes = loaded.advice
    found = precheck.check(loaded, parse.beside(recipe))
    if model:
        from vitprune.runs.state import preflight

        loaded, more = preflight.check(loaded, found)
        notes += more
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    if as_json:
        print(json.dumps(loaded.written(), indent=1))
    elif show:
        print(parse.dump(loaded), end="")
    else:
        print(precheck.ok(loaded, recipe, found, model))


@recipes.command("schema")
def recipe_schema() -> None:
    """Print the JSON Schema of recipes, for an editor."""
    from vitprune.recipe.recipe import Recipe

    print(json.dumps(Recipe.model_json_schema(), indent=1))


@recipes.command("new")
@spread
def recipe_new(
    flags: Flags,
    out: Out = None,
    file: Annotated[
        Path | None, typer.Option("--file", help="write it there; a file that is there already stays as it is")
    ] = None,
) -> None:
    """Print a recipe for one's own model and images: of the flags that `run` takes, or a commented one to fill in."""
    from vitprune.cli.given import flags as asked
    from vitprune.recipe.parse import TEMPLATE

    text = TEMPLATE
    if flags.given or out is not None:
        words = asked.words(flags) + (f" --out {places.place(out)}" if out is not None else "")
        text = asked.text(flags, out, f"vitprune recipe new {words}")
    if file is None:
        print(text, end="")
        return
    try:
        with file.open("x", encoding="utf-8") as opened:
            opened.write(text)
    except FileExistsError as error:
        raise UserError(f"--file {file}: is there already; choose another name or remove it") from error
    except (OSError, ValueError) as error:
        raise UserError(f"--file {file}: cannot be written ({error})") from error
    print(f"Written: {file}; check it: vitprune recipe check {file}")


def doctor(as_json: AsJson = False) -> None:
    """Versions, devices, providers, and what clashes."""
    from vitprune.cli.around.doctor import examine, text

    found = examine()
    print(json.dumps(found, indent=1) if as_json else text(found))
    if found["problems"]:
        raise typer.Exit(1)
