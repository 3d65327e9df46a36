"""The verbs on files: predictions of an exported model, reports of finished runs, bars they are held to, timings."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from vitprune.cli.options import AsJson
from vitprune.core.errors import UserError
from vitprune.core.reading import Json, read_json


def predict(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="an exported .onnx file, or the folder it is in")],
    images: Annotated[list[str], typer.Argument(metavar="IMAGE…", help="files, folders, or globs in quotes")],
    top: Annotated[int, typer.Option("--top", min=1, help="how many classes to name")] = 3,
    batch: Annotated[int, typer.Option("--batch", min=1, help="images at a time")] = 32,
    out: Annotated[
        Path | None, typer.Option("--out", help="of a backbone: the .npz or .csv that its features go to")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Names and probabilities for images, or their features, from an exported ONNX file alone."""
    from vitprune.deploy import embed
    from vitprune.deploy import predict as prediction
    from vitprune.images.sources.found import note

    if out is not None:
        count, width = embed.write(model, prediction.find_images(images), out, batch)
        print(f"{out}: {count:,} images, {width:,} numbers each")
        return
    classifier, left_out = prediction.open_model(model), Counter[str]()
    answers = prediction.predict(classifier, prediction.find_images(images, left_out), top, batch)
    if as_json:
        own = None if classifier.outputs is None else [classifier.labels[i] for i in classifier.outputs]
        threshold = None if own is None else classifier.threshold
        found: Json = {"model": str(model), "classes": own, "labels_by_order": classifier.labels_by_order}
        found |= {"threshold": threshold, "left_out": dict(left_out), "images": list(answers)}
        print(json.dumps(found, indent=1))
        return
    if classifier.labels_by_order:
        print("class names: by the sorted order of the images' folders; the model has none of its own", file=sys.stderr)
    if said := note(left_out, "the folders"):
        print(said, file=sys.stderr)
    for answer in answers:
        print(prediction.line(answer))


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN…", help="folders of finished runs")],
    out: Annotated[Path, typer.Option("--out", help="where the comparison of several runs goes")] = Path("exported"),
) -> None:
    """Write a run's report again, or one page that compares several runs."""
    from vitprune.core import claims
    from vitprune.report import compare_reports, write_report

    found: list[tuple[Path, Json]] = []
    for folder in runs:
        path = folder / "report.json"
        if not path.is_file():
            raise UserError(f"{folder}: has no report.json; finish the run with `vitprune run RECIPE`")
        content = read_json(path)
        if not isinstance(content, dict):
            raise UserError(f"{path}: is not a report")
        found.append((folder, content))
    _all_different(runs)
    if len(found) == 1:
        claims.recognise(found[0][0])
    made = write_report(found[0][1], found[0][0]) if len(found) == 1 else compare_reports(found, out)
    for path in made:
        print(path)


def _all_different(runs: list[Path]) -> None:
    """Nothing; raises UserError for a run that is given twice, under whatever path."""
    for n, folder in enumerate(runs):
        if any(folder.samefile(other) for other in runs[:n]):
            raise UserError(f"{folder}: is given twice; a comparison needs runs that differ")


def check(
    report: Annotated[Path, typer.Argument(metavar="REPORT", help="a run's report.json, or its folder")],
    min_top1: Annotated[float | None, typer.Option("--min-top1", help="top-1 of the exported model, as 0.87")] = None,
    max_latency_ratio: Annotated[float | None, typer.Option("--max-latency-ratio", help="slim / dense time")] = None,
    max_params_ratio: Annotated[
        float | None, typer.Option("--max-params-ratio", help="slim / dense parameters")
    ] = None,
    max_macs_ratio: Annotated[float | None, typer.Option("--max-macs-ratio", help="slim / dense multiply-adds")] = None,
    min_simulator: Annotated[
        float | None,
        typer.Option(
            "--min-simulator", metavar="R", help="how far classes tell what kept units do (see.parts: simulator)"
        ),
    ] = None,
    max_removed_aligned: Annotated[
        float | None,
        typer.Option(
            "--max-removed-aligned", metavar="SHARE", help="of the class evidence removed (see.parts: alignment)"
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Hold a finished run against bars: one line per bar; exit code 1 where one is missed, 2 where none can be judged."""
    from vitprune.report import bars as gate

    asked = [("top1", min_top1, True), ("latency_ratio", max_latency_ratio, False)]
    asked += [("params_ratio", max_params_ratio, False), ("macs_ratio", max_macs_ratio, False)]
    asked += [("simulator", min_simulator, True), ("removed_aligned", max_removed_aligned, False)]
    bars = [gate.Bar(name, limit, at_least) for name, limit, at_least in asked if limit is not None]
    rows = gate.check(report, bars)
    print(json.dumps(rows, indent=1) if as_json else "\n".join(map(gate.line, rows)))
    if not all(row["passed"] for row in rows):
        raise typer.Exit(1)


def bench(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH…", help="exported run folders or ONNX files")],
    batch: Annotated[list[int] | None, typer.Option("--batch", min=1, help="batch sizes; repeatable")] = None,
    provider: Annotated[list[str] | None, typer.Option("--provider", help="cpu, cuda, tensorrt; repeatable")] = None,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="threads of onnxruntime")] = None,
    seconds: Annotated[float, typer.Option("--seconds", min=0.0, help="per batch size")] = 3.0,
    torch: Annotated[bool, typer.Option("--torch", help="also torch, eager and compiled (of a run folder)")] = False,
    as_json: AsJson = False,
) -> None:
    """Time dense against slim against each precision: MAC ratio, latency ratio, efficiency, and why it is poor."""
    from vitprune.cli import torch_runners
    from vitprune.core.progress import Reporter, reporter
    from vitprune.deploy import bench as deploy_bench

    progress = Reporter()
    progress.watch("")  # a long silence alone is broken
    try:
        others = torch_runners.torch_runners(paths[0], threads) if torch else None
        files, sizes = deploy_bench.find(paths), batch or deploy_bench.BATCHES
        rows = deploy_bench.bench(files, sizes, provider, threads, seconds, others, progress.begin)
    finally:
        reporter.rest()
    if as_json:
        print(json.dumps({"reference": rows[0]["model"], "rows": rows}, indent=1))
    else:
        deploy_bench.show(rows)
