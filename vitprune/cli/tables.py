"""What a finished command prints: a short table for people, one JSON object for scripts."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vitprune.core.progress.fitting import fitted
from vitprune.core.reading import Json
from vitprune.report.backbone.result import expected
from vitprune.report.reading.values import budget_text


def as_json(record: Json, verb: str, folder: Path) -> Json:
    """The essentials of a record and where its files are."""
    kept = ("name", "complete", "missing", "result", "results", "frontier", "rows", "checks", "stages", "hashes")
    found: Json = {key: record[key] for key in kept if key in record}
    found["folder"] = str(folder)
    if verb == "run":
        found["report"] = str(folder / "report.html")
    return found


def show(record: Json, verb: str, folder: Path) -> None:
    """Tables on standard output, ending with the path of the report (or of the run's folder)."""
    console = Console(highlight=False, width=None if Console().is_terminal else 110)
    if "backbone" in record:
        _of_backbone(console, record)
    elif "rows" in record:
        honest = [row for row in record["rows"] if row["protocol"] == "honest"]
        console.print(_table(console, "Test split, honest: one model for every image", honest))
        oracle = [row for row in record["rows"] if row["protocol"] == "oracle"]
        if oracle:
            title = "Paper's protocol, oracle-routed: mask chosen by the true label, class token only"
            console.print(_table(console, title, oracle))
    measured = [line for line in record.get("frontier", []) if "top1" in line]
    if measured:
        console.print(_frontier(console, measured))
    result = record.get("result")
    if result:
        model = record["model"]
        macs, params = model["macs_slim"] / model["macs_dense"], model["params_slim"] / model["params_dense"]
        line = f"MACs x {macs:.3f}, parameters x {params:.3f}"
        if result.get("latency_ratio"):
            line += f", ONNX latency x {result['latency_ratio']:.3f} (batch {result.get('latency_batch', 32)})"
        console.print(f"Slim against dense: {line}")
        for note in result.get("latency_notes", []):
            console.print(f"The latency is in doubt: {note}", soft_wrap=True, markup=False)
    for note in record.get("notes", []):
        console.print(f"Note: {note}", soft_wrap=True, markup=False)
    failed = [check["name"] for check in record["checks"] if not check["passed"]]
    console.print(
        f"Checks: {len(record['checks']) - len(failed)} passed" + (f", FAILED: {', '.join(failed)}" if failed else "")
    )
    end = f"Report: {folder / 'report.html'}" if verb == "run" else f"Results: {folder}"
    console.print(end, soft_wrap=True, markup=False)


def _table(console: Console, title: str, rows: list[Json]) -> Table:
    table = Table(title=title, title_justify="left")
    for name in ("criterion", "keep", "recovery", "head", "top-1", "95 % interval", "p(true)", "params", "MACs"):
        table.add_column(name, justify="left" if name in ("criterion", "recovery", "head") else "right")
    for group in _draws_together(rows):
        first = group[0]
        top1 = [row["top1"] for row in group]
        spread = f" ± {100 * statistics.stdev(top1):.2f}" if len(group) > 1 else ""
        interval = "–".join(f"{100 * x:.1f}" for x in first["top1_ci95"]) if len(group) == 1 else f"{len(group)} draws"
        name = first["criterion"] + (f" [{first['group']}]" if first.get("group") else "")
        table.add_row(
            escape(name),
            budget_text(first) or str(first["keep"]),
            first["recovery"],
            first["head"],
            f"{100 * statistics.mean(top1):.2f}{spread}",
            interval,
            f"{statistics.mean(row['mean_true_probability'] for row in group):.3f}",
            f"{first['params']:,}",
            f"{first['macs'] / 1e6:.1f} M",
        )
    return fitted(console, table, ("head", "p(true)", "params", "95 % interval"))


def _of_backbone(console: Console, record: Json) -> None:
    """Features beside the dense model's, those of every budget, what becomes of an index, and what had been predicted."""
    rows, result = record["rows"], record["result"]
    console.print(_features(console, "Test split: features beside the dense model's", rows, rows[0]["macs"]))
    lines = [line for line in record.get("frontier", []) if "cosine" in line]
    if lines:
        named = [line | {"criterion": line["folder"], "recovery": budget_text(line)} for line in lines]
        console.print(_features(console, "Every budget's model", named, rows[0]["macs"]))
    console.print(f"Neighbours: {record['backbone']['index']}", soft_wrap=True, markup=False)
    if told := expected(record, result):
        console.print(told, soft_wrap=True, markup=False)


def _features(console: Console, title: str, rows: list[Json], dense_macs: int) -> Table:
    """Of backbones: how near their features are to the dense model's."""
    table = Table(title=title, title_justify="left")
    table.add_column("criterion")
    table.add_column("recovery")
    shown = [key for key in _FIGURES if any(row.get(key) is not None for row in rows)]
    for key in shown:
        table.add_column(_FIGURES[key], justify="right")
    table.add_column("MACs left", justify="right")
    for group in _draws_together(rows):
        every = [[row[key] for row in group if row.get(key) is not None] for key in shown]
        figures = [f"{statistics.mean(values):.3f}" if values else "" for values in every]
        first = group[0]
        table.add_row(escape(first["criterion"]), first["recovery"], *figures, f"{first['macs'] / dense_macs:.3f}")
    return fitted(console, table, ("probe", "neighbours", "kNN"))


_FIGURES = {
    "cosine": "cosine", "fvu": "FVU", "tokens_cosine": "patches' cosine", "tokens_fvu": "patches' FVU",
    "neighbours": "neighbours", "knn_top1": "kNN", "probe_top1": "probe",
}  # fmt: skip


def _frontier(console: Console, lines: list[Json]) -> Table:
    table = Table(title="Every budget's model", title_justify="left")
    for name in ("budget", "top-1", "change", "p", "MACs left", "parameters left", "latency left", "folder"):
        table.add_column(name, justify="left" if name in ("budget", "folder") else "right")
    for line in lines:
        latency = line.get("latency_ratio")
        table.add_row(
            budget_text(line),
            f"{100 * line['top1']:.2f}",
            f"{line['top1_change_points']:+.2f}",
            f"{line['mcnemar_p']:.2g}",
            f"{line['macs_ratio']:.3f}",
            f"{line['params_ratio']:.3f}",
            "" if latency is None else f"{latency:.3f}",
            line["folder"],
        )
    return fitted(console, table, ("parameters left", "p", "latency left"))


def _draws_together(rows: list[Json]) -> list[list[Json]]:
    groups: dict[tuple[Any, ...], list[Json]] = {}
    for row in rows:
        key = tuple(
            str(row.get(k)) for k in ("criterion", "keep", "recovery", "head", "group", "t", "protocol", "budget")
        )
        groups.setdefault(key, []).append(row)
    return list(groups.values())
