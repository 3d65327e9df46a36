"""Repairs `mean` and `affine` of slim attention: what its projection should write for what the dense model's attention reads.

With a what the slim heads give for the dense stream, and p what the dense projection writes, p ≈ W a + b: `mean` sets b,
`affine` W too, by ridge regression towards the rotated weights (in the last block over the tokens that the head reads).
Blocks may have any form, for each attention is mended alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vitprune.core.device import device_of, widened
from vitprune.core.least_squares import SecondMoments
from vitprune.model.inside import hooks
from vitprune.model.sites.attention import AttentionSite, NoAttention
from vitprune.model.sites.ffn import linear
from vitprune.model.tokens import tokens_read


@torch.no_grad()
def refit(
    slim: nn.Module, dense: nn.Module, sites: Sequence[AttentionSite], last: int, batches: Iterable[Tensor], how: str,
    ridge: float,
) -> None:  # fmt: skip
    """Rewrite the projections of the attentions `sites` of `slim` in place; `last` is the number of the last block."""
    if not sites:
        return
    read, device, moments = tokens_read(dense), device_of(dense), [SecondMoments() for _ in sites]
    old = [dense.get_submodule(site.path) for site in sites]
    with contextlib.ExitStack() as stack:
        given = [stack.enter_context(hooks.inputs_of(attn)) for attn in old]
        beside = stack.enter_context(hooks.keywords_of(old))
        written = [stack.enter_context(hooks.outputs_of(linear(dense, site.proj))) for site in sites]
        for images in batches:
            dense(images.to(device))
            for i, site in enumerate(sites):
                tokens = read if site.block == last else slice(None)
                heads = _heads(slim.get_submodule(site.path), given[i].pop(), beside[i])
                moments[i].add(heads[:, tokens], written[i].pop()[:, tokens])
    for site, seen in zip(sites, moments, strict=True):
        _solve(slim.get_submodule(site.path), seen, how, ridge)


def _heads(attn: Any, x_BTD: Tensor, beside: dict[str, Any]) -> Tensor:
    """What the slim attention's projection reads [B, T, H'·d']; of none one number, zero."""
    if isinstance(attn, NoAttention):
        return x_BTD.new_zeros(*x_BTD.shape[:2], 1)
    return hooks.input_of(attn.proj, lambda: attn(x_BTD, **beside))


def _solve(attn: Any, moments: SecondMoments, how: str, ridge: float) -> None:
    if isinstance(attn, NoAttention):
        attn.bias.copy_(moments.shift(attn.bias.new_zeros(len(attn.bias), 1)))
        return
    proj = attn.proj
    if proj.bias is None:  # it could not take over a shift of the mean
        return
    weight = widened(proj.weight)
    made = (weight, moments.shift(weight)) if how == "mean" else moments.solve(weight, ridge)
    proj.weight.copy_(made[0])
    proj.bias.copy_(made[1])
