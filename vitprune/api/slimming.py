"""The slim copy of a model.

Legend: N images [N, C, H, W] as the model takes them (already normalised), labels [N] output indices.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, get_args

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from vitprune.core.device import device_of
from vitprune.core.errors import UserError
from vitprune.criteria.scores import Scores
from vitprune.criteria.statistics.attention import statistics
from vitprune.criteria.statistics.attention_curve import AttentionCurve, curve
from vitprune.criteria.statistics.ranks import ranks
from vitprune.model import classifier, door, families
from vitprune.model.families import Reads
from vitprune.model.inside import backbone, blockwise
from vitprune.model.sites.attention import AttentionSite, attention_sites
from vitprune.model.sites.ffn import FfnSite, linear
from vitprune.pruning import budget as budgets
from vitprune.pruning import prices
from vitprune.pruning.budget import Budget
from vitprune.pruning.repair.names import Recovery, closed_form
from vitprune.pruning.repair.repair import Repairer, chosen
from vitprune.pruning.slimming import slim
from vitprune.pruning.whole import reach
from vitprune.pruning.whole.allocation import plan as plan_of_whole
from vitprune.pruning.whole.pricing import Pricing
from vitprune.recipe.parts import Whole


def prune(
    model: nn.Module,
    scores: Scores,
    *,
    keep: int | float | str | None = None,
    recovery: Recovery | Literal["auto"] = "auto",
    images: Tensor | Iterable[Tensor] | None = None,
    classes: Sequence[int] | None = None,
    round_to: int | None = None,
    allocation: Literal["uniform", "global", "budgeted", "auto"] = "auto",
    budget: prices.Price | Mapping[str, float] = "flops",
    floor: int = 1,
    ridge: float | None = None,
    features: Reads | None = None,
    batch: int = 64,
) -> nn.Module:
    """A slim copy of `model`: the best units for `classes` (None: all) stay, the others are gone, what is left is repaired.

    `keep` is a ratio (0.25 or "25%") or a count per block ("25 units"), of every block, of all together, or of their
    price, as `allocation` says (`auto`: one threshold where the scores compare across blocks, else uniform).
    `recovery: auto` is layerwise where the blocks allow it, else affine. `images` are what the repair looks at, no
    labels; needed unless recovery is `none`. The model itself is not changed. Raises UserError for a budget out of range.

    In the place of `keep`, `budget={"macs": 0.25}` or `{"params": 0.25}` is what is left of the whole model, and
    `{"size_mb": 8}` the megabytes of its checkpoint at most: attention goes beside the FFNs where the family allows, at the
    least cost; `scores` are then of `fisher-obs`, and `images` are needed. Of a model without a head `features` says which of
    its features count, "tokens" (the default) or "pooled".
    """
    whole_of = _of_whole(keep, budget, scores, allocation)
    kept = _asked(1.0 if keep is None else keep, recovery)
    model = door.bare("prune", model)
    door.check_batch("prune", batch)
    with door.Inside(model), backbone.reading(model, features):
        if families.reads(model) is not None and classes is not None:
            raise UserError("prune: classes: the model has no head, and so no classes; leave them out")
        sites = families.ffn_sites(model)
        repairer, given = Repairer(chosen(recovery, model, whole_of is not None), ridge), list[Tensor]()
        if whole_of is not None or repairer.method != "none":
            wants = f"recovery `{repairer.method}`" if whole_of is None else "a budget of the whole model"
            given = _images_for(wants, model, images, batch)
        if whole_of is not None:
            asked, found = _prices(whole_of, model), _attentions(model)
            reach.require(whole_of.amount, reach.least(model, found, asked, round_to, floor), asked)
            curves = _curves(model, sites, found, given, classes)
            plan = plan_of_whole(model, scores, curves, whole_of.amount, asked, classes or (), round_to, floor)
        else:
            price: prices.Price = budget if isinstance(budget, str) else "flops"
            of_ffns = Budget(kept, allocation, price, round_to, floor)
            plan = of_ffns.plan(scores, sites, prices.of_sites(model, sites, price), classes)
        if repairer.method != "none":
            _tell(model, recovery, repairer.method)
        return slim(plan, repairer, repairer.prepare(model, (lambda: given) if given else None))


def _of_whole(keep: object, budget: object, scores: Scores, allocation: str) -> Whole | None:
    """The budget of the whole model; None where `keep` is the budget. Raises UserError for both, neither, or scores that
    are no costs."""
    if not isinstance(budget, Mapping):
        if keep is None:
            raise UserError("prune: give keep=0.25, or budget={'macs': 0.25} for the whole model")
        return None
    if keep is not None or allocation != "auto":
        raise UserError("prune: a budget of the whole model stands in the place of keep and allocation; leave them out")
    try:
        found = Whole.model_validate(dict(budget))
    except ValidationError as error:
        raise UserError(
            f"prune: budget {dict(budget)!r}: {error.errors()[0]['msg'].removeprefix('Value error, ')}"
        ) from error
    if isinstance(getattr(found, found.of), list):
        raise UserError(f"prune: budget {dict(budget)!r}: one amount of what is left, please, such as {{'macs': 0.25}}")
    if found.of == "loss_points":
        raise UserError(
            "prune: budget loss_points: needs labels to judge by; take a recipe (`vitprune run`), or budget={'macs': 0.25}"
        )
    if scores.curves is None or any(curve.unit != "nats per image" for curve in scores.curves.values()):
        raise UserError(f"prune: a budget of the whole model needs scores of `fisher-obs`, not of `{scores.criterion}`")
    return found


def _prices(whole: Whole, model: nn.Module) -> Pricing:
    """What sizes cost in the budget's word. Raises UserError for one that needs more than a model."""
    found = reach.priced(whole.of, model)
    if found is None:
        raise UserError(
            f"prune: a budget in `{whole.of}` needs a run: give it in a recipe, or macs, params or size_mb here"
        )
    return found


