"""Largest raw activation on the class token: the paper's baseline (App. C.2), scored per image and block."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vitprune import hooks, models
from vitprune.types import Attribution, FfnSite


@torch.no_grad()
def activation(
    model: nn.Module,
    sites: Sequence[FfnSite],
    images: Tensor,
    labels: Tensor,
    *,
    ts: Sequence[int],
    how: Attribution,
) -> dict[int, list[Tensor]]:
    """The class token's hidden units per block, [B, N], the same for every t; `labels` and `how` play no part."""
    models.require_class_token(model, "activation")
    seen: list[Tensor] = []
    with hooks.hidden_units(model, sites, lambda _, hidden_BTN: seen.append(hidden_BTN[:, 0])):
        model(images)
    return dict.fromkeys(ts, seen)
