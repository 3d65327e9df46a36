"""What the curves say that a plan will lose, before anything is repaired or examined."""

from __future__ import annotations

import torch

from vitprune.core.errors import UserError
from vitprune.core.reading import Json
from vitprune.criteria.curves import Curve
from vitprune.model.sites.attention import AttentionSite, attention_sites
from vitprune.pruning.plan import Plan
from vitprune.runs.results import attention
from vitprune.runs.stages.exams import features
from vitprune.runs.stages.score import scores_of
from vitprune.runs.state.run import Run

NATS = "nats per image"


def told(run: Run, plan: Plan, group: str | None) -> Json:
    """What the plan keeps of every block, and what it loses there and in all: `nats` per image; of a backbone `cosine_loss`,
    the expected 1 − cosine of its output, and `fvu`, the fraction of its variance unexplained. None where the criterion does
    not count so.

    A backbone's cost is half the expected squared error of its output: over E‖f‖² it is 1 − cosine, for errors that stand
    across f, and twice over its variance the FVU.
    """
    rows = blocks(run, plan, group)
    costs = [row["nats"] for row in rows]
    total = None if None in costs else sum(costs)
    if run.backbone is None:
        return {"nats": total, "blocks": rows}
    of = features.spread(run)
    for row in rows:
        row["cosine_loss"] = None if row["nats"] is None else row["nats"] / of.energy
        row["gone"] = {kind: cost / of.energy for kind, cost in row["gone"].items()}
        row["nats"] = None
    lost: Json = {"cosine_loss": total / of.energy, "fvu": of.unexplained(2 * total)} if total is not None else {}
    return {"nats": None, "cosine_loss": None, "fvu": None} | lost | {"blocks": rows}


def blocks(run: Run, plan: Plan, group: str | None) -> list[Json]:
    """By block what is kept, and the nats that it costs: None where the criterion does not count in nats.

    `gone`: the nats of a block without its attention or without its FFN, which no plan asks for unless it says so.
    """
    recipe = run.recipe
    found = scores_of(run, recipe.criterion.name, recipe.criterion.seed, group).curves or {}
    counted = recipe.prunes_attention and all(curve.unit == NATS for curve in found.values())
    curves = {c.site.name: c for c in attention.of_file(run, group)} if counted else {}
    rows: dict[int, Json] = {}
    for attn in _attentions(run):
        cut, curve = plan.attention.get(attn.name), curves.get(attn.name)
        heads, dim, *queries = cut.sizes if cut else (attn.heads, attn.dim)
        rows[attn.block] = {
            "heads": heads,
            "dim": dim,
            "dense": {"heads": attn.heads, "dim": attn.dim},
            "nats": curve.cost(heads, dim, *queries) if curve else 0.0,
            "gone": {"attention": curve.cost(0, 0)} if curve else {},
        }
    for site in run.sites:
        row = rows.setdefault(site.block, {"heads": None, "dim": None, "dense": {}, "nats": 0.0, "gone": {}})
        paid, every = _paid(found.get(site.name), plan.keep[site.name])
        row["units"] = row.get("units", 0) + plan.widths[site.name]
        row["dense"]["units"] = row["dense"].get("units", 0) + site.size
        row["nats"] = None if paid is None or row["nats"] is None else row["nats"] + paid
        if every is not None:
            row["gone"]["ffn"] = row["gone"].get("ffn", 0.0) + every
    return [{"block": block, **rows[block]} for block in sorted(rows)]


def _attentions(run: Run) -> list[AttentionSite]:
    try:
        return attention_sites(run.loaded.model)
    except UserError:  # attention of another kind, which stays as it is
        return []


def _paid(curve: Curve | None, keep: torch.Tensor) -> tuple[float | None, float | None]:
    """The nats of removing what is not kept of one FFN, and those of all of it; None where its curve does not say."""
    if curve is None or curve.unit != NATS:
        return None, None
    gone = int((~keep).sum())
    summed = torch.cat([torch.zeros(1, dtype=torch.float64), curve.costs.double().clamp_min(0).cumsum(0)])
    along = not bool(keep[curve.order[:gone]].any())
    return (float(summed[gone]) if along else None), float(summed[-1])
