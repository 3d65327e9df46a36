"""The command line: one thin function per verb. An error is one line; exit code 2 is the user's, 1 ours, 130 Ctrl-C, 143
SIGTERM."""

from __future__ import annotations

import json
import signal
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from vitprune.core.errors import UserError, one_line

TERMINATED = 128 + signal.SIGTERM
STOPPED = "vitprune: stopped; the same command continues where it was"

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Class-specific structured pruning of Vision Transformers: discover, prune, repair, judge, export, report.",
)
recipes = typer.Typer(no_args_is_help=True, help="Check a recipe, print its schema, or print one to start from.")
app.add_typer(recipes, name="recipe")

RecipeArg = Annotated[str, typer.Argument(metavar="RECIPE", help="a YAML file, or the name of a bundled recipe (demo)")]
Out = Annotated[Path | None, typer.Option("--out", help="folder for results instead of the recipe's `out`")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps")]
Force = Annotated[bool, typer.Option("--force", help="do every stage again")]
Workers = Annotated[int, typer.Option("--workers", min=1, help="processes that share the discovery")]
Json = Annotated[bool, typer.Option("--json", help="print the result as JSON on standard output")]


def _verb(verb: str, recipe: str, out: Path | None, device: str, force: bool, as_json: bool, workers: int) -> None:
    from vitprune.cli import tables as summary
    from vitprune.core.progress import Reporter
    from vitprune.runs import pipeline

    loaded = _load(recipe, out)
    command = _command(verb, recipe, out, device)
    record = pipeline.run(
        loaded, verb, device=device, force=force, reporter=Reporter(), command=command, workers=workers
    )
    folder = loaded.out / loaded.name
    if as_json:
        print(json.dumps(summary.as_json(record, verb, folder), indent=1))
    else:
        summary.show(record, verb, folder)


def _load(recipe: str, out: Path | None) -> Any:
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


@app.command()
def run(
    recipe: RecipeArg,
    out: Out = None,
    device: Device = "auto",
    force: Force = False,
    as_json: Json = False,
    workers: Workers = 1,
) -> None:
    """The whole road: split, discover, prune, evaluate, export, report."""
    _verb("run", recipe, out, device, force, as_json, workers)


@app.command()
def discover(
    recipe: RecipeArg,
    out: Out = None,
    device: Device = "auto",
    force: Force = False,
    as_json: Json = False,
    workers: Workers = 1,
) -> None:
    """Up to the neuron paths and scores of the probe split."""
    _verb("discover", recipe, out, device, force, as_json, workers)


@app.command()
def prune(
    recipe: RecipeArg,
    out: Out = None,
    device: Device = "auto",
    force: Force = False,
    as_json: Json = False,
    workers: Workers = 1,
) -> None:
    """Up to the slim model's checkpoint folder."""
    _verb("prune", recipe, out, device, force, as_json, workers)


@app.command()
def evaluate(
    recipe: RecipeArg,
    out: Out = None,
    device: Device = "auto",
    force: Force = False,
    as_json: Json = False,
    workers: Workers = 1,
) -> None:
    """Up to the exam on the test split, baselines included."""
    _verb("evaluate", recipe, out, device, force, as_json, workers)


@app.command()
def export(
    recipe: RecipeArg,
    out: Out = None,
    device: Device = "auto",
    force: Force = False,
    as_json: Json = False,
    workers: Workers = 1,
) -> None:
    """Up to the checked ONNX file and its latency."""
    _verb("export", recipe, out, device, force, as_json, workers)


@app.command()
def compare(
    recipe: RecipeArg,
    out: Out = None,
    device: Device = "auto",
    force: Force = False,
    as_json: Json = False,
    workers: Workers = 1,
) -> None:
    """Criteria x budgets x repairs x seeds, as the recipe's `compare` section says: a table, a plot, a test."""
    from vitprune.core.progress import Reporter
    from vitprune.runs import compare as comparison

    loaded = _load(recipe, out)
    record = comparison.compare(loaded, device=device, force=force, reporter=Reporter(), workers=workers)
    folder = loaded.out / loaded.name
    if as_json:
        print(json.dumps(record, indent=1))
    else:
        print(comparison.markdown(record))
        print(f"Written: {folder / 'compare.md'}, {folder / 'compare.json'}, {folder / 'compare.svg'}")


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="an exported .onnx file, or the folder it is in")],
    images: Annotated[list[str], typer.Argument(metavar="IMAGE…", help="files, folders, or globs in quotes")],
    top: Annotated[int, typer.Option("--top", min=1, help="how many classes to name")] = 3,
    batch: Annotated[int, typer.Option("--batch", min=1, help="images at a time")] = 32,
    as_json: Json = False,
) -> None:
    """Names and probabilities for images, from an exported ONNX file alone."""
    from vitprune.deploy import predict as prediction
    from vitprune.images.sources.found import note

    classifier, left_out = prediction.open_model(model), Counter[str]()
    answers = prediction.predict(classifier, prediction.find_images(images, left_out), top, batch)
    if as_json:
        own = None if classifier.outputs is None else [classifier.labels[i] for i in classifier.outputs]
        threshold = None if own is None else classifier.threshold
        found: dict[str, Any] = {"model": str(model), "classes": own, "labels_by_order": classifier.labels_by_order}
        found |= {"threshold": threshold, "left_out": dict(left_out), "images": list(answers)}
        print(json.dumps(found, indent=1))
        return
    if classifier.labels_by_order:
        print("class names: by the sorted order of the images' folders; the model has none of its own", file=sys.stderr)
    if said := note(left_out, "the folders"):
        print(said, file=sys.stderr)
    for answer in answers:
        print(prediction.line(answer))


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN…", help="folders of finished runs")],
    out: Annotated[Path, typer.Option("--out", help="where the comparison of several runs goes")] = Path("exported"),
) -> None:
    """Write a run's report again, or one page that compares several runs."""
    from vitprune.core import claims
    from vitprune.core.reading import read_json
    from vitprune.report import compare_reports, write_report

    found: list[tuple[Path, dict[str, Any]]] = []
    for folder in runs:
        path = folder / "report.json"
        if not path.is_file():
            raise UserError(f"{folder}: has no report.json; finish the run with `vitprune run RECIPE`")
        content = read_json(path)
        if not isinstance(content, dict):
            raise UserError(f"{path}: is not a report")
        found.append((folder, content))
    if len(found) == 1:
        claims.recognise(found[0][0])
    made = write_report(found[0][1], found[0][0]) if len(found) == 1 else compare_reports(found, out)
    for path in made:
        print(path)


