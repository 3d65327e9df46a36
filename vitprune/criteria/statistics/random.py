"""A seeded draw: the floor every criterion has to beat."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vitprune.criteria.scores import Scores
from vitprune.model.sites.base import Site


def random(sites: Sequence[Site], *, seed: int) -> Scores:
    """Uniform scores [1, N], the same for the same seed on every machine."""
    generator = torch.Generator().manual_seed(seed)
    return Scores("random", {site.name: torch.rand(1, site.size, generator=generator) for site in sites})
