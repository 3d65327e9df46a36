"""Learned gates with L1 pressure: ViT-Slim (Chavan et al., CVPR 2022), its FFN part, as the paper's baseline.

A gate ζ per hidden unit, 1 at the start, multiplies the unit after its activation; loss = cross-entropy + w·Σ|ζ|, AdamW.
The weights train along unless frozen, on a copy: the masks that come of ζ are applied to the model as it was. ζ is
signed and is the score; one threshold across all blocks (`allocation: global`) is the method's own way to cut.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitprune import hooks
from vitprune.criteria.weights import Batches
from vitprune.types import Attribution, FfnSite


def vit_slim(model: nn.Module, sites: Sequence[FfnSite], batches: Batches, *, how: Attribution) -> list[Tensor]:
    """The gates after `how.epochs` passes over the images, per block [1, N]."""
    trained = copy.deepcopy(model).train().requires_grad_(how.train_weights)
    like = next(trained.parameters())
    gates = [torch.ones(site.width, device=like.device, dtype=like.dtype, requires_grad=True) for site in sites]
    groups = [{"params": gates, "weight_decay": 0.0}]
    if how.train_weights:
        groups.append({"params": list(trained.parameters()), "weight_decay": 0.05})
    optimiser = torch.optim.AdamW(groups, lr=how.rate)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(how.seed)
        if not how.train_weights:
            trained.eval()
        for _ in range(how.epochs):
            for images, labels in batches():
                with hooks.hidden_units(trained, sites, lambda i, hidden: hidden * gates[i]):
                    loss = F.cross_entropy(trained(images), labels)
                loss = loss + how.pressure * sum(gate.abs().sum() for gate in gates)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
    return [gate.detach()[None].float() for gate in gates]
