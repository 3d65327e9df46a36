"""The options that verbs on a recipe have in common."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from vitprune.cli.options import (
    Address,
    AsJson,
    Device,
    Engine,
    Log,
    MaxHours,
    Out,
    Quiet,
    RecipeArg,
    Workers,
    Yes,
    budget_words,
    bundled_recipes,
)  # fmt: skip

OptionalRecipe = Annotated[
    str | None,
    typer.Argument(
        metavar="[RECIPE]",
        autocompletion=bundled_recipes,
        help="a YAML file, or the name of a bundled recipe (demo); or --model and --data",
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="in the place of a recipe: bundled, a folder, hf-hub:ID, or a timm name (its weights are fetched)",
    ),
]
Checkpoint = Annotated[
    Path | None, typer.Option("--checkpoint", help="with --model NAME: a file of weights; nothing is fetched")
]
Data = Annotated[
    str | None,
    typer.Option(
        "--data", help="in the place of a recipe: bundled, a folder of images by class, a .csv, .parquet or .tar"
    ),
]
Budget = Annotated[
    list[str] | None,
    typer.Option(
        "--budget",
        metavar="WORD=AMOUNT",
        autocompletion=budget_words,
        help="what is left: macs=0.25, params, latency, size_mb, loss_points; the same word again: a model for each",
    ),
]
MaxLoss = Annotated[
    float | None, typer.Option("--max-loss", help="points of top-1 that may be lost: --budget loss_points=POINTS")
]
Name = Annotated[str | None, typer.Option("--name", help="of the run without a recipe: results go to OUT/NAME/")]


@dataclass(frozen=True, slots=True)
class Flags:
    """What a recipe can be made of without a file."""

    model: Model = None
    checkpoint: Checkpoint = None
    data: Data = None
    budget: Budget = None
    max_loss: MaxLoss = None
    name: Name = None

    @property
    def given(self) -> list[str]:
        """The flags that were given."""
        values = (self.model, self.checkpoint, self.data, self.budget or None, self.max_loss, self.name)
        names = ("--model", "--checkpoint", "--data", "--budget", "--max-loss", "--name")
        return [name for name, value in zip(names, values, strict=True) if value is not None]


@dataclass(frozen=True, slots=True)
class File:
    """A recipe's file, and where its results go."""

    recipe: RecipeArg
    out: Out = None


@dataclass(frozen=True, slots=True)
class Source:
    """A recipe's file, or flags in its place; and where results go."""

    recipe: OptionalRecipe = None
    model: Model = None
    checkpoint: Checkpoint = None
    data: Data = None
    budget: Budget = None
    max_loss: MaxLoss = None
    name: Name = None
    out: Out = None

    @property
    def flags(self) -> Flags:
        """The flags alone."""
        return Flags(self.model, self.checkpoint, self.data, self.budget, self.max_loss, self.name)


@dataclass(frozen=True, slots=True)
class Told:
    """What is said of the work while it goes on, and how its result is printed."""

    as_json: AsJson = False
    quiet: Quiet = False
    log: Log = None


@dataclass(frozen=True, slots=True)
class Crew:
    """Where it is done, and by how many."""

    device: Device = "auto"
    workers: Workers = None
    engine: Engine = None
    address: Address = None


@dataclass(frozen=True, slots=True)
class Allowed:
    """Hours that may be spent without a question, and whether the answer is yes."""

    max_hours: MaxHours = None
    yes: Yes = False
