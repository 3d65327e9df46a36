"""The paper's Figure 6 and Table 3: accuracy over t × p × depth in its own pruning protocol.

Class masks from the probe split; at the class token, p of the units outside the class's t most frequent are zeroed, in
the first `depth` blocks (what Table 3 calls depth is how many blocks are pruned), the mask chosen by the image's TRUE
label: oracle-routed, no deployable accuracy, and nothing gets smaller. An exact share p of the others, drawn once per
class and block; the authors' code draws anew for every image. What their figures call accuracy is the mean probability
of the true class: both columns stand here. Legend: C classes, N hidden units.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitprune import evaluation, masks
from vitprune.context import Context
from vitprune.errors import UserError
from vitprune.recipe import Paper
from vitprune.stages import discover


def zeroed_share(keep_CN: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """bool [C, N]: the mask's units and all of the others but an exact `share` of them, drawn per class."""
    kept = keep_CN.clone()
    for row in range(len(kept)):
        others = (~keep_CN[row]).nonzero().flatten()
        spared = others[torch.randperm(len(others), generator=generator)[round(share * len(others)) :]]
        kept[row, spared] = True
    return kept


def grid(context: Context, spec: Paper) -> dict[str, Any]:
    """Every criterion × t × p × depth on the same test images. Raises UserError without a `paper_protocol`."""
    p, depth = context.recipe.paper_protocol, len(context.sites)
    if p is None:
        raise UserError("paper: figure-6 needs a `paper_protocol` section, its t are the rows of the figure")
    depths = spec.depth or [depth]
    if max(depths) > depth:
        raise UserError(f"paper: depth {max(depths)} is asked for, the model has {depth} blocks")
    index = evaluation.test_indices(context.images, context.split, np.array(context.every_target()))
    predict = evaluation.predictor(context.loaded.model)
    logits, labels = evaluation.test_logits(predict, context.images, context.split, context.batch)
    inside = np.isin(labels, context.every_target())
    dense = evaluation.metrics(logits[inside], labels[inside])
    jobs = [(n, t, share, d) for n in ("jas", "activation") for t in p.t for share in spec.p for d in depths]
    rows = []
    for name, t, share, first in context.reporter.track(jobs, "paper grid", len(jobs)):
        chosen = masks.per_class(discover.load(context, name, t, p.attribution(), p.probe_per_class), t)
        generator = torch.Generator().manual_seed(context.recipe.split.seed)
        keep = [
            zeroed_share(block, share, generator) if i < first else torch.ones_like(block)
            for i, block in enumerate(chosen)
        ]
        out, of = evaluation.oracle_logits(
            context.loaded.model, context.sites, keep, context.images, index, context.batch
        )
        m = evaluation.metrics(out, of)
        rows.append(
            {
                "criterion": name,
                "protocol": "oracle",
                "t": t,
                "p": share,
                "depth": first,
                "top1": m.top1,
                "top1_ci95": list(m.top1_ci95),
                "mean_true_probability": m.mean_true_probability,
            }
        )
    return {"top1": dense.top1, "mean_true_probability": dense.mean_true_probability, "n": dense.n, "rows": rows}


def markdown(record: dict[str, Any]) -> str:
    """The grid in plain text."""
    lines = [
        f"# Figure 6 and Table 3 on `{record['model']}`: the paper's protocol over t, p and depth",
        "",
        f"ORACLE-ROUTED: the mask is chosen by the image's true label. {record['n']} test images; dense top-1 "
        f"{100 * record['top1']:.2f} %, mean probability of the true class {record['mean_true_probability']:.3f} "
        "(the authors' figures show the latter and call it accuracy).",
        "",
        "| criterion | t | p of the others zeroed | first blocks | top-1 % | mean probability |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for r in record["rows"]:
        lines.append(
            f"| {r['criterion']} | {r['t']} | {100 * r['p']:.0f} % | {r['depth']} | {100 * r['top1']:.2f} "
            f"| {r['mean_true_probability']:.3f} |"
        )
    return "\n".join([*lines, ""])
