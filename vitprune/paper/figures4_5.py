"""The paper's Figures 4 and 5 and App. D.2: how often a class's paths take each unit, and which classes use the same ones.

Paths of the probe images, one unit per block at t = 1. Figure 4: per class and block the distribution of the units'
indices, the class's path drawn through it. Figure 5: cosine of the classes' utilisation matrices, and for some classes
the most and the least alike. Legend: C classes, L blocks, K classes drawn.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from vitprune.core.errors import UserError
from vitprune.criteria.catalog import CRITERIA
from vitprune.criteria.paths import PathSet
from vitprune.paper.protocol import Source, class_paths
from vitprune.recipe.experiments import Paper
from vitprune.runs.stages import score
from vitprune.runs.state import lengths
from vitprune.runs.state.run import Run
from vitprune.see import usage

SHARE = 0.05  # of the other classes: the paper's top and bottom 5 %
STRIPS = 96  # a utilisation matrix is drawn in at most this many columns


def check(run: Run, spec: Paper) -> None:
    """Raises UserError for a criterion without paths, or for classes that are not there to be drawn or compared."""
    name = run.recipe.criterion.name
    row = CRITERIA.get(name)
    if row is None or row.score is None or row.ranks_by != "frequency":
        raise UserError(f"paper: criterion `{name}` has no paths; {spec.table} needs jas, activation, …")
    every = run.classes.every()
    if spec.table == "figure-5" and len(every) < 2:
        raise UserError("paper: figure-5 compares classes; the recipe has one")
    for asked in spec.classes or []:
        if run.classes.targets([asked])[0] not in every:
            raise UserError(f"paper: class `{asked}` is not among the recipe's `classes`")


def _found(run: Run) -> tuple[Source, PathSet]:
    """The recipe's own discovery with its paths."""
    c = run.recipe.criterion
    t = lengths.of(run, c.name, run.recipe.keep)
    source = Source(c.name, t, c.how(c.name), c.images_per_class(c.name))
    return source, score.columns(run, c.name, t, source.how, c.images_per_class(c.name))


def _drawn(run: Run, spec: Paper, default: int) -> list[int]:
    """Outputs of the classes asked for, in that order, or the first few."""
    if spec.classes is None:
        return run.classes.every()[:default]
    return [run.classes.targets([name])[0] for name in spec.classes]


def frequencies(run: Run, spec: Paper) -> dict[str, Any]:
    """Figure 4: counts of every unit that was selected, and the class path by each rule."""
    source, paths = _found(run)
    drawn, widths = _drawn(run, spec, 4), [site.size for site in run.sites]
    counts = usage.counts(paths, drawn, widths)
    routes = {
        rule: class_paths(run, Source(source.criterion, source.t, source.how, source.per_class, rule))
        for rule in spec.rules
    }
    rows = []
    for row, output in enumerate(drawn):
        images = int((paths.label == output).sum())
        blocks = [block[row] for block in counts]
        made: dict[str, Any] = {"class": run.classes.name(output), "images": images}
        for rule, route in routes.items():
            units = route[output].tolist()
            share = [float(b[u] / images) for b, u in zip(blocks, units, strict=True)]
            made[rule] = {"path": units, "share_of_images": share}
        rows.append(made | {"selected": [[[int(u), int(b[u])] for u in np.flatnonzero(b)] for b in blocks]})
    return {"criterion": source.criterion, "t": source.t, "n": len(paths.image), "widths": widths, "rows": rows}


