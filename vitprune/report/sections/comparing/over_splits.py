"""The comparison over several splits that lies beside a run as compare.json: its table, its plot, its test."""

from __future__ import annotations

from vitprune.core.reading import Json
from vitprune.report.page import numbers
from vitprune.report.page.blocks import Block, Cell, Heading, Row, Text, figure, missing, table
from vitprune.report.plots import plots
from vitprune.report.reading.beside import Beside
from vitprune.report.reading.values import budget_text, clean, mapping, mappings, number, ratio, sequence

MAX_CURVES = 8


COLUMNS = (
    "Criterion",
    "Recovery",
    ">Kept",
    ">Top-1",
    ">Loss, points",
    ">p of the loss",
    "Best other",
    ">Ahead, points",
    ">p",
)


def splits_blocks(record: Json, beside: Beside) -> list[Block]:
    """Nothing where the record names no comparison."""
    if not isinstance(name := record.get("compare"), str):
        return []
    found = beside.json(name)
    lines = sorted(mappings(found.get("table")), key=_order)
    heading = Heading("Over several splits")
    if not lines:
        return [heading, missing(f"the comparison: {clean(name)} is not there or holds no table")]
    dense = mapping(found.get("dense"))
    seeds = ", ".join(clean(seed) for seed in sequence(found.get("seeds")))
    text = f"From {clean(name)}: every criterion pruned and examined on each split (seeds {seeds}), mean ± standard "
    text += (
        f"deviation; the dense model has {_mean(dense, 'top1')}. p: exact McNemar test on the same images against the "
    )
    text += "best other criterion of the same budget and repair, the largest over the splits, not corrected for their number; "
    text += "p of the loss: the same test against the dense model."
    blocks: list[Block] = [
        heading,
        Text(text),
        table("Criteria and budgets over the splits", COLUMNS, map(_row, lines)),
    ]
    return [*blocks, *_chart(lines, dense)]


def _chart(lines: list[Json], dense: Json) -> tuple[Block, ...]:
    """Top-1 against what is kept, or against the multiply-adds left under budgets of the whole model."""
    whole = any(budget_text(row) for row in lines)
    drawn, left = _points(lines, number(dense.get("macs")) if whole else None)
    caption = (
        f"Top-1 over the splits against the {'multiply-adds left' if whole else 'share kept'}, ± one standard deviation"
    )
    axis = "multiply-adds left, %" if whole else "FFN units kept, %"
    svg = plots.accuracy_curves("splits", drawn, number(dense.get("top1")), caption, axis)
    more = f"; the {MAX_CURVES} best criteria, {left} more are in the table" if left else ""
    return figure(svg, caption + more)


def over_splits(record: Json, beside: Beside) -> str:
    """The exported setting's accuracy over the splits, where compare.json has the same setting of the same classes."""
    found, result = beside.json(record.get("compare")), mapping(record.get("result"))
    if not found or found.get("classes") != mapping(record.get("recipe")).get("classes"):
        return ""
    keys = ("criterion", "keep", "budget", "recovery")
    same = (row for row in mappings(found.get("table")) if all(row.get(key) == result.get(key) for key in keys))
    line = next(same, None)
    return f"over {len(sequence(found.get('seeds')))} splits {_mean(line, 'top1')}" if line else ""


def _mean(row: Json, key: str) -> str:
    mean, sd = number(row.get(key)), number(row.get(f"{key}_sd"))
    text = numbers.share(mean, 2)
    return text if sd is None else f"{text.removesuffix(chr(0x202F) + '%')} ± {numbers.share(sd, 2)}"


def _order(row: Json) -> tuple[float, str, float]:
    return (-(number(row.get("kept")) or 0.0), clean(row.get("recovery")), -(number(row.get("top1")) or 0.0))


def _row(row: Json) -> Row:
    asked, kept = budget_text(row), number(row.get("kept"))
    top1, p = number(row.get("top1")), number(row.get("mcnemar_p"))
    loss, sd, ahead = (number(row.get(key)) for key in ("loss_points", "loss_points_sd", "ahead_points"))
    tested = number(row.get("loss_p"))
    shown = numbers.points(loss).removeprefix("+") + (f" ± {sd:.2f}" if sd is not None else "")
    return Row(
        (
            Cell(clean(row.get("criterion"))),
            Cell(clean(row.get("recovery"))),
            Cell(f"{asked} ({numbers.share(kept)} of the FFN units)" if asked else numbers.share(kept), kept),
            Cell(_mean(row, "top1"), top1),
            Cell(shown, loss),
            Cell(numbers.probability(tested), tested),
            Cell(clean(row.get("best_other")) or numbers.NONE),
            Cell(numbers.points(ahead), ahead),
            Cell(numbers.probability(p), p),
        )
    )


def _points(lines: list[Json], macs: float | None) -> tuple[list[plots.Point], int]:
    """Points of the best criteria, one panel per recovery, and how many criteria are left out; by the share of FFN units
    kept, or of the dense model's `macs` where they are given."""
    best: dict[str, float] = {}
    for row in lines:
        name = clean(row.get("criterion"))
        best[name] = best.get(name, 0.0) + (number(row.get("top1")) or 0.0)
    names = sorted(best, key=lambda name: -best[name])[:MAX_CURVES]
    points = []
    for name in names:
        for row in lines:
            top1, sd = number(row.get("top1")), number(row.get("top1_sd"))
            kept = ratio(row.get("macs"), macs) if macs else number(row.get("kept"))
            if clean(row.get("criterion")) == name and top1 is not None and kept is not None:
                low, high = (top1 - sd, top1 + sd) if sd is not None else (None, None)
                points.append(plots.Point(clean(row.get("recovery")), name, top1, low, high, 100 * kept))
    return points, len(best) - len(names)
