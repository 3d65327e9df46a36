"""Plan → slim model: a copy in which the dropped hidden units no longer exist."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from vitprune.model import kinds
from vitprune.model.inside import hooks
from vitprune.model.sites import base
from vitprune.model.sites.ffn import FfnSite
from vitprune.pruning.plan import Plan


def slim(model: nn.Module, plan: Plan) -> nn.Module:
    """A pruned copy of `model` in eval mode; the model itself is left as it was.

    The copy computes what the model computes with the masked hidden units gone at every token: set to zero, and left out
    of a norm that stands between the hidden units and fc2.
    """
    sites = kinds.named(model, list(plan.keep))
    for name, keep in plan.keep.items():
        if keep.numel() != sites[name].size:
            raise ValueError(f"{name}: the plan has {keep.numel()} units, the model {sites[name].size}")
    result = copy.deepcopy(model).eval()
    for name, keep in plan.keep.items():
        if not bool(keep.all()):
            base.keep_units(result, sites[name], keep.nonzero().flatten())
    for cut in plan.attention.values():
        cut.write(result)
    for parameter in result.parameters():
        parameter.requires_grad_(False)
        parameter.grad = None
    check_widths(result, plan.widths)
    return result


def check_widths(model: nn.Module, widths: dict[str, int]) -> None:
    """Every site named has the size asked for, in its weights and in its metadata."""
    for name, site in kinds.named(model, list(widths)).items():
        base.check_size(model, site, widths[name])


@torch.no_grad()
def masked_vs_sliced(model: nn.Module, plan: Plan, images: Tensor, made: nn.Module | None = None) -> float:
    """Largest |logit difference| between the model with the units zeroed and its slim copy, as a share of the largest
    |logit|. Hidden units are zeroed where fc2 reads them, other units in the weights; attention keeps its size and loses what
    is projected away. `made` is the slim copy where it is there already, not repaired yet."""
    sites = list(kinds.named(model, list(plan.keep)).values())
    ffns = [site for site in sites if isinstance(site, FfnSite)]
    zeroed = copy.deepcopy(model)
    for site in sites:
        if not isinstance(site, FfnSite):
            base.zero_units(zeroed, site, (~plan.keep[site.name]).nonzero().flatten())
    for cut in plan.attention.values():
        cut.mask(zeroed)
    with hooks.masked(zeroed, ffns, [plan.keep[site.name].to(images.device) for site in ffns]):
        expected = zeroed(images)
    made = slim(model, plan) if made is None else made
    return float((made(images) - expected).abs().max() / expected.abs().max())
