"""Which units of a vision-language model stay: by cost, at random with the same widths, or by the type of a unit."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from vitprune.core.errors import UserError
from vitprune.criteria.curves import Curve
from vitprune.criteria.scores import Scores
from vitprune.model.sites import base
from vitprune.model.vlm import sites as places
from vitprune.model.vlm.tokens import TYPES
from vitprune.pruning import masks
from vitprune.pruning.plan import Plan


def by_cost(
    curves: Mapping[str, Curve], keep: int | float, allocation: str = "uniform", round_to: int | None = None
) -> Plan:
    """Every site's best `keep` (`uniform`), or the widths of the least summed cost with as many units in all (`budgeted`)."""
    rows = {name: curve.scores[None] for name, curve in curves.items()}
    scores = Scores("fisher-obs", rows, None, 0, curves=dict(curves))
    return masks.build(scores, keep, allocation=allocation, round_to=round_to)


def at_random(plan: Plan, seed: int) -> Plan:
    """The control of a plan: at every site as many units, drawn at random."""
    draw = torch.Generator().manual_seed(seed)
    made = {}
    for name, keep in plan.keep.items():
        made[name] = torch.zeros_like(keep)
        made[name][torch.randperm(len(keep), generator=draw)[: int(keep.sum())]] = True
    return Plan(made)


def by_type(
    curves: Mapping[str, Curve],
    types: Mapping[str, Tensor],
    keep: int | float,
    protect: Sequence[str] = ("multimodal",),
) -> Plan:
    """`modality-types`, experimental: at every site `keep` units, those of protected types first, by cost among equals."""
    shielded = _known(protect)
    made = {}
    for name, curve in curves.items():
        safe = torch.isin(types[name], torch.tensor(shielded, dtype=types[name].dtype))
        made[name] = _best(curve, masks.width(keep, len(safe)), safe)
    return Plan(made)


def by_share(curves: Mapping[str, Curve], types: Mapping[str, Tensor], shares: Mapping[str, float]) -> Plan:
    """`keep_types`: at every site this share of its units of each type (rounded to the nearest; the least costly to lose go
    first), of types that are not named all; one unit stays. The widths follow from the types."""
    _known(list(shares))
    made = {}
    for name, curve in curves.items():
        keep = torch.zeros(len(types[name]), dtype=torch.bool)
        for kind, word in enumerate(TYPES):
            own = types[name] == kind
            count = round(_share(word, shares.get(word, 1.0)) * int(own.sum()))
            keep |= _best(curve, count, own) & own
        made[name] = keep if bool(keep.any()) else _best(curve, 1, keep)
    return Plan(made)


def _known(words: Sequence[str]) -> list[int]:
    for word in words:
        if word not in TYPES:
            raise UserError(f"types: `{word[:40]}` is no type of a unit; there are {', '.join(TYPES)}")
    return [TYPES.index(word) for word in words]


def _share(word: str, share: float) -> float:
    if not 0 <= share <= 1:
        raise UserError(f"keep_types.{word}: {share} is not a share from 0 to 1")
    return share


def _best(curve: Curve, count: int, first: Tensor) -> Tensor:
    """`count` units [N] bool: those of `first` before others, among equals those that are removed last."""
    rank = torch.empty(len(curve.order))
    rank[curve.order] = torch.arange(len(curve.order), dtype=rank.dtype)
    keep = torch.zeros(len(rank), dtype=torch.bool)
    keep[(rank + len(rank) * first).argsort(descending=True)[:count]] = True
    return keep


def cut(model: nn.Module, plan: Plan) -> nn.Module:
    """A copy of the model, in eval mode, in which the units that the plan drops no longer exist. Raises UserError for a site
    that the model does not have."""
    result, known = copy.deepcopy(model).eval(), places.named(model)
    for name, keep in plan.keep.items():
        if name not in known or known[name].size != len(keep):
            raise UserError(f"{name}: this model has no such site of {len(keep)} units")
        if not bool(keep.all()):
            base.keep_units(result, known[name], keep.nonzero().flatten())
    now = places.named(result)
    for name, width in plan.widths.items():
        base.check_size(result, now[name], width)
    return result.requires_grad_(False)
