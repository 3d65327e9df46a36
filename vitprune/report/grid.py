"""A comparison as a table and as a plot, and why a criterion was chosen in a sentence."""

from __future__ import annotations

import math
from io import StringIO

from vitprune.core.reading import Json
from vitprune.report.reading.values import budget_text


def markdown(record: Json) -> str:
    """The table in plain text."""
    dense, seeds = record["dense"], record["seeds"]
    lines = [
        f"# {record['name']}: criteria compared",
        "",
        f"Dense: {_percent(dense)} top-1{_masked(dense)}. Test split of {len(seeds)} seed(s) of the split "
        f"({', '.join(map(str, seeds))}), mean ± standard deviation; {_shared(record)}. *p*: exact McNemar "
        "test on the same images against the best other criterion of the same budget and repair, the largest over the "
        "seeds; not corrected for the number of comparisons. *p of the loss*: the same test against the dense model.",
        "",
        f"| {'budget' if _whole(record) else 'keep'} "
        "| recovery | criterion | top-1 % | loss, points | p of the loss | against the best other, points | p |",
        "|---:|---|---|---:|---:|---:|---:|---:|",
    ]
    lines += _lines(record)
    for why in record["choices"]:
        lines += ["", f"Seed {why['seed']}: {sentence(why)}"]
    for note in record["notes"]:
        lines += ["", f"Default {note}"]
    return "\n".join([*lines, *_costs(record), ""])


def _costs(record: Json) -> list[str]:
    """The table of what every criterion needs and takes, under an empty line."""
    lines = [
        "",
        "| criterion | needs | probe images | seconds | peak memory | source |",
        "|---|---|---:|---:|---:|---|",
    ]
    for cost in record["costs"]:
        peak = "" if cost["peak_memory_mb"] is None else f"{cost['peak_memory_mb']:.0f} MB"
        lines.append(
            f"| {cost['criterion']} | {', '.join(cost['needs']) or 'weights'} | {cost['images']} | {cost['seconds']:.2f} "
            f"| {peak} | {cost['source']} |"
        )
    return lines


def _lines(record: Json) -> list[str]:
    """Every criterion at every budget, a line of the table each."""
    lines = []
    for row in sorted(record["table"], key=lambda r: (*_size(r), r["recovery"], -r["top1"])):
        sd = "" if row["loss_points_sd"] is None else f" ± {row['loss_points_sd']:.2f}"
        shown = [
            budget_text(row) or f"{row['keep']:g}",
            row["recovery"],
            row["criterion"],
            _percent(row) + _masked(row),
        ]
        shown += [
            f"{row['loss_points']:.2f}{sd}",
            format(row["loss_p"], ".2g"),
            f"{row['ahead_points']:+.2f} ({row['best_other']})",
        ]
        lines.append(f"| {' | '.join([*shown, format(row['mcnemar_p'], '.2g')])} |")
    return lines


def plot(record: Json) -> str:
    """Top-1 against the share kept, or the multiply-adds left under budgets of the whole model: one curve per criterion,
    one panel per repair, the dense line; SVG."""
    import matplotlib
    from matplotlib.figure import Figure

    recoveries = list(dict.fromkeys(row["recovery"] for row in record["table"]))
    criteria = list(dict.fromkeys(row["criterion"] for row in record["table"]))
    with matplotlib.rc_context({"svg.hashsalt": "vitprune", "font.size": 9}):
        figure = Figure(figsize=(5.2 * len(recoveries), 4.2), layout="constrained")
        axes = figure.subplots(1, len(recoveries), sharey=True, squeeze=False)[0]
        colours = matplotlib.color_sequences["tab20"]
        for axis, recovery in zip(axes, recoveries, strict=True):
            axis.axhline(100 * record["dense"]["top1"], color="0.4", ls="--", lw=1, label="dense")
            for k, name in enumerate(criteria):
                own = sorted(
                    (r for r in record["table"] if (r["recovery"], r["criterion"]) == (recovery, name)),
                    key=lambda r: _left(record, r),
                )
                error = [100 * (r["top1_sd"] or 0.0) for r in own]
                x, y = [100 * _left(record, r) for r in own], [100 * r["top1"] for r in own]
                axis.errorbar(x, y, error, label=name, color=colours[k % 20], marker="o", ms=3, lw=1, capsize=2)
            what = "multiply-adds left" if _whole(record) else "hidden units kept"
            axis.set(title=f"recovery: {recovery}", xlabel=f"{what}, % (log scale)", xscale="log")
            ticks = sorted({100 * _left(record, r) for r in record["table"]})
            axis.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks])
            axis.minorticks_off()
        axes[0].set_ylabel("top-1 on the test split, %")
        axes[-1].legend(fontsize=7, loc="lower right")
        out = StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
    assert math.isfinite(record["dense"]["top1"])
    return out.getvalue()


def sentence(why: Json) -> str:
    """Why, in one sentence for the report."""
    order = sorted(why["top1"].items(), key=lambda item: -item[1])
    shown = ", ".join(f"{name} {100 * top1:.2f} %" for name, top1 in order)
    best = order[0][0] == why["chosen"]
    reason = "highest" if best else f"not clearly below `{order[0][0]}` in"
    more = "" if best else ", and the highest mean probability of the true class among such"
    return (
        f"Criterion `auto` took `{why['chosen']}`: {reason} top-1 on {why['n']} probe images held out for the choice{more}, "
        f"at keep {why['keep']:g} with recovery {why['recovery']} ({shown}). The test split played no part."
    )


def _whole(record: Json) -> bool:
    return any(row.get("budget") for row in record["table"])


def _shared(record: Json) -> str:
    return "budgets of the whole model" if _whole(record) else f"{record['allocation']} allocation"


def _size(row: Json) -> tuple[str, float]:
    """What rows are sorted by: the larger model first."""
    word, amount = next(iter((row.get("budget") or {}).items()), ("", row["kept"]))
    return word, -amount


def _left(record: Json, row: Json) -> float:
    return float(row["macs"] / record["dense"]["macs"] if _whole(record) else row["kept"])


def _masked(row: Json) -> str:
    """For a specialist: the same model with the head's other outputs closed."""
    closed = row["top1_masked_head"]
    return "" if closed is None else f" ({100 * closed:.2f} with the head masked)"


def _percent(row: Json) -> str:
    sd = "" if row["top1_sd"] is None else f" ± {100 * row['top1_sd']:.2f}"
    return f"{100 * row['top1']:.2f}{sd}"