def frequencies_markdown(record: dict[str, Any]) -> str:
    """The class paths and how often they are taken, in plain text."""
    blocks = range(len(record["widths"]))
    lines = [
        f"# Figure 4 on `{record['model']}`: how often each unit is on a class's paths ({record['criterion']}, "
        f"t = {record['t']})",
        "",
        f"Probe images, {record['n']} in all. Unit of the class path in each block, and the share of the class's images "
        f"whose own path has it; by chance {100 * record['t'] / max(record['widths']):.1f} %.",
        "",
        f"| class | class path | {' | '.join(f'block {i}' for i in blocks)} |",
        f"|---|---|{'---:|' * len(blocks)}",
    ]
    for row in record["rows"]:
        for rule in ("frequency", "mode-per-rank"):
            if rule in row:
                of = row[rule]
                cells = [f"{u} ({100 * s:.0f} %)" for u, s in zip(of["path"], of["share_of_images"], strict=True)]
                lines.append(f"| {row['class']} | {rule} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def violins(record: dict[str, Any]) -> Figure:
    """One panel per class, one violin per block over the indices of the selected units, the class path as a dotted line."""
    rows, depth = record["rows"], len(record["widths"])
    down = (len(rows) + 1) // 2
    figure = Figure(figsize=(11, 0.6 + 2.8 * down), layout="constrained")
    grid = figure.subplots(down, min(2, len(rows)), sharex=True, sharey=True, squeeze=False)
    for axes in grid.flat[len(rows) :]:
        axes.set_visible(False)
    for axes, row in zip(grid.flat, rows, strict=False):
        chosen = [np.repeat(*np.array(block).T).astype(float) for block in row["selected"]]
        axes.violinplot(chosen, range(depth), widths=0.85, showextrema=True)
        for rule, marker in (("frequency", "o"), ("mode-per-rank", "x")):
            if rule in row:
                axes.plot(range(depth), row[rule]["path"], ":", marker=marker, ms=4, lw=1, label=rule)
        axes.set(title=row["class"], ylim=(-0.02 * max(record["widths"]), 1.02 * max(record["widths"])))
        axes.set_xticks(range(depth))
    grid[0, 0].legend(fontsize=7, title="class path", title_fontsize=7)
    figure.supxlabel("block")
    figure.supylabel("index of the hidden unit")
    return figure


def likeness(run: Run, spec: Paper) -> dict[str, Any]:
    """Figure 5 and D.2: the similarity matrix, its classes in the order of the tree, and some classes' neighbours."""
    source, paths = _found(run)
    outputs, widths = run.classes.every(), [site.size for site in run.sites]
    used = usage.utilisation(usage.counts(paths, outputs, widths))
    alike = usage.similarity(used)
    names = [run.classes.name(output) for output in outputs]
    rows = []
    for output in _drawn(run, spec, 3):
        row = outputs.index(output)
        others = sorted((o for o in range(len(outputs)) if o != row), key=lambda o: -alike[row, o])
        few = max(1, round(SHARE * len(others)))
        made: dict[str, Any] = {"class": names[row]}
        for kind, chosen in (("most_alike", others[:few]), ("least_alike", others[::-1][:few])):
            made[kind] = [[names[o], round(float(alike[row, o]), 4)] for o in chosen]
        matrix = [[[int(u), round(float(block[row, u]), 4)] for u in np.flatnonzero(block[row])] for block in used]
        rows.append(made | {"utilisation": matrix})
    apart = alike[~np.eye(len(outputs), dtype=bool)]
    order = usage.order(alike)
    return {
        "criterion": source.criterion,
        "t": source.t,
        "n": len(paths.image),
        "widths": widths,
        "mean_similarity": float(apart.mean()),
        "range": [float(apart.min()), float(apart.max())],
        "classes": [names[o] for o in order],
        "similarity": np.round(alike[np.ix_(order, order)], 4).tolist(),
        "rows": rows,
    }


def likeness_markdown(record: dict[str, Any]) -> str:
    """The neighbours in plain text."""
    low, high = record["range"]
    lines = [
        f"# Figure 5 and D.2 on `{record['model']}`: classes that use the same units ({record['criterion']}, "
        f"t = {record['t']})",
        "",
        f"Cosine of the utilisation matrices of {len(record['classes'])} classes, {record['n']} probe images: mean "
        f"{record['mean_similarity']:.2f}, {low:.2f} to {high:.2f}. The most and the least alike "
        f"{100 * SHARE:.0f} % of the other classes (one at least):",
        "",
        "| class | most alike | least alike |",
        "|---|---|---|",
    ]
    for row in record["rows"]:
        cells = [", ".join(f"{n} {s:.2f}" for n, s in row[kind]) for kind in ("most_alike", "least_alike")]
        lines.append(f"| {row['class']} | {' | '.join(cells)} |")
    lines += ["", f"Classes in the order of the tree: {', '.join(record['classes'])}."]
    return "\n".join([*lines, ""])


def heat_map(record: dict[str, Any]) -> Figure:
    """The similarity matrix in the order of the tree, and beside it the utilisation matrix of each class drawn."""
    rows, names = record["rows"], record["classes"]
    figure = Figure(figsize=(12, max(4.4, 1.3 * len(rows))), layout="constrained")
    halves: Any = figure.subfigures(1, 2, width_ratios=[1.1, 1])
    left, right = halves
    axes = left.subplots()
    low, high = record["range"]  # of different classes: the diagonal, 1, would hide what there is to see
    shown = axes.imshow(record["similarity"], cmap="viridis", vmin=low, vmax=max(high, low + 1e-6))
    left.colorbar(shown, ax=axes, shrink=0.8, extend="max", label="cosine of the utilisation matrices")
    if len(names) <= 60:
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
        axes.set_yticks(range(len(names)), names, fontsize=7)
    panels = right.subplots(len(rows), 1, sharex=True, squeeze=False)[:, 0]
    for panel, row in zip(panels, rows, strict=True):
        panel.imshow(strips(row["utilisation"], record["widths"]), cmap="magma_r", vmin=0, aspect="auto")
        panel.set(title=row["class"], ylabel="block")
        panel.set_xticks([])
    panels[-1].set_xlabel("hidden unit; neighbours share a column, the most used one shows")
    return figure


def strips(sparse: list[list[list[float]]], widths: list[int]) -> np.ndarray:
    """A utilisation matrix for drawing: float [L, at most STRIPS], the largest of the units that share a column."""
    columns = min(STRIPS, max(widths))
    made = np.zeros((len(widths), columns))
    for block, (pairs, width) in enumerate(zip(sparse, widths, strict=True)):
        for unit, share in pairs:
            column = int(unit) * columns // width
            made[block, column] = max(made[block, column], share)
    return made