def _attentions(model: nn.Module) -> list[AttentionSite]:
    """The model's attentions; none, with a warning, where its family's cannot be pruned."""
    try:
        return attention_sites(model)
    except UserError as error:
        warnings.warn(f"only FFN units are pruned: {error}", UserWarning, stacklevel=4)
        return []


def _curves(
    model: nn.Module,
    sites: Sequence[FfnSite],
    found: Sequence[AttentionSite],
    images: list[Tensor],
    classes: Sequence[int] | None,
) -> list[AttentionCurve]:
    """What the model's attentions cost."""
    if not found:
        return []
    device = device_of(model)
    outputs = 1 if families.reads(model) else classifier.outputs(model)  # a backbone has none, and none is drawn
    among = torch.arange(outputs) if classes is None else torch.tensor(sorted(set(classes)))
    _, moments = statistics(model, sites, found, lambda: ((x.to(device), among) for x in images), 0)
    measured = ranks(model, found, moments, (x.to(device) for x in images))
    weights = [linear(model, site.proj).weight.detach().double().cpu() for site in found]
    return [curve(*parts) for parts in zip(found, weights, moments, measured, strict=True)]


def _asked(keep: int | float | str, recovery: str) -> int | float:
    """The share or number to keep. Raises UserError for one, or a repair, that there is not."""
    if recovery not in ("auto", *get_args(Recovery)):
        raise UserError(f"recovery `{recovery}`: not known; there are auto, {', '.join(get_args(Recovery))}")
    try:
        return budgets.parse(keep)
    except ValueError as error:
        raise UserError(f"prune: keep {keep!r}: {error}") from error


def _images_for(wants: str, model: nn.Module, images: Tensor | Iterable[Tensor] | None, batch: int) -> list[Tensor]:
    """The batches that are looked at. Raises UserError where there are none."""
    if images is None or (isinstance(images, Tensor) and not len(images)):
        advice = "pass images=… or recovery='none'" if wants.startswith("recovery") else "pass images=…"
        raise UserError(f"prune: {wants} needs images; {advice}")
    given = door.batches_of("prune", model, images, batch)
    if not given:
        raise UserError(f"prune: {wants} needs images, and the batches given are none")
    return given


def _tell(model: nn.Module, asked: str, recovery: str) -> None:
    """A warning where a repair passes by what it would have changed, had the model been as timm makes it."""
    parts, note = blockwise.halves(model), None
    if asked == "auto" and parts is None and isinstance(model, families.PLAIN):
        note = f"recovery auto is {recovery}: {blockwise.why_not(model)}"
    elif parts is not None and parts.changed and closed_form(recovery) == "layerwise":
        first, why = next(iter(parts.changed.items()))
        more = f" and {len(parts.changed) - 1} more" if len(parts.changed) > 1 else ""
        note = f"recovery {recovery} leaves {first}{more} as they are: {why}"
    if note is not None:
        warnings.warn(note, UserWarning, stacklevel=3)
