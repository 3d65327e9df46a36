"""Influence patterns: Lu et al. 2021, as the paper's baseline (Wang et al., ICLR 2025, App. C.3, Eq. 9, Alg. 2).

Along the input's own path x(α) = α·x, with w^l a class-token unit of block l and w⁰ = α itself,

    I(path) = ∫ ∏_l ∂w^l/∂w^{l−1} dα

greedily, block by block: the score of a candidate is the integral with it as the path's next unit, and the best goes on.
Every factor is one forward-mode derivative: of all units of a block in the direction of the chosen unit before it.
`influence_gradient` is what the authors' code takes instead: the mean over α of ∂p/∂w, block by block, no chain.

Legend: B images, M nodes, R = M·B rows (node-major), T tokens, D width, N hidden units.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from vitprune.core.errors import UserError
from vitprune.criteria.attribution import quadrature
from vitprune.criteria.attribution.objective import objective
from vitprune.criteria.attribution.settings import Chain, Rule
from vitprune.model import tokens
from vitprune.model.inside import blockwise, hooks
from vitprune.model.sites.ffn import FfnSite


def _rows(images: Tensor, how: Chain | Rule) -> tuple[Tensor, Tensor, int]:
    """α·x for every node [R, C, H, W], the weights [M], and M."""
    at, of_node = quadrature.rule(how.quadrature, how.nodes)
    alpha = torch.from_numpy(at).to(images).repeat_interleave(len(images))[:, None, None, None]
    return alpha * images.repeat(len(at), 1, 1, 1), torch.from_numpy(of_node).to(images), len(at)


@torch.no_grad()
def influence_pattern(
    model: nn.Module,
    sites: Sequence[FfnSite],
    images: Tensor,
    labels: Tensor,
    *,
    ts: Sequence[int],
    how: Chain,
) -> dict[int, list[Tensor]]:
    """Scores per block [B, N] along each image's strongest chain, the same for every t; the labels play no part."""
    tokens.require_class_token(model, "influence-pattern")
    parts = blockwise.halves(model)
    if parts is None:
        raise UserError("criterion `influence-pattern`: needs blocks of one FFN after attention; this model has others")
    x, weights, nodes = _rows(images, how)
    chain_R = torch.ones(len(x)).to(images)

    def enter(pixels: Tensor) -> tuple[Tensor, ...]:
        stream = parts.stream_into_blocks(pixels)
        return within(0, stream)

    def within(i: int, stream: Tensor) -> tuple[Tensor, ...]:
        z = parts.attend(i, stream)
        hidden = parts.hidden(i, z)
        return parts.add_ffn(i, z, hidden), hidden[:, 0]

    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no forward-mode derivative
        value, tangent = torch.func.jvp(enter, (x,), (images.repeat(nodes, 1, 1, 1),))[:2]
        scores = []
        for i in range(len(sites)):
            stream, factor_RN = value[0], chain_R[:, None] * tangent[1]
            scores.append(torch.tensordot(weights, factor_RN.unflatten(0, (nodes, -1)), 1))
            if i + 1 == len(sites):
                break
            unit_R = scores[-1].argmax(1).repeat(nodes)
            chain_R = factor_RN.gather(1, unit_R[:, None])[:, 0]
            direction = torch.zeros_like(stream)
            direction[:, 0] = parts.ffn_columns(i)[unit_R]
            value, tangent = torch.func.jvp(lambda s, i=i: within(i + 1, s), (stream,), (direction,))[:2]  # type: ignore[misc]
    return dict.fromkeys(ts, scores)


def influence_gradient(
    model: nn.Module,
    sites: Sequence[FfnSite],
    images: Tensor,
    labels: Tensor,
    *,
    ts: Sequence[int],
    how: Rule,
) -> dict[int, list[Tensor]]:
    """Mean over α of ∂p/∂w at the class token, per block [B, N], the same for every t."""
    tokens.require_class_token(model, "influence-gradient")
    x, weights, nodes = _rows(images, how)
    seen: list[Tensor] = []

    def read(_: int, hidden_RTN: Tensor) -> Tensor:
        seen.append(hidden_RTN if hidden_RTN.requires_grad else hidden_RTN.requires_grad_())
        return seen[-1]

    with torch.enable_grad(), hooks.hidden_units(model, sites, read):
        p = objective(model(x), labels.repeat(nodes), how.objective)
        grads = torch.autograd.grad(p.sum(), seen)
    scores = [torch.tensordot(weights, g[:, 0].unflatten(0, (nodes, -1)), 1) for g in grads]
    return dict.fromkeys(ts, scores)
