"""The verbs on a recipe: the stages of a run up to one of them, a comparison, the paper's tables."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from vitprune.cli.options import Address, AsJson, Device, Engine, Force, MaxHours, Out, RecipeArg, Shard, Workers, Yes
from vitprune.core.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable

    from vitprune.core.progress import Reporter
    from vitprune.recipe.recipe import Recipe


def run(
    recipe: RecipeArg,
    out: Out = None,
    device: Device = "auto",
    force: Force = False,
    as_json: AsJson = False,
    workers: Workers = None,
    engine: Engine = None,
    address: Address = None,
    max_hours: MaxHours = None,
    yes: Yes = False,
) -> None:
    """The whole road: split, discover, prune, evaluate, export, report."""
    if carried_out("run", recipe, out, device, force, as_json, unwanted(workers, engine, max_hours)):
        return
    _verb("run", recipe, out, device, force, as_json, (workers, engine, address), (max_hours, yes))


def discover(
    recipe: RecipeArg,
    out: Out = None,
    device: Device = "auto",
    force: Force = False,
    as_json: AsJson = False,
    workers: Workers = None,
    engine: Engine = None,
    address: Address = None,
    max_hours: MaxHours = None,
    yes: Yes = False,
    shard: Shard = None,
) -> None:
    """Up to the neuron paths and scores of the probe split."""
    if shard is not None:
        if (workers or 1) > 1 or engine not in (None, "local"):
            raise UserError(
                "--shard: a share is one process's; ask for more shares in the place of --workers or --engine"
            )
        _share(recipe, out, device, as_json, shard)
        return
    _verb("discover", recipe, out, device, force, as_json, (workers, engine, address), (max_hours, yes))


def prune(
    recipe: RecipeArg,
    out: Out = None,
    device: Device = "auto",
    force: Force = False,
    as_json: AsJson = False,
    workers: Workers = None,
    engine: Engine = None,
    address: Address = None,
    max_hours: MaxHours = None,
    yes: Yes = False,
) -> None:
    """Up to the slim model's checkpoint folder."""
    _verb("prune", recipe, out, device, force, as_json, (workers, engine, address), (max_hours, yes))


def evaluate(
    recipe: RecipeArg,
    out: Out = None,
    device: Device = "auto",
    force: Force = False,
    as_json: AsJson = False,
    workers: Workers = None,
    engine: Engine = None,
    address: Address = None,
    max_hours: MaxHours = None,
    yes: Yes = False,
) -> None:
    """Up to the exam on the test split, baselines included."""
    _verb("evaluate", recipe, out, device, force, as_json, (workers, engine, address), (max_hours, yes))


def export(
    recipe: RecipeArg,
    out: Out = None,
    device: Device = "auto",
    force: Force = False,
    as_json: AsJson = False,
    workers: Workers = None,
    engine: Engine = None,
    address: Address = None,
    max_hours: MaxHours = None,
    yes: Yes = False,
) -> None:
    """Up to the checked ONNX file and its latency."""
    _verb("export", recipe, out, device, force, as_json, (workers, engine, address), (max_hours, yes))


def compare(
    recipe: RecipeArg,
    out: Out = None,
    device: Device = "auto",
    force: Force = False,
    as_json: AsJson = False,
    workers: Workers = None,
    engine: Engine = None,
    address: Address = None,
    max_hours: MaxHours = None,
    yes: Yes = False,
) -> None:
    """Criteria x budgets x repairs x seeds, as the recipe's `compare` section says: a table, a plot, a test."""
    loaded, reporter = opened(recipe, out)
    from vitprune.report import grid
    from vitprune.runs import compare as comparison
    from vitprune.runs.costs import estimate, telling
    from vitprune.runs.engine import opening

    crew = opening.Crew(workers, engine, address)
    asked, spec, _ = comparison.asked(loaded)
    part = comparison.part(asked, spec, [name for name in spec.criteria if name != "auto"], spec.seeds[0])
    telling.ahead(
        part, device, reporter, crew, lambda run: estimate.of_compare(run, spec, force), max_hours, yes, asking()
    )
    record = comparison.compare(loaded, device=device, force=force, reporter=reporter, workers=crew)
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
    workers: Workers = None,
    as_json: AsJson = False,
    engine: Engine = None,
    address: Address = None,
    max_hours: MaxHours = None,
    yes: Yes = False,
) -> None:
    """The paper's tables and figures on the recipe's model; see recipes/paper/ and the recipe's `paper` section."""
    loaded, reporter = opened(recipe, out)
    from vitprune.paper import tables as paper_tables
    from vitprune.runs.costs import estimate, telling
    from vitprune.runs.engine import opening

    crew = opening.Crew(workers, engine, address)
    if (spec := loaded.paper) is not None:
        telling.ahead(
            paper_tables.first(loaded), device, reporter, crew, lambda run: estimate.of_paper(run, spec),
            max_hours, yes, asking(),
        )  # fmt: skip
    record = paper_tables.run(
        loaded, device=device, reporter=reporter, command=_command("paper", recipe, out, device), workers=crew
    )
    if as_json:
        print(json.dumps(record, indent=1))
    else:
        print(paper_tables.show(record))
        print(f"Written: {', '.join(map(str, paper_tables.files(loaded)))}")


