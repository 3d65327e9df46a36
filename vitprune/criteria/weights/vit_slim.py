"""Learned gates with L1 pressure: ViT-Slim (Chavan et al., CVPR 2022), its FFN part, as the paper's baseline.

A gate ζ per hidden unit, 1 at the start, multiplies the unit after its activation; loss = cross-entropy + w·Σ|ζ|, AdamW.
The weights train along unless frozen, on a copy. The method's own way to cut is one threshold across all blocks,
sorted(ζ)[int((1 − b)·len)] for a budget b, and the units with signed ζ at or above it stay; the mask is binary, ζ is not
folded into the weights. Trained weights are the method's own: what is pruned is then the trained copy.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitprune.criteria.signatures import Batches
from vitprune.criteria.weights.settings import Slim
from vitprune.model.inside import hooks, pieces
from vitprune.model.sites.ffn import FfnSite


def train(model: nn.Module, sites: Sequence[FfnSite], batches: Batches, *, how: Slim) -> tuple[list[Tensor], nn.Module]:
    """The gates after `how.epochs` passes over the images, per block [1, N], and the copy they were trained on.

    The copy has no gates: with `how.train_weights` its weights are those trained, else the model's own.
    """
    trained = copy.deepcopy(model).train(how.train_weights).requires_grad_(how.train_weights)
    like = next(trained.parameters())
    part = pieces.size(pieces.footprint(model, sites), like.device)  # what one backward pass may take
    gates = [torch.ones(site.size, device=like.device, dtype=like.dtype, requires_grad=True) for site in sites]
    groups = [{"params": gates, "weight_decay": 0.0}]
    if how.train_weights:
        groups.append({"params": list(trained.parameters()), "weight_decay": 0.05})
    optimiser = torch.optim.AdamW(groups, lr=how.rate)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(how.seed)
        for _ in range(how.epochs):
            for images, labels in batches():
                optimiser.zero_grad()
                for k, (x, y) in enumerate(zip(images.split(part), labels.split(part), strict=True)):
                    with hooks.hidden_units(trained, sites, lambda i, hidden: hidden * gates[i]):
                        loss = F.cross_entropy(trained(x), y) * (len(x) / len(images))
                    if not k:  # once a step
                        loss = loss + how.pressure * sum(gate.abs().sum() for gate in gates)
                    loss.backward()
                optimiser.step()
    optimiser.zero_grad()
    return [gate.detach()[None].float() for gate in gates], trained.eval().requires_grad_(False)


def vit_slim(model: nn.Module, sites: Sequence[FfnSite], batches: Batches, *, how: Slim) -> list[Tensor]:
    """The gates alone, per block [1, N]: signed, and the score."""
    return train(model, sites, batches, how=how)[0]
