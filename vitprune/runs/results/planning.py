"""What a recipe would keep, told before anything is repaired, examined or written.

The curves are those of the run's own discover stage and stay there: `run` afterwards finds them done. No image of the
test split is looked at beyond what every split does, which reads all images to find copies.
"""

from __future__ import annotations

import contextlib

import torch
from torch import nn

from vitprune.core import memory
from vitprune.core.errors import UserError
from vitprune.core.progress import Reporter
from vitprune.core.reading import Json
from vitprune.criteria.curves import Curve
from vitprune.model import classifier, size
from vitprune.model.inside import first_token
from vitprune.model.sites.attention import AttentionSite, attention_sites
from vitprune.pruning import surgery
from vitprune.pruning.plan import Plan
from vitprune.recipe.exports import of_file
from vitprune.recipe.recipe import Recipe
from vitprune.runs import pipeline
from vitprune.runs.costs import estimate
from vitprune.runs.engine import worker
from vitprune.runs.engine.opening import Workers
from vitprune.runs.record import frontier
from vitprune.runs.results import attention
from vitprune.runs.stages.prune import main_mask
from vitprune.runs.stages.score import model_of, scores_of
from vitprune.runs.state.run import Run

NATS = "nats per image"


def outlook(
    recipe: Recipe,
    *,
    device: str = "auto",
    force: bool = False,
    reporter: Reporter | None = None,
    workers: Workers = 1,
    curves: bool = True,
) -> Json:
    """What a run would cost, what would be kept of every model that the recipe makes, and what that would lose; the content
    of `plan --json`. Without `curves` the cost alone, and nothing is written; so it is where only a repair can say what is
    kept, which `no_plans` then says.

    Raises UserError for everything the user can mend.
    """
    worker.one_process()
    reporter = reporter or Reporter(quiet=True)
    why = _why_not(recipe)
    if why is not None or not curves:
        run = Run.join(recipe, device, reporter, workers)
        with memory.refused("plan", run.device), contextlib.closing(run):
            return _made(run, force) | {"plans": [], "no_plans": why, "notes": run.notes, "stages": []}
    with Run.open(recipe, device, reporter, workers) as run, memory.refused("plan", run.device):
        made = _made(run, force)
        _, done = pipeline.advance(run, "discover", force)
        every = [(one, *item) for one in frontier.runs(run) for item in one.classes.sets().items()]
        plans = [_told(one, made["dense"], group, targets) for one, group, targets in every]
        made["criterion"] = run.recipe.criterion.name  # what `auto` has become
        return made | {"plans": plans, "no_plans": None, "notes": run.notes, "stages": done}


def _why_not(recipe: Recipe) -> str | None:
    """Why nothing can be said of what is kept before a repair."""
    if recipe.rounds > 1:
        return "`rounds` scores the model again after every repair; `vitprune prune` says what is kept"
    if recipe.whole is not None and recipe.whole.of == "loss_points":
        return "`loss_points` are sought by repairing models; `vitprune prune` says what is kept"
    return None


def _made(run: Run, force: bool) -> Json:
    """What is known before any work: the dense model's figures and what the run will cost."""
    run.preflight()
    made: Json = {"name": run.recipe.name, "folder": str(run.folder.root), "criterion": run.recipe.criterion.name}
    cost = estimate.of_run(run, "run", force)
    return made | {"dense": _figures(run.loaded.model), "cost": cost.as_json()}


def _told(run: Run, dense: Json, group: str | None, targets: list[int]) -> Json:
    """One model: its figures and what every block of it keeps."""
    recipe = run.recipe
    plan = main_mask(run, group, targets)
    slim = surgery.slim(model_of(run, recipe.criterion.name, group), plan)
    if not run.classes.keeps_head(targets):
        classifier.narrow(slim, targets)
    figures, blocks = _figures(slim), _blocks(run, plan, group)
    nats = [block["nats"] for block in blocks]
    return {
        "group": group,
        "classes": [run.classes.name(i) for i in targets],
        "keep": recipe.keep,
        "budget": recipe.whole.spelled if recipe.whole else None,
        "kept": plan.kept,
        "nats": None if None in nats else sum(nats),
        **figures,
        **{f"{name}_ratio": figures[name] / dense[name] for name in ("params", "macs", "bytes")},
        "macs_ratio": (_of_file(slim) if of_file(recipe.whole, recipe.export) else figures["macs"]) / dense["macs"],
        "macs_ratio_checkpoint": figures["macs"] / dense["macs"],
        "blocks": blocks,
    }


def _of_file(model: nn.Module) -> int:
    """Multiply-adds of an image in the model's ONNX file."""
    return size.macs(model, shortcut=first_token.why_not(model) is None)


def _figures(model: nn.Module) -> Json:
    return {"params": size.parameters(model), "macs": size.macs(model), "bytes": size.file_bytes(model)}


def _blocks(run: Run, plan: Plan, group: str | None) -> list[Json]:
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
