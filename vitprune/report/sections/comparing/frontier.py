"""How small may it be? The models of a frontier beside each other: accuracy against MACs and against latency."""

from __future__ import annotations

from vitprune.core.reading import Json
from vitprune.report.page import numbers
from vitprune.report.page.blocks import Block, Cell, Row, Section, Text, figure, table
from vitprune.report.plots import plots
from vitprune.report.reading.values import budget_text, clean, interval, mappings, number, sequence

COLUMNS = (
    "Budget", ">Top-1", ">95 % interval", ">Change, points", ">p", ">MACs left", ">Parameters left", ">Latency left",
    ">Checkpoint", "Folder",
)  # fmt: skip
EXPLAINED = (
    "All of them were pruned from one discovery. Change and p (exact McNemar test) are against the dense model on the same "
    "test images; p is not corrected for the number of budgets."
)
PLOTS = {
    "macs": ("macs_ratio", "MACs left, %", "Top-1 against the multiply-adds that are left, with 95 % intervals"),
    "latency": ("latency_ratio", "latency left, %", "Top-1 against the latency that is left in ONNX Runtime"),
}  # fmt: skip


def frontier_sections(record: Json) -> tuple[Section, ...]:
    """Nothing where the run made one model."""
    lines = [line for line in mappings(record.get("frontier")) if number(line.get("top1")) is not None]
    if not lines:
        return ()
    blocks: list[Block] = [table("Every budget's model", COLUMNS, map(_row, lines)), Text(EXPLAINED, "note")]
    blocks += _chart(lines, *PLOTS["macs"])
    if doubts := [
        f"{budget_text(line)}: {clean(note)}" for line in lines for note in sequence(line.get("latency_notes"))
    ]:
        blocks.append(Text(f"Latencies in doubt: {'; '.join(doubts)}.", "warning"))
    return (Section("frontier", "How small may it be?", tuple(blocks)),)


def frontier_chart(record: Json) -> tuple[Block, ...]:
    """Accuracy against latency of every budget's model; nothing where fewer than two were timed."""
    return _chart(mappings(record.get("frontier")), *PLOTS["latency"])


def _chart(lines: list[Json], key: str, label: str, caption: str) -> tuple[Block, ...]:
    points = [point for line in lines if (point := _point(line, key)) is not None]
    if len(points) < 2:
        return ()
    return figure(
        plots.accuracy_curves(f"frontier-{key}", points, number(lines[0].get("dense_top1")), caption, label), caption
    )


def _point(line: Json, key: str) -> plots.Point | None:
    top1, left, pair = number(line.get("top1")), number(line.get(key)), interval(line.get("top1_ci95"))
    if top1 is None or left is None:
        return None
    low, high = pair if pair else (None, None)
    return plots.Point("", "pruned", top1, low, high, 100 * left)


def _row(line: Json) -> Row:
    pair = interval(line.get("top1_ci95"))
    value = {key: number(line.get(key)) for key in ("top1", "top1_change_points", "mcnemar_p", "bytes")}
    left = [number(line.get(f"{key}_ratio")) for key in ("macs", "params", "latency")]
    return Row(
        (
            Cell(budget_text(line)),
            Cell(numbers.share(value["top1"], 2), value["top1"]),
            Cell(numbers.span(pair), pair[0] if pair else None),
            Cell(numbers.points(value["top1_change_points"]), value["top1_change_points"]),
            Cell(numbers.probability(value["mcnemar_p"]), value["mcnemar_p"]),
            *(Cell(numbers.share(share), share) for share in left),
            Cell(numbers.size(value["bytes"]), value["bytes"]),
            Cell(clean(line.get("folder")), tone="" if line.get("onnx") else "note"),
        ),
        "" if line.get("onnx") else "not exported",
    )
