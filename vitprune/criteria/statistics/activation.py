"""Activation as a score: the class token's raw value (the paper's baseline, App. C.2), or the mean magnitude everywhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from vitprune.criteria.settings import Nothing
from vitprune.model import tokens
from vitprune.model.inside import hooks
from vitprune.model.sites.ffn import FfnSite


def activation(
    model: nn.Module,
    sites: Sequence[FfnSite],
    images: Tensor,
    labels: Tensor,
    *,
    ts: Sequence[int],
    how: Nothing,
) -> dict[int, list[Tensor]]:
    """The class token's hidden units per block, [B, N], the same for every t; `labels` and `how` play no part."""
    tokens.require_class_token(model, "activation")
    return dict.fromkeys(ts, _read(model, sites, images, lambda hidden_BTN: hidden_BTN[:, 0]))


def mean_activation(
    model: nn.Module,
    sites: Sequence[FfnSite],
    images: Tensor,
    labels: Tensor,
    *,
    ts: Sequence[int],
    how: Nothing,
) -> dict[int, list[Tensor]]:
    """Mean |hidden unit| over all tokens per block, [B, N], the same for every t; `labels` and `how` play no part."""
    return dict.fromkeys(ts, _read(model, sites, images, lambda hidden_BTN: hidden_BTN.abs().mean(1)))


@torch.no_grad()
def _read(model: nn.Module, sites: Sequence[FfnSite], images: Tensor, of: Callable[[Tensor], Tensor]) -> list[Tensor]:
    seen: list[Tensor] = []
    with hooks.hidden_units(model, sites, lambda _, hidden_BTN: seen.append(of(hidden_BTN))):
        model(images)
    return seen
