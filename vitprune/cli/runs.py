"""The verbs on a recipe: the stages of a run up to one of them, a comparison, the paper's tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from vitprune.cli.options import Address, AsJson, Device, Engine, Force, Out, RecipeArg, Shard, Workers
from vitprune.core.errors import UserError

if TYPE_CHECKING:
    from vitprune.recipe.recipe import Recipe


def run(
    recipe: RecipeArg,
    out: Out = None,
    device: Device = "auto",
    force: Force = False,
    as_json: AsJson = False,
    workers: Workers = 1,
    engine: Engine = "local",
    address: Address = None,
) -> None:
    """The whole road: split, discover, prune, evaluate, export, report."""
    _verb("run", recipe, out, device, force, as_json, workers, engine, address)


def discover(
    recipe: RecipeArg,
    out: Out = None,
    device: Device = "auto",
    force: Force = False,
    as_json: AsJson = False,
    workers: Workers = 1,
    engine: Engine = "local",
    address: Address = None,
    shard: Shard = None,
) -> None:
    """Up to the neuron paths and scores of the probe split."""
    if shard is not None:
        if workers > 1 or engine != "local":
            raise UserError(
                "--shard: a share is one process's; ask for more shares in the place of --workers or --engine"
            )
        _share(recipe, out, device, as_json, shard)
        return
    _verb("discover", recipe, out, device, force, as_json, workers, engine, address)


def prune(
    recipe: RecipeArg,
    out: Out = None,
    device: Device = "auto",
    force: Force = False,
    as_json: AsJson = False,
    workers: Workers = 1,
    engine: Engine = "local",
    address: Address = None,
) -> None:
    """Up to the slim model's checkpoint folder."""
    _verb("prune", recipe, out, device, force, as_json, workers, engine, address)


def evaluate(
    recipe: RecipeArg,
    out: Out = None,
    device: Device = "auto",
    force: Force = False,
    as_json: AsJson = False,
    workers: Workers = 1,
    engine: Engine = "local",
    address: Address = None,
) -> None:
    """Up to the exam on the test split, baselines included."""
    _verb("evaluate", recipe, out, device, force, as_json, workers, engine, address)


def export(
    recipe: RecipeArg,
    out: Out = None,
    device: Device = "auto",
    force: Force = False,
    as_json: AsJson = False,
    workers: Workers = 1,
    engine: Engine = "local",
    address: Address = None,
) -> None:
    """Up to the checked ONNX file and its latency."""
    _verb("export", recipe, out, device, force, as_json, workers, engine, address)


def compare(
    recipe: RecipeArg,
    out: Out = None,
    device: Device = "auto",
    force: Force = False,
    as_json: AsJson = False,
    workers: Workers = 1,
    engine: Engine = "local",
    address: Address = None,
) -> None:
    """Criteria x budgets x repairs x seeds, as the recipe's `compare` section says: a table, a plot, a test."""
    from vitprune.core.progress import Reporter
    from vitprune.report import grid
    from vitprune.runs import compare as comparison
    from vitprune.runs.engine import opening

    loaded, crew = _load(recipe, out), opening.Crew(workers, engine, address)
    record = comparison.compare(loaded, device=device, force=force, reporter=Reporter(), workers=crew)
    folder = loaded.out / loaded.name
    if as_json:
        print(json.dumps(record, indent=1))
    else:
        print(grid.markdown(record))
        print(f"Written: {folder / 'compare.md'}, {folder / 'compare.json'}, {folder / 'compare.svg'}")


def paper(
    recipe: RecipeArg,
    out: Out = None,
    device: Device = "auto",
    workers: Workers = 1,
    as_json: AsJson = False,
    engine: Engine = "local",
    address: Address = None,
) -> None:
    """The paper's tables and figures on the recipe's model; see recipes/paper/ and the recipe's `paper` section."""
    from vitprune.core.progress import Reporter
    from vitprune.paper import tables as paper_tables
    from vitprune.runs.engine import opening

    loaded, crew = _load(recipe, out), opening.Crew(workers, engine, address)
    command = _command("paper", recipe, out, device)
    record = paper_tables.run(loaded, device=device, reporter=Reporter(), command=command, workers=crew)
    if as_json:
        print(json.dumps(record, indent=1))
    else:
        print(paper_tables.show(record))
        print(f"Written: {', '.join(map(str, paper_tables.files(loaded)))}")


def _verb(
    verb: str,
    recipe: str,
    out: Path | None,
    device: str,
    force: bool,
    as_json: bool,
    workers: int,
    engine: str,
    address: str | None,
) -> None:
    from vitprune.cli import tables as summary
    from vitprune.core.progress import Reporter
    from vitprune.runs import pipeline
    from vitprune.runs.engine import opening

    loaded, crew = _load(recipe, out), opening.Crew(workers, engine, address)
    command = _command(verb, recipe, out, device)
    record = pipeline.run(loaded, verb, device=device, force=force, reporter=Reporter(), command=command, workers=crew)
    folder = loaded.out / loaded.name
    if as_json:
        print(json.dumps(summary.as_json(record, verb, folder), indent=1))
    else:
        summary.show(record, verb, folder)


def _share(recipe: str, out: Path | None, device: str, as_json: bool, shard: str) -> None:
    from vitprune.core.progress import Reporter
    from vitprune.runs import sharing

    made = sharing.discover(_load(recipe, out), shard, device=device, reporter=Reporter())
    if as_json:
        print(json.dumps(made, indent=1))
    else:
        print(
            f"Share {shard}: {made['made']} parts made, {made['found']} were there; `vitprune run` goes on when all are."
        )


def _load(recipe: str, out: Path | None) -> Recipe:
    """The recipe to be run, whose paths are there."""
    from vitprune.recipe import parse
    from vitprune.recipe.paths import require

    loaded = parse.load(recipe)
    require(loaded, parse.beside(recipe))
    return loaded if out is None else loaded.model_copy(update={"out": out})


def _command(verb: str, recipe: str, out: Path | None, device: str) -> str:
    """The command that was given, for the record."""
    from vitprune.core import places

    return (
        f"vitprune {verb} {places.place(recipe)}"
        + (f" --out {places.place(out)}" if out else "")
        + (f" --device {device}" if device != "auto" else "")
    )
