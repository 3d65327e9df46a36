"""Fisher information of a gate per hidden unit: the mean square of ∂ log p(ŷ)/∂g at the dense model, ŷ ~ p.

Joint gates at α = 1, squared per image, the label drawn from the model's own prediction: no label is needed.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from vitprune.criteria.attribution.joint_gates import joint_gates
from vitprune.criteria.attribution.settings import Gates
from vitprune.criteria.settings import Seeded
from vitprune.model.sites.ffn import FfnSite


def fisher(
    model: nn.Module,
    sites: Sequence[FfnSite],
    images: Tensor,
    labels: Tensor,
    *,
    ts: Sequence[int],
    how: Seeded,
) -> dict[int, list[Tensor]]:
    """Scores per block [B, N], the same for every t; the labels given play no part."""
    gate = Gates(objective="log-probability", low=1.0, form="squared", labels="sampled", seed=how.seed)
    return joint_gates(model, sites, images, labels, ts=ts, how=gate)
