"""The verb `plan`: what a run would keep, before it does."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from vitprune.cli.given.groups import Allowed, Crew, Source, Told
from vitprune.cli.given.spread import spread
from vitprune.cli.options import CostOnly, Force
from vitprune.cli.runs import carried_out, opened
from vitprune.core.reading import Json

if TYPE_CHECKING:
    from rich.console import Console


@spread
def plan(source: Source, crew: Crew, told: Told, force: Force = False, cost: CostOnly = False) -> None:
    """What a run would keep of every block and lose by it, how large the model would be, and what the run would cost."""
    if carried_out("plan", source, crew, told, Allowed(), force):
        return
    loaded, reporter = opened(source, told)
    reporter.say(f"plan: {loaded.name}, into {loaded.out / loaded.name}")
    from vitprune.runs.engine import opening
    from vitprune.runs.results import planning

    workers = opening.Crew(crew.workers, crew.engine, crew.address)
    made = planning.outlook(
        loaded, device=crew.device, force=force, reporter=reporter, workers=workers, curves=not cost
    )
    if told.as_json:
        print(json.dumps(made, indent=1))
    else:
        show(made)


def show(made: Json) -> None:
    """A table and a line for every model on standard output."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from vitprune.core.progress.fitting import fitted

    console = Console(highlight=False, width=None if Console().is_terminal else 110)
    _costs(console, made["cost"])
    if not made["plans"]:
        if made["no_plans"]:
            console.print(f"What is kept: {made['no_plans']}", soft_wrap=True, markup=False)
        return
    for one in made["plans"]:
        table = Table(title=escape(_title(one)), title_justify="left")
        unit = "cosine_loss" if "cosine_loss" in one else "nats"
        for column in ("block", "heads x dims", "units", _UNIT[unit], "without attention", "without FFN"):
            table.add_column(column, justify="right")
        for row in one["blocks"]:
            dense, gone = row["dense"], row["gone"]
            heads = "" if row["heads"] is None else _of(f"{row['heads']} x {row['dim']}", dense)
            units = f"{row['units']} of {dense['units']}" if "units" in row else ""
            table.add_row(
                str(row["block"]), heads, units, *map(_nats, (row[unit], gone.get("attention"), gone.get("ffn")))
            )
        console.print(fitted(console, table, ("without FFN",)))
        console.print(_line(one), soft_wrap=True, markup=False)
    console.print(
        f"The curves are in {made['folder']}; `vitprune run` goes on from there.", soft_wrap=True, markup=False
    )


def _costs(console: Console, cost: Json) -> None:
    """A line for every stage of the run, and one for all of it."""
    from rich.table import Table

    from vitprune.runs.costs.telling import duration, size

    table = Table(title="what the run costs, estimated here", title_justify="left")
    for column in ("stage", "time", "memory", "disk"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    total = {"total": {key: cost[key] for key in ("seconds", "memory_mb", "disk_mb")} | {"done": False}}
    for name, row in (cost["stages"] | total).items():
        cells = ("done", "", "") if row["done"] else (duration(row["seconds"]), *(size(row[key]) for key in _BYTES))
        table.add_row(name, *cells)
    console.print(table)


_UNIT = {"nats": "nats", "cosine_loss": "1 - cosine"}
_BYTES = ("memory_mb", "disk_mb")


def _title(one: Json) -> str:
    asked = ", ".join(f"{word} {amount:g}" for word, amount in (one["budget"] or {"keep": one["keep"]}).items())
    return f"{one['group']}: {asked}" if one["group"] else asked


def _of(kept: str, dense: Json) -> str:
    whole = f"{dense['heads']} x {dense['dim']}"
    return kept if kept == whole else f"{kept} of {whole}"


def _nats(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}" if value >= 0.00005 or value == 0 else f"{value:.0e}"


def _line(one: Json) -> str:
    predicted = "" if one["nats"] is None else f"predicted loss {_nats(one['nats'])} nats per image; "
    if one.get("cosine_loss") is not None:
        predicted = f"predicted loss of features: 1 - cosine {_nats(one['cosine_loss'])}, FVU {_nats(one['fvu'])}; "
    filed = "" if one["macs_ratio"] == one["macs_ratio_checkpoint"] else f", of the ONNX file x {one['macs_ratio']:.3f}"
    return (
        f"{predicted}MACs {one['macs'] / 1e6:.1f} M (x {one['macs_ratio_checkpoint']:.3f}{filed}), "
        f"parameters {one['params']:,} "
        f"(x {one['params_ratio']:.3f}), model.safetensors {one['bytes'] / 1e6:.2f} MB (x {one['bytes_ratio']:.3f})"
    )
