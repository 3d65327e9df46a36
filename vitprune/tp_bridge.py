"""torch-pruning's dependency graph; the only file that imports it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
import torch_pruning as tp
from torch import nn

from vitprune.errors import UserError
from vitprune.types import FfnSite


def remove(model: nn.Module, sites: Sequence[FfnSite], drop: Sequence[Sequence[int]], example: torch.Tensor) -> None:
    """Remove hidden units `drop[i]` of `sites[i]` from the model itself: rows of fc1 and columns of fc2.

    `example` is one input batch for the trace. Raises UserError when removal would reach any other layer.
    """
    for parameter in model.parameters():
        parameter.requires_grad_(True)  # the graph is traced through autograd
    with torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of position embeddings, which no removal here can reach
        graph = tp.DependencyGraph().build_dependency(model, example_inputs=example)
    for site, units in zip(sites, drop, strict=True):
        if not units:
            continue
        fc1, fc2 = model.get_submodule(site.fc1), model.get_submodule(site.fc2)
        group = graph.get_pruning_group(fc1, tp.prune_linear_out_channels, idxs=sorted(units))
        touched = {id(dep.target.module) for dep, _ in group if list(dep.target.module.parameters(recurse=False))}
        if touched - {id(fc1), id(fc2)} or not graph.check_pruning_group(group):
            raise UserError(f"{site.fc1}: its hidden units are tied to other layers; this model cannot be pruned here")
        group.prune()
