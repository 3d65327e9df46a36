"""`vitprune bench`: how much of the arithmetic that was removed comes back as time, per provider and batch size.

Every model of a table is timed in turn on the same images. Speed-up is against the reference (the dense fp32 file, or
the first that was given); efficiency is the speed-up divided by the ratio of the multiply-adds that each file carries
in its metadata, so 1.0 is time saved in proportion.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vitprune.core.errors import UserError
from vitprune.core.progress.fitting import fitted
from vitprune.deploy import runtime, timing

BATCHES = (1, 8, 32, 128)
POOR = 0.85
MULTIPLE = {"cpu": 16, "cuda": 64, "tensorrt": 64}  # 16 floats to an AVX-512 register; 64 to a tensor core's tile
FILES = ("stages/export/dense.onnx", "model.onnx", "model.fp16.onnx", "model.int8.onnx")
Facts = dict[str, Any]


def find(paths: Sequence[Path]) -> dict[str, Path]:
    """Name → ONNX file of files and exported run folders, the dense file of a run first. Raises UserError."""
    found: dict[str, Path] = {}
    for path in paths:
        if path.is_dir():
            dense = [path / FILES[0], path.parent / FILES[0]]  # a group's folder lies in the run's
            files = [p for p in dense if p.is_file()][:1] + [path / n for n in FILES[1:] if (path / n).is_file()]
            if not files:
                raise UserError(f"{path}: holds no ONNX file; finish the run with `vitprune export RECIPE`")
        elif path.is_file():
            files = [path]
        else:
            raise UserError(f"{path}: no such file or folder; give ONNX files or exported/<name>")
        for file in files:
            name = "dense" if file.name == "dense.onnx" else file.stem if len(paths) == 1 else str(file)
            found.setdefault(name, file)
    return found


def bench(
    files: dict[str, Path],
    batches: Sequence[int] = BATCHES,
    providers: Sequence[str] | None = None,
    threads: int | None = None,
    seconds: float = 3.0,
    others: dict[str, tuple[Callable[[np.ndarray], object], Facts]] | None = None,
    told: Callable[[str], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """One row per provider, batch and model. `others` are functions to time beside the files on the processor; `told` hears
    what is timed next.

    Raises UserError when a provider is not active, or when two models do not take the same images.
    """
    rows: list[dict[str, Any]] = []
    for provider in providers or runtime.available():
        sessions = {n: runtime.session(path, provider, threads, in_turn=True) for n, path in files.items()}
        facts = {name: facts_of(made) for name, made in sessions.items()}
        shape = _shape(sessions)
        runners: dict[str, Any] = dict(sessions)
        if others and provider == "cpu":
            runners |= {name: run for name, (run, _) in others.items()}
            facts |= {name: known for name, (_, known) in others.items()}
        for batch in batches:
            told(f"bench: {provider}, batch {batch}: {', '.join(runners)}")
            images = np.random.default_rng(0).standard_normal((batch, *shape), dtype=np.float32)
            found = runtime.interleaved(runners, images, seconds=seconds)
            first = next(iter(runners))
            reference = facts[first]
            for name, times in found.items():
                about = {"provider": provider, "batch": batch, "model": name, "precision": facts[name]["precision"]}
                made = about | times | figures(times["relative"], facts[name], reference)
                alike = facts[name]["precision"] == reference["precision"] and (name in sessions) == (first in sessions)
                rows.append(made | {"notes": timing.notes(times, made["efficiency"] if alike else None)})
        explain(rows, provider, facts)
    return rows


def facts_of(made: Any) -> Facts:
    """Multiply-adds, widths and precision as the file's metadata tells them; None where it does not."""
    meta = made.get_modelmeta().custom_metadata_map
    try:
        macs, widths = json.loads(meta.get("macs", "null")), json.loads(meta.get("widths", "null"))
        total, ffn = (int(macs["total"]), int(macs["ffn"])) if macs else (None, None)
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"the file's metadata `macs` or `widths` cannot be read ({error}); export it again") from error
    return {"macs": total, "ffn_macs": ffn, "widths": widths, "precision": meta.get("precision", "fp32")}


