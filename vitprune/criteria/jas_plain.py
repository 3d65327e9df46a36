"""TopK JAS by hooks and full passes: slow, family-independent, and the replica the fast engine is tested against.

The formula is in `jas.py`. For every block: one forward of all images × nodes with the path assigned, one backward.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vitprune import hooks
from vitprune.types import FfnSite


def jas_plain(
    model: nn.Module, sites: Sequence[FfnSite], images: Tensor, labels: Tensor, *, t: int, nodes: int
) -> list[Tensor]:
    """Candidate scores along the greedy path, per block [B, N]; arguments as in `jas`."""
    batch = len(images)
    clean: list[Tensor] = []
    with torch.no_grad(), hooks.hidden_units(model, sites, lambda _, hidden: clean.append(hidden[:, 0])):
        model(images)
    alpha_R1 = (torch.arange(1, nodes + 1).to(clean[0]) / nodes).repeat_interleave(batch)[:, None]
    images_R, labels_R = images.repeat(nodes, 1, 1, 1), labels.repeat(nodes)
    chosen: list[Tensor] = []
    path_value_B = clean[0].new_zeros(batch)
    scores: list[Tensor] = []
    for i in range(len(sites)):
        everything = torch.ones_like(clean[i], dtype=torch.bool)
        assigned_where = [*chosen, everything]
        leaves = [(alpha_R1 * w.repeat(nodes, 1)).requires_grad_() for w in clean[: i + 1]]

        def assign(
            position: int,
            hidden_RTN: Tensor,
            leaves: list[Tensor] = leaves,
            where: list[Tensor] = assigned_where,
        ) -> Tensor | None:
            if position >= len(leaves):
                return None
            first = torch.where(where[position].repeat(nodes, 1), leaves[position], hidden_RTN[:, 0])
            return torch.cat([first[:, None], hidden_RTN[:, 1:]], 1)

        with torch.enable_grad(), hooks.hidden_units(model, sites, assign):
            p = model(images_R).softmax(-1).gather(1, labels_R[:, None])
            grads = [g.view(nodes, batch, -1).mean(0) for g in torch.autograd.grad(p.sum(), leaves)]
        path_grad_B = sum((g.sum(1) for g in grads[:-1]), torch.zeros_like(path_value_B))
        scores.append((path_value_B[:, None] + clean[i]) * (path_grad_B[:, None] + grads[-1]))
        best = scores[-1].topk(t, 1).indices
        path_value_B = path_value_B + clean[i].gather(1, best).sum(1)
        chosen.append(torch.zeros_like(everything).scatter_(1, best, True))
    return scores
