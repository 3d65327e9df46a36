"""How many images are taken at once: the model and the kind of device say it, so that the parts are fixed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn

from vitprune.model.inside import pieces
from vitprune.model.sites.ffn import FfnSite

REPAIR_IMAGES = 64  # of one part of a repair, at most


@dataclass
class Batching:
    """The sizes of a run's parts; `sharing` processes share the memory."""

    model: nn.Module
    sites: Sequence[FfnSite]
    device: torch.device
    sharing: int = 1

    def images_per_batch(self, nodes: int) -> int:
        """Images of one part, each at so many nodes: the model and the kind of device say it, not the free memory."""
        return pieces.size(self._footprint, self.device, nodes)

    def room(self, nodes: int) -> int:
        """Images of a part that the memory which is free now has room for; the others come after them, in pieces."""
        here = self.sharing if self.device.type == "cpu" else 1
        return pieces.room(self._footprint, self.device, nodes, pieces.SHARE / here)

    @cached_property
    def _footprint(self) -> int:
        return pieces.footprint(self.model, self.sites)

    @property
    def batch(self) -> int:
        """Images per forward pass."""
        return max(1, self.images_per_batch(1) // 2 * 2)

    @cached_property
    def repair_batch(self) -> int:
        """Images of one part of a repair, which keeps no gradient."""
        footprint = pieces.footprint(self.model, self.sites, gradient=False)
        return min(REPAIR_IMAGES, pieces.size(footprint, self.device))
