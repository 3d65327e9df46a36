"""Repairs `mean` and `affine`: the removed units folded into the kept ones."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from vitprune.core.device import device_of, widened
from vitprune.core.least_squares import Moments, SecondMoments
from vitprune.model import families
from vitprune.model.inside import hooks
from vitprune.model.sites import ffn
from vitprune.model.tokens import tokens_read
from vitprune.pruning.plan import Plan


def _refit_all(
    slim: nn.Module, dense: nn.Module, plan: Plan, stats: Sequence[Moments], recovery: str, ridge: float
) -> None:
    for site, stat in zip(families.ffn_sites(dense), stats, strict=True):
        keep = plan.keep[site.name]
        if bool(keep.all()) or site.norm is not None:
            continue
        fc2, original = slim.get_submodule(site.fc2), dense.get_submodule(site.fc2)
        assert isinstance(fc2, nn.Linear) and isinstance(original, nn.Linear)
        before = original.weight.cpu().double(), ffn.bias_of(original).cpu().double()
        weight, bias = refit(*before, keep, stat, recovery, ridge)
        fc2.weight.copy_(weight)
        fc2.bias.copy_(bias)


def _refit_normed(
    slim: nn.Module, dense: nn.Module, plan: Plan, batches: Iterable[Tensor], recovery: str, ridge: float
) -> None:
    """Where a norm stands in front of fc2, the kept units are not what they were once the others are gone: the same
    regression, of W2·h of the dense model on the kept units h_S as their own norm gives them."""
    sites = families.ffn_sites(dense)
    chosen = [i for i, site in enumerate(sites) if site.norm is not None and not bool(plan.keep[sites[i].name].all())]
    if not chosen:
        return
    read, last, device = tokens_read(dense), sites[-1].block, device_of(dense)
    moments = {i: SecondMoments() for i in chosen}
    with contextlib.ExitStack() as stack:
        products = {i: stack.enter_context(hooks.inputs_of(dense.get_submodule(str(sites[i].norm)))) for i in chosen}
        written = {i: stack.enter_context(hooks.outputs_of(dense.get_submodule(sites[i].fc2))) for i in chosen}
        for images in batches:
            dense(images.to(device))
            for i in chosen:
                tokens = read if sites[i].block == last else slice(None)
                product, target = products[i].pop()[:, tokens], written[i].pop()[:, tokens]
                norm = slim.get_submodule(str(sites[i].norm))
                moments[i].add(norm(product[..., plan.keep[sites[i].name].to(device)]), target)
    for i in chosen:
        fc2 = ffn.linear(slim, sites[i].fc2)
        if recovery == "mean":
            weight, bias = widened(fc2.weight), moments[i].shift(widened(fc2.weight))
        else:
            weight, bias = moments[i].solve(widened(fc2.weight), ridge)
        fc2.weight.copy_(weight)
        fc2.bias.copy_(bias)


def refit(
    weight: Tensor, bias: Tensor, keep: Tensor, stat: Moments, recovery: str, ridge: float
) -> tuple[Tensor, Tensor]:
    """New fc2 weight [D, kept] and bias [D], float64, from the dense ones [D, n] and [D]."""
    kept, gone = keep.nonzero().flatten(), (~keep).nonzero().flatten()
    weight_S, weight_P = weight[:, kept], weight[:, gone]
    if recovery == "none":
        return weight_S, bias
    if recovery == "mean":
        return weight_S, bias + weight_P @ stat.mean[gone]
    C_SS, C_SP = stat.covariance[kept][:, kept], stat.covariance[kept][:, gone]
    strength = ridge * C_SS.diagonal().mean().clamp_min(1e-30)
    B = torch.linalg.solve(C_SS + strength * torch.eye(len(kept), dtype=C_SS.dtype), C_SP).T
    return weight_S + weight_P @ B, bias + weight_P @ (stat.mean[gone] - B @ stat.mean[kept])