def _shape(sessions: dict[str, Any]) -> tuple[int, ...]:
    shapes = {name: tuple(runtime.image_shape(made, name)) for name, made in sessions.items()}
    first = next(iter(shapes.values()))
    for name, shape in shapes.items():
        if shape != first or not all(isinstance(side, int) for side in shape):
            raise UserError(f"{name}: takes images {list(shape)}, the first model {list(first)}; time them apart")
    return first


def figures(relative: float, facts: Facts, reference: Facts) -> dict[str, Any]:
    """MAC ratio, speed-up and efficiency from the time relative to the reference."""
    known = bool(facts["macs"] and reference["macs"])
    mac_ratio = facts["macs"] / reference["macs"] if known else None
    speedup = 1 / relative
    return {"mac_ratio": mac_ratio, "speedup": speedup, "efficiency": speedup * mac_ratio if mac_ratio else None}


def explain(rows: list[dict[str, Any]], provider: str, facts: dict[str, Facts]) -> None:
    """Add to every row of the provider `why`: one sentence where the efficiency is poor, else None."""
    mine = [row for row in rows if row["provider"] == provider]
    for row in mine:
        best = max((r for r in mine if r["model"] == row["model"]), key=lambda r: r["efficiency"] or -math.inf)
        row["why"] = reason(row, best, facts[row["model"]])


def reason(row: dict[str, Any], best: dict[str, Any], facts: Facts) -> str | None:
    """The likeliest cause of an efficiency below POOR; `best` is the same model at its best batch size."""
    efficiency = row["efficiency"]
    if efficiency is None or efficiency >= POOR:
        return None
    if row["provider"] == "cpu" and row["precision"] == "fp16":
        return "fp16 is for GPUs: this processor's kernels convert to fp32 and back"
    if best["batch"] > row["batch"] and best["efficiency"] > efficiency + 0.05:
        return f"batch too small: fixed costs per call; at batch {best['batch']} it is {best['efficiency']:.2f}"
    multiple = MULTIPLE.get(row["provider"], 16)
    odd = sorted({w for w in facts["widths"] or [] if w % multiple})
    if odd:
        return f"widths such as {odd[0]} are no multiple of {multiple}: set round_to: {multiple} in the recipe"
    outside = 1 - facts["ffn_macs"] / facts["macs"]
    if outside > 0.5:
        return f"attention-bound: {100 * outside:.0f} % of what is left lies outside the FFNs, with softmax uncounted"
    return "norms, activations and copies are not multiply-adds, and do not shrink in proportion"


def show(rows: list[dict[str, Any]]) -> None:
    """One table per provider on standard output, with the reasons below it."""
    console = Console(highlight=False, width=None if Console().is_terminal else 110)
    for provider in dict.fromkeys(row["provider"] for row in rows):
        mine = [row for row in rows if row["provider"] == provider]
        table = Table(title=f"{provider}: against {mine[0]['model']}, timed in turn", title_justify="left")
        for column in ("batch", "model", "ms", "quartiles", "MACs", "latency", "speed-up", "efficiency"):
            table.add_column(column, justify="left" if column == "model" else "right")
        for row in mine:
            table.add_row(
                str(row["batch"]), escape(row["model"]), f"{row['median_ms']:.2f}", f"{row['q25_ms']:.2f}–{row['q75_ms']:.2f}",
                _times(row["mac_ratio"]), _times(row["relative"]) + "?" * bool(row["notes"]), f"{row['speedup']:.2f}",
                "—" if row["efficiency"] is None else f"{row['efficiency']:.2f}",
            )  # fmt: skip
        console.print(fitted(console, table, ("quartiles", "efficiency", "MACs")))
        for row in mine:
            for text in [f"in doubt: {note}" for note in row["notes"]] + ([row["why"]] if row["why"] else []):
                console.print(f"batch {row['batch']}, {row['model']}: {text}", soft_wrap=True, markup=False)


def _times(value: float | None) -> str:
    return "—" if value is None else f"x {value:.3f}"
