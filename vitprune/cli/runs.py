"""The verbs on a recipe: the stages of a run up to one of them, a comparison, the paper's tables."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from vitprune.cli.given.groups import Allowed, Crew, File, Source, Told
from vitprune.cli.given.spread import spread
from vitprune.cli.options import Force, Shard
from vitprune.core.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable

    from vitprune.core.progress import Reporter
    from vitprune.recipe.recipe import Recipe


@spread
def run(source: Source, crew: Crew, told: Told, allowed: Allowed, force: Force = False) -> None:
    """The whole road: split, discover, prune, evaluate, export, report."""
    if not carried_out("run", source, crew, told, allowed, force):
        _verb("run", source, crew, told, allowed, force)


@spread
def discover(
    source: Source, crew: Crew, told: Told, allowed: Allowed, force: Force = False, shard: Shard = None
) -> None:
    """Up to the neuron paths and scores of the probe split."""
    if shard is None:
        _verb("discover", source, crew, told, allowed, force)
    elif (crew.workers or 1) > 1 or crew.engine not in (None, "local"):
        raise UserError("--shard: a share is one process's; ask for more shares in the place of --workers or --engine")
    else:
        _share(source, crew.device, told, shard)


@spread
def prune(source: Source, crew: Crew, told: Told, allowed: Allowed, force: Force = False) -> None:
    """Up to the slim model's checkpoint folder."""
    _verb("prune", source, crew, told, allowed, force)


@spread
def evaluate(source: Source, crew: Crew, told: Told, allowed: Allowed, force: Force = False) -> None:
    """Up to the exam on the test split, baselines included."""
    _verb("evaluate", source, crew, told, allowed, force)


@spread
def export(source: Source, crew: Crew, told: Told, allowed: Allowed, force: Force = False) -> None:
    """Up to the checked ONNX file and its latency."""
    _verb("export", source, crew, told, allowed, force)


@spread
def compare(file: File, crew: Crew, told: Told, allowed: Allowed, force: Force = False) -> None:
    """Criteria x budgets x repairs x seeds, as the recipe's `compare` section says: a table, a plot, a test."""
    loaded, reporter = opened(file, told)
    from vitprune.report import grid
    from vitprune.runs import compare as comparison
    from vitprune.runs.costs import estimate, telling
    from vitprune.runs.engine import opening

    workers = opening.Crew(crew.workers, crew.engine, crew.address)
    asked, spec, _ = comparison.asked(loaded)
    part = comparison.part(asked, spec, [name for name in spec.criteria if name != "auto"], spec.seeds[0])
    telling.ahead(
        part, crew.device, reporter, workers, lambda run: estimate.of_compare(run, spec, force),
        allowed.max_hours, allowed.yes, asking(reporter),
    )  # fmt: skip
    reporter.repeats(len(spec.seeds))
    record = comparison.compare(loaded, device=crew.device, force=force, reporter=reporter, workers=workers)
    folder = loaded.out / loaded.name
    if told.as_json:
        print(json.dumps(record, indent=1))
    else:
        print(grid.markdown(record))
        print(f"Written: {folder / 'compare.md'}, {folder / 'compare.json'}, {folder / 'compare.svg'}")


@spread
def paper(file: File, crew: Crew, told: Told, allowed: Allowed) -> None:
    """The paper's tables and figures on the recipe's model; see recipes/paper/ and the recipe's `paper` section."""
    loaded, reporter = opened(file, told)
    from vitprune.paper import tables as paper_tables
    from vitprune.runs.costs import estimate, telling
    from vitprune.runs.engine import opening

    workers = opening.Crew(crew.workers, crew.engine, crew.address)
    if (spec := loaded.paper) is not None:
        telling.ahead(
            paper_tables.first(loaded), crew.device, reporter, workers, lambda run: estimate.of_paper(run, spec),
            allowed.max_hours, allowed.yes, asking(reporter),
        )  # fmt: skip
    record = paper_tables.run(
        loaded, device=crew.device, reporter=reporter, command=command_of("paper", file, crew.device), workers=workers
    )
    if told.as_json:
        print(json.dumps(record, indent=1))
    else:
        print(paper_tables.show(record))
        print(f"Written: {', '.join(map(str, paper_tables.files(loaded)))}")


def _verb(verb: str, source: Source, crew: Crew, told: Told, allowed: Allowed, force: bool) -> None:
    loaded, reporter = opened(source, told)
    from vitprune.cli import tables as summary
    from vitprune.runs import pipeline
    from vitprune.runs.costs import estimate, telling
    from vitprune.runs.engine import opening

    record = pipeline.run(
        loaded, verb, device=crew.device, force=force, reporter=reporter,
        command=command_of(verb, source, crew.device), workers=opening.Crew(crew.workers, crew.engine, crew.address),
        before=lambda run: telling.tell(
            run, lambda: estimate.of_run(run, verb, force), allowed.max_hours, allowed.yes, asking(reporter)
        ),
    )  # fmt: skip
    folder = loaded.out / loaded.name
    if told.as_json:
        print(json.dumps(summary.as_json(record, verb, folder), indent=1))
    else:
        summary.show(record, verb, folder)