@app.command()
def check(
    report: Annotated[Path, typer.Argument(metavar="REPORT", help="a run's report.json, or its folder")],
    min_top1: Annotated[float | None, typer.Option("--min-top1", help="top-1 of the exported model, as 0.87")] = None,
    max_latency_ratio: Annotated[float | None, typer.Option("--max-latency-ratio", help="slim / dense time")] = None,
    max_params_ratio: Annotated[
        float | None, typer.Option("--max-params-ratio", help="slim / dense parameters")
    ] = None,
    max_macs_ratio: Annotated[float | None, typer.Option("--max-macs-ratio", help="slim / dense multiply-adds")] = None,
    as_json: Json = False,
) -> None:
    """Hold a finished run against bars: one line per bar; exit code 1 where one is missed, 2 where none can be judged."""
    from vitprune.report import bars as gate

    asked = [("top1", min_top1, True), ("latency_ratio", max_latency_ratio, False)]
    asked += [("params_ratio", max_params_ratio, False), ("macs_ratio", max_macs_ratio, False)]
    bars = [gate.Bar(name, limit, at_least) for name, limit, at_least in asked if limit is not None]
    rows = gate.check(report, bars)
    print(json.dumps(rows, indent=1) if as_json else "\n".join(map(gate.line, rows)))
    if not all(row["passed"] for row in rows):
        raise typer.Exit(1)


@app.command()
def paper(recipe: RecipeArg, out: Out = None, device: Device = "auto", as_json: Json = False) -> None:
    """The paper's tables and figures on the recipe's model; see recipes/paper/ and the recipe's `paper` section."""
    from vitprune.core.progress import Reporter
    from vitprune.paper import tables as paper_tables

    loaded = _load(recipe, out)
    record = paper_tables.run(
        loaded, device=device, reporter=Reporter(), command=_command("paper", recipe, out, device)
    )
    if as_json:
        print(json.dumps(record, indent=1))
    else:
        print(paper_tables.show(record))
        print(f"Written: {', '.join(map(str, paper_tables.files(loaded)))}")