def _verb(
    verb: str, recipe: str, out: Path | None, device: str, force: bool, as_json: bool,
    crew: tuple[int | None, str | None, str | None], allowed: tuple[float | None, bool],
) -> None:  # fmt: skip
    """`crew`: how many workers, of which engine, where; `allowed`: hours without a question, and whether the answer is yes."""
    loaded, reporter = opened(recipe, out)
    from vitprune.cli import tables as summary
    from vitprune.runs import pipeline
    from vitprune.runs.costs import estimate, telling
    from vitprune.runs.engine import opening

    record = pipeline.run(
        loaded, verb, device=device, force=force, reporter=reporter, command=_command(verb, recipe, out, device),
        workers=opening.Crew(*crew),
        before=lambda run: telling.tell(run, lambda: estimate.of_run(run, verb, force), *allowed, asking()),
    )  # fmt: skip
    folder = loaded.out / loaded.name
    if as_json:
        print(json.dumps(summary.as_json(record, verb, folder), indent=1))
    else:
        summary.show(record, verb, folder)


def _share(recipe: str, out: Path | None, device: str, as_json: bool, shard: str) -> None:
    from vitprune.runs.results import sharing

    loaded, reporter = opened(recipe, out)
    made = sharing.discover(loaded, shard, device=device, reporter=reporter)
    if as_json:
        print(json.dumps(made, indent=1))
    else:
        print(
            f"Share {shard}: {made['made']} parts made, {made['found']} were there; `vitprune run` goes on when all are."
        )


def unwanted(workers: int | None, engine: str | None, max_hours: float | None) -> dict[str, bool]:
    """Flags of a run that a vision-language model's road does not know, by whether they were given."""
    return {
        "--workers": (workers or 1) > 1,
        "--engine": (engine or "local") != "local",
        "--max-hours": max_hours is not None,
    }


def carried_out(
    verb: str, recipe: str, out: Path | None, device: str, force: bool, as_json: bool, others: dict[str, bool]
) -> bool:
    """Whether the recipe was one of a vision-language model, which goes a road of its own; none of the `others`, flags by
    whether they were given, goes with it."""
    from vitprune.recipe.parse import file_of, of_vlm

    if Path(recipe).is_dir() and out is None:  # a run's folder, where it stays
        recipe, out = str(Path(recipe) / "recipe.yaml"), Path(recipe).resolve().parent
    if not of_vlm(recipe):
        return False
    for flag, given in others.items():
        if given:
            raise UserError(f"{flag}: does not go with a vision-language model")
    from vitprune.api.vlm import verbs

    verbs.carry_out(verb, file_of(recipe), out, device, force, as_json)
    return True


def opened(recipe: str, out: Path | None) -> tuple[Recipe, Reporter]:
    """The recipe to be run, whose paths are there, and where progress goes."""
    from vitprune.core.progress import Reporter
    from vitprune.recipe import parse
    from vitprune.recipe.paths import require

    loaded, reporter = parse.load(recipe), Reporter()
    require(loaded, parse.beside(recipe))
    loaded = loaded if out is None else loaded.model_copy(update={"out": out})
    return loaded, reporter


def asking() -> Callable[[str], bool] | None:
    """How a question is put to who sits at a terminal; None where nobody does."""
    from typer import confirm

    return (lambda text: confirm(text, err=True)) if sys.stdin.isatty() and sys.stderr.isatty() else None


def _command(verb: str, recipe: str, out: Path | None, device: str) -> str:
    """The command that was given, for the record."""
    from vitprune.core import places

    return (
        f"vitprune {verb} {places.place(recipe)}"
        + (f" --out {places.place(out)}" if out else "")
        + (f" --device {device}" if device != "auto" else "")
    )
