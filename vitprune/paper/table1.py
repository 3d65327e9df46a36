"""The paper's Figure 6 and Table 3: accuracy over t × p × depth in its own pruning protocol (see protocol.py).

At the class token, p of the units outside the class set are zeroed, in the first `depth` blocks (what Table 3 calls
depth is how many blocks are pruned). An exact share p of the others, drawn once per class and block; the authors' code
draws anew for every image. Legend: C classes, N hidden units.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from vitprune.core.errors import UserError
from vitprune.paper.protocol import ALIGN, COLUMNS, Exam, Rule, Source, class_masks, shown
from vitprune.recipe.experiments import Paper
from vitprune.runs.engine.base import Columns, Job
from vitprune.runs.engine.parts import packed, unpacked
from vitprune.runs.stages.versions import CODE
from vitprune.runs.state.run import Run


def zeroed_share(keep_CN: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """bool [C, N]: the mask's units and all of the others but an exact `share` of them, drawn per class."""
    kept = keep_CN.clone()
    for row in range(len(kept)):
        others = (~keep_CN[row]).nonzero().flatten()
        spared = others[torch.randperm(len(others), generator=generator)[round(share * len(others)) :]]
        kept[row, spared] = True
    return kept


def check(run: Run, spec: Paper) -> None:
    """Raises UserError without a `paper_protocol`, or for a depth that the model does not have."""
    if run.recipe.paper_protocol is None:
        raise UserError("paper: figure-6 needs a `paper_protocol` section, its t are the rows of the figure")
    depth, deepest = len(run.sites), max(spec.depth or [1])
    if deepest > depth:
        raise UserError(f"paper: depth {deepest} is asked for, the model has {depth} blocks")


def grid(run: Run, spec: Paper) -> dict[str, Any]:
    """Every criterion × t × p × depth on the same test images."""
    p, depths = run.recipe.paper_protocol, spec.depth or [len(run.sites)]
    assert p is not None
    exam = Exam.open(run, spec, p.probe_per_class)
    dense = exam.of_model(run, run.loaded.model)
    cells = [
        (name, rule, t, share, d)
        for name in ("jas", "activation")
        for rule in spec.rules
        for t in p.t
        for share in spec.p
        for d in depths
    ]
    found = run.folder.record("discover")
    about = {"found": found and found["inputs"], "paper": spec.model_dump(mode="json"), "code": CODE}
    job = Job("paper grid", cells, functools.partial(_cell, run), about)
    folder = run.folder.stage_folder("paper")
    parts = run.reporter.track(run.executor.run(job, folder), "paper grid", len(cells))
    rows = [unpacked(part) for part in parts]
    run.folder.clear(folder, set())
    return {**dense, "n": exam.tests, "rows": rows}


def _cell(run: Run, cell: tuple[str, Rule, int, float, int]) -> Columns:
    """The row of one criterion, class set, t, p and depth."""
    p, spec = run.recipe.paper_protocol, run.recipe.paper
    assert p is not None and spec is not None
    name, rule, t, share, first = cell
    chosen = class_masks(run, Source(name, t, p.how(name), p.probe_per_class, rule))
    generator = torch.Generator().manual_seed(run.recipe.split.seed)
    keep = [
        zeroed_share(block, share, generator) if i < first else torch.ones_like(block) for i, block in enumerate(chosen)
    ]
    about = {"criterion": name, "protocol": "oracle", "units": rule, "t": t, "p": share, "depth": first}
    return packed(about | Exam.open(run, spec, p.probe_per_class).oracle(run, keep))


def markdown(record: dict[str, Any]) -> str:
    """The grid in plain text."""
    lines = [
        f"# Figure 6 and Table 3 on `{record['model']}`: the paper's protocol over t, p and depth",
        "",
        f"ORACLE-ROUTED: the mask is chosen by the image's true label. {record['n']} test images; dense top-1 "
        f"{100 * record['top1']:.2f} %, mean probability of the true class {record['mean_true_probability']:.3f} "
        f"({record['mean_true_probability_overlapping']:.3f} with one probe image per class among the test images, which "
        "is what the authors' code reports as accuracy).",
        "",
        f"| criterion | class set | t | p of the others zeroed | first blocks | {COLUMNS} |",
        f"|---|---|---:|---:|---:|{ALIGN}|",
    ]
    for r in record["rows"]:
        lines.append(
            f"| {r['criterion']} | {r['units']} | {r['t']} | {100 * r['p']:.0f} % | {r['depth']} | {shown(r)} |"
        )
    return "\n".join([*lines, ""])
