"""A seeded draw: the floor every criterion has to beat."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vitprune.criteria.scores import Scores
from vitprune.model.sites.base import FfnSite


def random(sites: Sequence[FfnSite], *, seed: int) -> Scores:
    """Uniform scores, per block [1, N], the same for the same seed on every machine."""
    generator = torch.Generator().manual_seed(seed)
    return Scores("random", [torch.rand(1, site.width, generator=generator) for site in sites])
