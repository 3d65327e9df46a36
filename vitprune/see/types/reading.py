"""Units' strengths at every token of a batch, the same whatever sign a gated unit was given.

The hidden unit of a gated FFN is act(gate) · up; negating a row of up and a column of down changes nothing that the model
computes. `gate` reads act(gate) where it is positive, `product` the hidden unit's size. An FFN without a gate has its
activation, where it is positive, or its size. Legend: B samples, T tokens, H units.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from vitprune.core.errors import UserError
from vitprune.model.inside import hooks
from vitprune.model.sites.ffn import FfnSite
from vitprune.model.vlm.tokens import Batch, call

Of = Literal["gate", "product"]


@torch.no_grad()
def strength(model: nn.Module, sites: Sequence[FfnSite], batch: Batch, of: Of) -> list[Tensor]:
    """Per site [B, T, H] float32, never negative. Raises UserError naming the block where an activation is no number."""
    found: list[Tensor] = [torch.empty(0)] * len(sites)

    def keep(position: int, x: Tensor) -> None:
        site = sites[position]
        if of == "product":
            found[position] = x.abs().float()
        else:
            found[position] = (model.get_submodule(site.act)(x) if site.gate else x).clamp_min(0).float()

    gated = of == "gate"
    paths = [site.gate if gated and site.gate else site.fc2 for site in sites]
    made = [i for i, site in enumerate(sites) if gated and site.gate]
    read = [i for i in range(len(sites)) if i not in made]
    with (
        hooks.layers(model, [paths[i] for i in made], written=lambda p, x: keep(made[p], x)),
        hooks.layers(model, [paths[i] for i in read], read=lambda p, x: keep(read[p], x)),
    ):
        call(model, batch)
    for site, values in zip(sites, found, strict=True):
        if not bool(values.isfinite().all()):
            raise UserError(f"{site.name}: activations are not numbers; check the model's weights and the images")
    return found