@app.command()
def bench(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH…", help="exported run folders or ONNX files")],
    batch: Annotated[list[int] | None, typer.Option("--batch", min=1, help="batch sizes; repeatable")] = None,
    provider: Annotated[list[str] | None, typer.Option("--provider", help="cpu, cuda, tensorrt; repeatable")] = None,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="threads of onnxruntime")] = None,
    seconds: Annotated[float, typer.Option("--seconds", min=0.0, help="per batch size")] = 3.0,
    torch: Annotated[bool, typer.Option("--torch", help="also torch, eager and compiled (of a run folder)")] = False,
    as_json: Json = False,
) -> None:
    """Time dense against slim against each precision: MAC ratio, latency ratio, efficiency, and why it is poor."""
    from vitprune.cli import torch_runners
    from vitprune.deploy import bench as deploy_bench

    others = torch_runners.torch_runners(paths[0], threads) if torch else None
    files = deploy_bench.find(paths)
    rows = deploy_bench.bench(files, batch or deploy_bench.BATCHES, provider, threads, seconds, others)
    if as_json:
        print(json.dumps({"reference": rows[0]["model"], "rows": rows}, indent=1))
    else:
        deploy_bench.show(rows)


@app.command()
def criteria(as_json: Json = False) -> None:
    """Every criterion with what it needs and where it comes from."""
    from vitprune.criteria.catalog import CRITERIA

    rows = [
        {
            "name": name,
            "needs": list(row.needs),
            "ranks_by": row.ranks_by if row.score else "score",
            "source": row.source,
        }
        for name, row in CRITERIA.items()
    ]
    rows.append({"name": "random", "needs": [], "ranks_by": "score", "source": "a seeded draw"})
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    for row in rows:
        print(f"{row['name']:<24}{', '.join(row['needs']) or 'weights alone':<40}{row['source']}")


@app.command()
def models(
    everything: Annotated[
        bool, typer.Option("--all", help="every timm name: supported, or why not (takes a while)")
    ] = False,
    as_json: Json = False,
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
    notes: list[str] = []
    found = precheck.check(loaded, parse.beside(recipe))
    if model:
        from vitprune.cli import full_check

        loaded, notes = full_check.check(loaded, found)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    if as_json:
        print(json.dumps(loaded.model_dump(mode="json"), indent=1))
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
def recipe_new() -> None:
    """Print a commented recipe for one's own model and images."""
    from vitprune.recipe.template import TEMPLATE

    print(TEMPLATE, end="")


@app.command()
def doctor(as_json: Json = False) -> None:
    """Versions, devices, providers, and what clashes."""
    from vitprune.cli.doctor import examine, text

    found = examine()
    print(json.dumps(found, indent=1) if as_json else text(found))
    if found["problems"]:
        raise typer.Exit(1)


def _version(value: bool) -> None:
    if value:
        from vitprune.core.version import __version__

        print(f"vitprune {__version__}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="show the whole trace of an error")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False,
) -> None:
    """Options before the verb."""


def main() -> None:
    """Entry point of the `vitprune` command."""
    debug = "--debug" in sys.argv
    if not debug:
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", category=UserWarning)
        warnings.filterwarnings("ignore", message="Image size .* exceeds limit")  # Pillow's; the decoder has its own
    before = signal.signal(signal.SIGTERM, _terminated)
    try:
        app()
    except SystemExit as end:
        if end.code in (130, TERMINATED):
            _fail(STOPPED, int(end.code), False)
        raise
    except UserError as error:
        _fail(f"vitprune: {error}", 2, debug)
    except KeyboardInterrupt:
        _fail(STOPPED, 130, False)
    except BrokenPipeError:
        sys.exit(1)
    except Exception as error:
        if _lacks_memory(error):
            _fail("vitprune: not enough memory; free some and run the same command again, it continues", 2, debug)
        _fail(
            f"vitprune: internal error, {type(error).__name__}: {one_line(error)} (add --debug before the verb for the trace)",
            1,
            debug,
        )
    finally:
        signal.signal(signal.SIGTERM, before)


def _lacks_memory(error: Exception) -> bool:
    """Without torch, which `predict` does not need, only what Python and numpy raise."""
    if "torch" not in sys.modules:
        return isinstance(error, MemoryError)
    from vitprune.core import memory

    return memory.lacking(error)


def _terminated(*_: object) -> None:
    """Leave as Ctrl-C does, so that nothing half-written and no helper process stays behind."""
    sys.exit(TERMINATED)


def _fail(line: str, code: int, trace: bool) -> None:
    if trace:
        import traceback

        traceback.print_exc()
    print(line, file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
