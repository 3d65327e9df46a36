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

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from vitprune import models
from vitprune.criteria.jas_plain import jas_plain
from vitprune.errors import UserError
from vitprune.models import Halves
from vitprune.types import FfnSite


def jas(model: nn.Module, sites: Sequence[FfnSite], images: Tensor, labels: Tensor, *, t: int, nodes: int) -> list[Tensor]:
    """Candidate scores along the greedy path, per block [B, N]; the path is the t largest of each row.

    `images` [B, C, H, W] on the model's device, `labels` [B] output indices; the model is in eval mode.
    Raises UserError when the head does not read a class token or t exceeds a width.
    """
    models.require_class_token(model, "jas")
    if t > min(site.width for site in sites):
        raise UserError(f"criterion.t: {t} units per block, but a block has only {min(s.width for s in sites)}")
    parts = models.halves(model)
    if parts is None:
        return jas_plain(model, sites, images, labels, t=t, nodes=nodes)
    return _engine(parts, len(sites), images, labels, t, nodes)


def _engine(parts: Halves, depth: int, images: Tensor, labels: Tensor, t: int, nodes: int) -> list[Tensor]:
    first, clean_BN = _clean_pass(parts, depth, images)
    batch = len(images)
    alpha_R1 = (torch.arange(1, nodes + 1).to(first) / nodes).repeat_interleave(batch)[:, None]
    labels_R = labels.repeat(nodes)
    z_RTD = first.repeat(nodes, 1, 1)
    tangent_RTD = torch.zeros_like(z_RTD)
    path_value_B = first.new_zeros(batch)
    scores: list[Tensor] = []
    for i in range(depth):
        assigned_RN = alpha_R1 * clean_BN[i].repeat(nodes, 1)
        grad_z, grad_hidden = _gradients(parts, depth, i, z_RTD, assigned_RN, labels_R)
        path_grad_B = (grad_z * tangent_RTD[:, : grad_z.shape[1]]).sum((1, 2)).view(nodes, batch).mean(0)
        own_grad_BN = grad_hidden.view(nodes, batch, -1).mean(0)
        scores.append((path_value_B[:, None] + clean_BN[i]) * (path_grad_B[:, None] + own_grad_BN))
        if i + 1 == depth:
            break
        chosen_Bt = scores[-1].topk(t, 1).indices
        path_value_B = path_value_B + clean_BN[i].gather(1, chosen_Bt).sum(1)
        on_path_RN = torch.zeros_like(clean_BN[i], dtype=torch.bool).scatter_(1, chosen_Bt, True).repeat(nodes, 1)
        z_RTD, tangent_RTD = _extend(parts, i, z_RTD, tangent_RTD, assigned_RN, on_path_RN)
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
        hidden = torch.cat([assigned[:, None], parts.hidden(i, z[:, 1:])], 1)
        x = parts.add_ffn(i, z, hidden)
        for later in range(i + 1, depth):
            after = parts.attend(later, x)
            after = after[:, :1] if later + 1 == depth else after
            x = parts.add_ffn(later, after, parts.hidden(later, after))
        p = parts.logits(x).softmax(-1).gather(1, labels_R[:, None])
        grad_z, grad_hidden = torch.autograd.grad(p.sum(), (z, assigned))
    return grad_z, grad_hidden


@torch.no_grad()
def _extend(
    parts: Halves, i: int, z_RTD: Tensor, tangent_RTD: Tensor, assigned_RN: Tensor, on_path_RN: Tensor
) -> tuple[Tensor, Tensor]:
    """The stream after the next block's attention and its tangent when every path unit grows at unit speed."""

    def forward(z: Tensor, assigned: Tensor) -> Tensor:
        hidden = parts.hidden(i, z)
        class_token = torch.where(on_path_RN, assigned, hidden[:, 0])
        return parts.attend(i + 1, parts.add_ffn(i, z, torch.cat([class_token[:, None], hidden[:, 1:]], 1)))

    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no forward-mode derivative
        value, tangent = torch.func.jvp(forward, (z_RTD, assigned_RN), (tangent_RTD, torch.ones_like(assigned_RN)))
    return value, tangent
