"""The tables and figures of Wang et al. (ICLR 2025) on any model: `vitprune paper RECIPE`, see recipes/paper/."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib.figure import Figure

from vitprune.core.device import machine
from vitprune.core.errors import UserError
from vitprune.core.files import write_json, write_text
from vitprune.core.progress import Reporter
from vitprune.paper import figure6, figures4_5, table1, table2
from vitprune.recipe.experiments import Paper
from vitprune.recipe.parse import dump
from vitprune.recipe.recipe import Recipe
from vitprune.runs import pipeline
from vitprune.runs.engine import worker
from vitprune.runs.engine.opening import Workers
from vitprune.runs.state import defaults, told
from vitprune.runs.state.run import Run


@dataclass(frozen=True, slots=True)
class Table:
    """How one of them is refused before any work, made, and shown."""

    check: Callable[[Run, Paper], None]
    make: Callable[[Run, Paper], dict[str, Any]]
    markdown: Callable[[dict[str, Any]], str]
    figure: Callable[[dict[str, Any]], Figure] | None = None


TABLES = {
    "table-1": Table(figure6.check, figure6.table, figure6.markdown, figure6.figure),
    "table-2": Table(table2.check, table2.table, table2.markdown),
    "figure-4": Table(figures4_5.check, figures4_5.frequencies, figures4_5.frequencies_markdown, figures4_5.violins),
    "figure-5": Table(figures4_5.check, figures4_5.likeness, figures4_5.likeness_markdown, figures4_5.heat_map),
    "figure-6": Table(table1.check, table1.grid, table1.markdown),
}


def run(
    recipe: Recipe, *, device: str = "auto", reporter: Reporter | None = None, command: str = "", workers: Workers = 1
) -> dict[str, Any]:
    """Run a recipe's `paper` section; writes its `files` and returns the first one's content."""
    worker.one_process()
    spec = recipe.paper
    if spec is None:
        raise UserError("paper: the recipe has no `paper` section; see recipes/paper/table1.yaml")
    of_table = TABLES[spec.table]
    part = recipe.model_copy(update={"baselines": [], "compare": None})
    with Run.open(part, device, reporter or Reporter(quiet=True), workers) as run:
        spec, notes = defaults.table(spec, part, defaults.Facts.of(run.loaded.model, run.sites))
        for note in notes:
            run.reporter.say(f"note: {note}")
        recipe = recipe.model_copy(update={"paper": spec}) if notes else recipe
        found_first = figure6.probe_criteria(recipe)
        run.recipe = part.model_copy(update={"baselines": found_first, "paper": spec})
        of_table.check(run, spec)
        pipeline.advance(run, "discover" if found_first or spec.table != "table-1" else "split")
        started = time.monotonic()
        record: dict[str, Any] = {
            "table": spec.table,
            "name": recipe.name,
            "model": _model_name(recipe),
            "command": command,
        }
        record |= {"machine": machine(run.device) | {"torch": torch.__version__}, "seed": recipe.split.seed}
        with run.reporter.stage("table"):
            record |= of_table.make(run, spec)
        record |= {"notes": run.split_record.get("notes", [])}
        record |= {"seconds": round(time.monotonic() - started, 1)}
        as_told = told.recipe(recipe, recipe.out / recipe.name)
        record |= {"settings": recipe.criterion.model_dump(mode="json"), "recipe_yaml": dump(as_told)}
        whole, text, *drawing = files(recipe)
        write_json(whole, record)
        write_text(text, show(record))
        for path in drawing:
            write_text(path, _svg(record))
    return record


def first(recipe: Recipe) -> Recipe:
    """The recipe of what a table finds before it is made."""
    return recipe.model_copy(update={"baselines": figure6.probe_criteria(recipe), "compare": None})


def files(recipe: Recipe) -> list[Path]:
    """What `run` writes: JSON, Markdown and, for a figure, SVG."""
    assert recipe.paper is not None
    endings = [".json", ".md"] + ([".svg"] if TABLES[recipe.paper.table].figure else [])
    return [recipe.out / recipe.name / f"paper-{recipe.paper.table}{ending}" for ending in endings]


def show(record: dict[str, Any]) -> str:
    """The table in plain text."""
    return TABLES[record["table"]].markdown(record) + "".join(f"\n> {note}\n" for note in record.get("notes", []))


def _svg(record: dict[str, Any]) -> str:
    """The figure as SVG: the same bytes for the same record, whatever matplotlibrc the user has."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({"svg.hashsalt": "vitprune", "font.size": 9, "text.parse_math": False})
        draw, out = TABLES[record["table"]].figure, io.StringIO()
        assert draw is not None
        draw(record).savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()


def _model_name(recipe: Recipe) -> str:
    name = recipe.model.name
    return Path(name.removeprefix("local-dir:")).name if name.startswith("local-dir:") else name
