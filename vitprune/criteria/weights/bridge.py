"""torch-pruning's importances, from its dependency graph of one FFN at a time; the only file that imports it.

The graph is of a copy of the FFN alone: its groups are the hidden units whatever the model around it does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch_pruning as tp
from torch import nn

from vitprune.model.sites import ffn
from vitprune.model.sites.ffn import FfnSite


class _Alone(nn.Module):
    """One FFN's hidden units with copies of their weights: value, gate if there is one, fc2; no packing, no norm."""

    def __init__(self, model: nn.Module, site: FfnSite) -> None:
        super().__init__()
        fc1, fc2, n = ffn.linear(model, site.fc1), ffn.linear(model, site.fc2), site.size
        #                    layer, the weight it is a copy of, and which of its rows
        self.copies = [(_rows_of(fc1, slice(part * n, (part + 1) * n)), fc1, slice(part * n, (part + 1) * n))
                       for part in range(site.parts)]  # fmt: skip
        if site.gate is not None:
            gate = ffn.linear(model, site.gate)
            self.copies.append((_rows_of(gate, slice(None)), gate, slice(None)))
        self.copies.append((_rows_of(fc2, slice(None)), fc2, slice(None)))
        self.layers = nn.ModuleList(layer for layer, _, _ in self.copies)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        *into, out = self.layers
        hidden = into[0](x)
        for gate in into[1:]:
            hidden = hidden * gate(x)
        return out(hidden)


def _rows_of(layer: nn.Linear, rows: slice) -> nn.Linear:
    weight = layer.weight.detach()[rows].clone()
    made = nn.Linear(weight.shape[1], weight.shape[0], layer.bias is not None, device="meta")  # draws no numbers
    made.weight = nn.Parameter(weight)
    if layer.bias is not None:
        made.bias = nn.Parameter(layer.bias.detach()[rows].clone())
    return made


def importances(
    model: nn.Module,
    sites: Sequence[FfnSite],
    kind: Literal["magnitude", "taylor", "hessian"],
    grads: dict[nn.Parameter, torch.Tensor] | None = None,
    p: int = 2,
) -> list[torch.Tensor]:
    """torch-pruning's group importance of every hidden unit, per block [n]; `grads` are those of the weights."""
    how = {
        "magnitude": lambda: tp.importance.GroupMagnitudeImportance(p=p, normalizer=None),
        "taylor": lambda: tp.importance.GroupTaylorImportance(normalizer=None),
        "hessian": lambda: tp.importance.GroupHessianImportance(normalizer=None),
    }[kind]()
    scores = []
    for site in sites:
        alone = _Alone(model, site)
        for layer, original, rows in alone.copies if grads else ():
            layer.weight.grad = grads[original.weight][rows].clone()  # type: ignore[index]
        example = next(alone.parameters()).new_zeros(1, ffn.linear(model, site.fc1).in_features)
        with torch.enable_grad():
            graph = tp.DependencyGraph().build_dependency(alone, example_inputs=example)
        group = graph.get_pruning_group(alone.layers[0], tp.prune_linear_out_channels, idxs=list(range(site.size)))
        scores.append(how(group).detach().float())
    return scores
