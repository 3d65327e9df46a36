"""The arguments and options that several verbs take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def bundled_recipes(incomplete: str) -> list[str]:
    """For a shell: the bundled recipes whose name begins so."""
    from vitprune.recipe.parse import bundled_folder

    return [name for file in sorted(bundled_folder().glob("*.yaml")) if (name := file.stem).startswith(incomplete)]


def budget_words(incomplete: str) -> list[str]:
    """For a shell: the words of a budget that begin so."""
    from vitprune.recipe.parts import Whole

    return [f"{word}=" for word in Whole.model_fields if word.startswith(incomplete)]


RecipeArg = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE", help="a YAML file, or the name of a bundled recipe (demo)", autocompletion=bundled_recipes
    ),
]
Out = Annotated[Path | None, typer.Option("--out", help="folder for results instead of the recipe's `out`")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps")]
Force = Annotated[bool, typer.Option("--force", help="do every stage again")]
Workers = Annotated[
    int | None,
    typer.Option("--workers", min=1, help="processes that share the heavy work; else as the recipe says, or 1"),
]
Engine = Annotated[
    str | None,
    typer.Option(
        "--engine", help="who computes: local (this machine's processes) or ray; else as the recipe says, or local"
    ),
]
Address = Annotated[
    str | None,
    typer.Option("--address", help="of the Ray cluster: ray://host:10001, host:6379 or auto; without it a local one"),
]
Shard = Annotated[
    str | None, typer.Option("--shard", help="i/n: this process's share of the parts, i from 0; for a job array")
]
AsJson = Annotated[bool, typer.Option("--json", help="print the result as JSON on standard output")]
MaxHours = Annotated[
    float | None,
    typer.Option("--max-hours", min=0, help="ask before a run estimated above; 12 on a processor, no limit on a GPU"),
]
Yes = Annotated[bool, typer.Option("--yes", help="go on, whatever the run is estimated to cost")]
CostOnly = Annotated[
    bool, typer.Option("--cost", help="only what the run would cost; nothing is worked out or written")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="no progress; results and errors alone are printed")]
Log = Annotated[
    Path | None, typer.Option("--log", help="a file that progress is also written to, line by line, with times")
]
