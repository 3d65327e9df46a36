"""Joint attribution score of neuron paths, TopK form: Wang et al., ICLR 2025, Definition 1, Eq. 3, Algorithm 3.

Per image, block by block: with the path so far assigned α·w̄ and all candidates of the present block assigned α·w̄
together (parallel candidates), the score of candidate j is

    ( Σ_path w̄  +  w̄_j ) · (1/m) Σ_k ( Σ_path ∂p/∂w  +  ∂p/∂w_j ),     α_k = k/m, k = 1 … m  (right Riemann sum)

on the class token; the t best join the path. w̄ is a unit's clean value, p the softmax probability of the label.

The engine never goes back through the prefix: Σ_path ∂p/∂w is the derivative of p in one direction, so the stream
after a block's attention is carried together with its forward-mode tangent in that direction, and each block needs one
forward and one backward from its FFN to the head, one inner product, and one block of forward-mode extension.
`jas_plain.py` is the same by hooks and full passes; the tests hold the two against each other.

Legend: B images, M nodes, R = M·B rows (node-major), T tokens, D width, N hidden units, t units kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from vitprune import models
from vitprune.criteria.jas_plain import jas_plain
from vitprune.models import Halves
from vitprune.types import FfnSite


def jas(
    model: nn.Module, sites: Sequence[FfnSite], images: Tensor, labels: Tensor, *, ts: Sequence[int], nodes: int
) -> dict[int, list[Tensor]]:
    """Candidate scores along the greedy path of each t in `ts`, per block [B, N]; the path is the t largest of each row.

    `images` [B, C, H, W] on the model's device, `labels` [B] output indices; the model is in eval mode. The paths of
    different t share their first block. Raises UserError when the head does not read a class token.
    """
    models.require_class_token(model, "jas")
    parts = models.halves(model)
    if parts is None:
        return {t: jas_plain(model, sites, images, labels, t=t, nodes=nodes) for t in ts}
    start = _start(parts, len(sites), images, labels, nodes)
    return {t: _follow(start, t) for t in ts}


@dataclass(frozen=True, slots=True)
class _Start:
    """What every t shares: the clean pass, and the first block's candidate scores."""

    parts: Halves
    depth: int
    nodes: int
    labels_R: Tensor
    alpha_R1: Tensor
    first_RTD: Tensor
    clean_BN: list[Tensor]
    scores_BN: Tensor

    def assigned(self, i: int) -> Tensor:
        """α·w̄ of block i, [R, N]."""
        return self.alpha_R1 * self.clean_BN[i].repeat(self.nodes, 1)

    def mean(self, value_R: Tensor) -> Tensor:
        """Mean over the nodes: [R, …] → [B, …]."""
        return value_R.view(self.nodes, -1, *value_R.shape[1:]).mean(0)


def _start(parts: Halves, depth: int, images: Tensor, labels: Tensor, nodes: int) -> _Start:
    first_BTD, clean_BN = _clean_pass(parts, depth, images)
    alpha_R1 = (torch.arange(1, nodes + 1).to(first_BTD) / nodes).repeat_interleave(len(images))[:, None]
    first_RTD, labels_R = first_BTD.repeat(nodes, 1, 1), labels.repeat(nodes)
    start = _Start(parts, depth, nodes, labels_R, alpha_R1, first_RTD, clean_BN, clean_BN[0])
    _, grad_RN = _gradients(parts, depth, 0, first_RTD, start.assigned(0), labels_R)
    return replace(start, scores_BN=clean_BN[0] * start.mean(grad_RN))


def _follow(start: _Start, t: int) -> list[Tensor]:
    """The greedy path with t units per block, from the first block's scores on."""
    clean_BN, scores = start.clean_BN, [start.scores_BN]
    z_RTD, tangent_RTD = start.first_RTD, torch.zeros_like(start.first_RTD)
    path_value_B = clean_BN[0].new_zeros(len(clean_BN[0]))
    for i in range(1, start.depth):
        chosen_Bt = scores[-1].topk(t, 1).indices
        path_value_B = path_value_B + clean_BN[i - 1].gather(1, chosen_Bt).sum(1)
        on_path_BN = torch.zeros_like(clean_BN[i - 1], dtype=torch.bool).scatter_(1, chosen_Bt, True)
        on_path_RN = on_path_BN.repeat(start.nodes, 1)
        z_RTD, tangent_RTD = _extend(start.parts, i - 1, z_RTD, tangent_RTD, start.assigned(i - 1), on_path_RN)
        grad_z, grad_RN = _gradients(start.parts, start.depth, i, z_RTD, start.assigned(i), start.labels_R)
        path_grad_B = start.mean((grad_z * tangent_RTD[:, : grad_z.shape[1]]).sum((1, 2)))
        scores.append((path_value_B[:, None] + clean_BN[i]) * (path_grad_B[:, None] + start.mean(grad_RN)))
    return scores


@torch.no_grad()
def _clean_pass(parts: Halves, depth: int, images: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The stream after the first block's attention [B, T, D] and every block's clean class-token units [B, N]."""
    x = parts.stream_into_blocks(images)
    first, clean = x, []
    for i in range(depth):
        z = parts.attend(i, x)
        hidden = parts.hidden(i, z)
        first = z if i == 0 else first
        clean.append(hidden[:, 0])
        x = parts.add_ffn(i, z, hidden)
    return first, clean


def _gradients(
    parts: Halves, depth: int, i: int, z_RTD: Tensor, assigned_RN: Tensor, labels_R: Tensor
) -> tuple[Tensor, Tensor]:
    """∂p/∂(stream after block i's attention) and ∂p/∂(class-token hidden units of block i, all assigned).

    The class token is all the head reads, so in the last block only its row goes through the FFN.
    """
    z = z_RTD[:, :1] if i + 1 == depth else z_RTD
    z = z.detach().requires_grad_()
    assigned = assigned_RN.detach().requires_grad_()
    with torch.enable_grad():
        x = _assigned_ffn(parts, i, z, assigned)
        for later in range(i + 1, depth):
            after = parts.attend(later, x)
            after = after[:, :1] if later + 1 == depth else after
            x = parts.add_ffn(later, after, parts.hidden(later, after))
        p = parts.logits(x).softmax(-1).gather(1, labels_R[:, None])
        grad_z, grad_hidden = torch.autograd.grad(p.sum(), (z, assigned))
    return grad_z, grad_hidden


def _assigned_ffn(parts: Halves, i: int, z_RTD: Tensor, class_token_RN: Tensor) -> Tensor:
    """The stream after block i when the class token's hidden units are `class_token_RN`; joined in the narrow stream."""
    first = parts.add_ffn(i, z_RTD[:, :1], class_token_RN[:, None])
    rest = z_RTD[:, 1:]
    return torch.cat([first, parts.add_ffn(i, rest, parts.hidden(i, rest))], 1) if rest.shape[1] else first


@torch.no_grad()
def _extend(
    parts: Halves, i: int, z_RTD: Tensor, tangent_RTD: Tensor, assigned_RN: Tensor, on_path_RN: Tensor
) -> tuple[Tensor, Tensor]:
    """The stream after the next block's attention and its tangent when every path unit grows at unit speed."""

    def forward(z: Tensor, assigned: Tensor) -> Tensor:
        own = parts.hidden(i, z[:, :1])[:, 0]
        return parts.attend(i + 1, _assigned_ffn(parts, i, z, torch.where(on_path_RN, assigned, own)))

    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no forward-mode derivative
        pair = torch.func.jvp(forward, (z_RTD, assigned_RN), (tangent_RTD, torch.ones_like(assigned_RN)))
    return pair[0], pair[1]