def _share(source: Source, device: str, told: Told, shard: str) -> None:
    from vitprune.runs.results import sharing

    loaded, reporter = opened(source, told)
    made = sharing.discover(loaded, shard, device=device, reporter=reporter)
    if told.as_json:
        print(json.dumps(made, indent=1))
    else:
        print(
            f"Share {shard}: {made['made']} parts made, {made['found']} were there; `vitprune run` goes on when all are."
        )


def carried_out(
    verb: str,
    source: Source,
    crew: Crew,
    told: Told,
    allowed: Allowed,
    force: bool,
    others: dict[str, bool] | None = None,
) -> bool:
    """Whether the recipe was one of a vision-language model, which goes a road of its own; no flag that this road does not
    know goes with it, nor do the `others`, by whether they were given."""
    from vitprune.core.progress import Reporter
    from vitprune.recipe.parse import file_of, of_vlm

    if source.recipe is None:
        return False
    recipe, out = source.recipe, source.out
    if Path(recipe).is_dir() and out is None:  # a run's folder, where it stays
        recipe, out = str(Path(recipe) / "recipe.yaml"), Path(recipe).resolve().parent
    if not of_vlm(recipe):
        return False
    unknown = {
        "--workers": (crew.workers or 1) > 1,
        "--engine": (crew.engine or "local") != "local",
        "--max-hours": allowed.max_hours is not None,
        **dict.fromkeys(source.flags.given, True),
        **(others or {}),
    }
    if flag := next((name for name, given in unknown.items() if given), None):
        raise UserError(f"{flag}: does not go with a vision-language model")
    reporter = Reporter(told.quiet, told.log)
    reporter.watch(f"{file_of(recipe).name}: a vision-language model is opened, a few passes are timed")
    from vitprune.api.vlm import verbs

    verbs.carry_out(verb, file_of(recipe), out, crew.device, force, told.as_json, reporter)
    return True


def opened(source: File | Source, told: Told) -> tuple[Recipe, Reporter]:
    """The recipe to be run, whose paths are there, and where progress goes. Raises UserError, also where a file and flags
    are given, or neither."""
    from vitprune.recipe.paths import require

    loaded, folders = _asked(source)
    require(loaded, folders)
    loaded = loaded if source.out is None else loaded.model_copy(update={"out": source.out})
    return loaded, reporting(loaded, told)


def reporting(loaded: Recipe, told: Told) -> Reporter:
    """Where the progress of a recipe goes; it is watched over from now on."""
    from vitprune.core.progress import Reporter

    folder = loaded.out / loaded.name
    if told.log is not None and told.log.absolute().is_relative_to(folder.absolute()):
        raise UserError(
            f"--log {told.log}: lies in the folder of the run, which is vitprune's own; choose another place"
        )
    reporter = Reporter(told.quiet, told.log)
    reporter.watch(f"{loaded.name}, into {folder}; a few batches are timed")
    return reporter


def _asked(source: File | Source) -> tuple[Recipe, list[Path]]:
    """The recipe, and where its paths are looked for beside the working folder."""
    from vitprune.recipe import parse

    given = source.flags.given if isinstance(source, Source) else []
    if source.recipe is not None:
        if given:
            raise UserError(
                f"{given[0]}: goes with --model and --data in the place of a recipe; {source.recipe} says it itself"
            )
        return parse.load(source.recipe), parse.beside(source.recipe)
    if not given:
        raise UserError("give a recipe, or --model and --data; `vitprune recipe new` prints a recipe to start from")
    from vitprune.cli.given import flags

    assert isinstance(source, Source)
    return flags.recipe(source.flags, source.out), []


def asking(reporter: Reporter) -> Callable[[str], bool] | None:
    """How a question is put to who sits at a terminal; None where nobody does."""
    from typer import confirm

    def ask(text: str) -> bool:
        reporter.resting = True
        try:
            return confirm(text, err=True)
        finally:
            reporter.resting = False

    return ask if sys.stdin.isatty() and sys.stderr.isatty() else None


def command_of(verb: str, source: File | Source, device: str) -> str:
    """The command that was given, for the record."""
    from vitprune.cli.given import flags
    from vitprune.core import places

    given = flags.words(source.flags) if isinstance(source, Source) else ""
    return (
        f"vitprune {verb} {given if source.recipe is None else places.place(source.recipe)}"
        + (f" --out {places.place(source.out)}" if source.out else "")
        + (f" --device {device}" if device != "auto" else "")
    )
