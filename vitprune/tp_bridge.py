"""torch-pruning's dependency graph; the only file that imports it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Literal

import torch
import torch_pruning as tp
from torch import nn

from vitprune import models
from vitprune.errors import UserError
from vitprune.types import FfnSite


def _graph(model: nn.Module, example: torch.Tensor) -> tp.DependencyGraph:
    """The dependency graph; traced through autograd, so every weight must ask for a gradient meanwhile."""
    flags = [(p, p.requires_grad) for p in model.parameters()]
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(True)
        with torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns of position embeddings, which no removal here can reach
            return tp.DependencyGraph().build_dependency(model, example_inputs=example)
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def importances(
    model: nn.Module,
    sites: Sequence[FfnSite],
    kind: Literal["magnitude", "taylor", "hessian"],
    grads: dict[nn.Parameter, torch.Tensor] | None = None,
    p: int = 2,
) -> list[torch.Tensor]:
    """torch-pruning's group importance of every hidden unit, per block [n]; `grads` stand in for `.grad` meanwhile."""
    how = {
        "magnitude": lambda: tp.importance.GroupMagnitudeImportance(p=p, normalizer=None),
        "taylor": lambda: tp.importance.GroupTaylorImportance(normalizer=None),
        "hessian": lambda: tp.importance.GroupHessianImportance(normalizer=None),
    }[kind]()
    example = next(model.parameters()).new_zeros(1, *models.input_shape(model))
    graph = _graph(model, example)
    kept = {w: w.grad for w in grads or {}}
    scores = []
    try:
        for w, grad in (grads or {}).items():
            w.grad = grad
        for site in sites:
            fc1 = model.get_submodule(site.fc1)
            group = graph.get_pruning_group(fc1, tp.prune_linear_out_channels, idxs=list(range(site.width)))
            scores.append(how(group).detach().float())
    finally:
        for w, before in kept.items():
            w.grad = before
    return scores


def remove(model: nn.Module, sites: Sequence[FfnSite], drop: Sequence[Sequence[int]], example: torch.Tensor) -> None:
    """Remove hidden units `drop[i]` of `sites[i]` from the model itself: rows of fc1 and columns of fc2.

    `example` is one input batch for the trace. Raises UserError when removal would reach any other layer.
    """
    graph = _graph(model, example)
    for site, units in zip(sites, drop, strict=True):
        if not units:
            continue
        fc1, fc2 = model.get_submodule(site.fc1), model.get_submodule(site.fc2)
        group = graph.get_pruning_group(fc1, tp.prune_linear_out_channels, idxs=sorted(units))
        touched = {id(dep.target.module) for dep, _ in group if list(dep.target.module.parameters(recurse=False))}
        if touched - {id(fc1), id(fc2)} or not graph.check_pruning_group(group):
            raise UserError(f"{site.fc1}: its hidden units are tied to other layers; this model cannot be pruned here")
        group.prune()
