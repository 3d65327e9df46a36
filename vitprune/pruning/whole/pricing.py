"""What a model's sites cost at every size, in the word that its budget is given in."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from torch import nn

from vitprune.model import families, size
from vitprune.model.sites.attention import AttentionSite
from vitprune.model.sites.ffn import FfnSite
from vitprune.model.tokens import stream_width, tokens_per_site


class Pricing(Protocol):
    """Prices of one model. `name`: the budget's word; `total`: what the dense model costs."""

    name: str
    total: float

    def attention(self, site: AttentionSite, heads: int, dim: int, queries: int | None = None) -> float:
        """What the attention costs with `heads` of `dim` dimensions, `queries` of queries and keys."""
        ...

    def ffn(self, site: FfnSite, sizes: np.ndarray) -> np.ndarray:
        """What the FFN costs at each number of hidden units [n]."""
        ...


class Macs:
    """Multiply-adds of an image."""

    name = "macs"

    def __init__(self, model: nn.Module) -> None:
        ffns = families.ffn_sites(model)
        self.model, self.total = model, float(size.macs(model))
        self.width = stream_width(model, ffns[0])
        self.tokens = {site.name: count for site, count in zip(ffns, tokens_per_site(model, ffns), strict=True)}
        self.every = self.tokens[ffns[0].name]

    def attention(self, site: AttentionSite, heads: int, dim: int, queries: int | None = None) -> float:
        """Those of its layers and of its two products."""
        return float(site.macs(self.width, self.every, self.every, heads, dim, queries))

    def ffn(self, site: FfnSite, sizes: np.ndarray) -> np.ndarray:
        """Those of its layers at all tokens that it sees."""
        return np.array([site.cost(self.model, int(k)).macs * self.tokens[site.name] for k in sizes], float)


class Parameters:
    """Parameters."""

    name = "params"

    def __init__(self, model: nn.Module) -> None:
        self.model, self.total = model, float(size.parameters(model))

    def attention(self, site: AttentionSite, heads: int, dim: int, queries: int | None = None) -> float:
        """Those of its layers."""
        return float(site.parameters(self.model, heads, dim, queries))

    def ffn(self, site: FfnSite, sizes: np.ndarray) -> np.ndarray:
        """Those of its layers."""
        return np.array([site.cost(self.model, int(k)).parameters for k in sizes], float)


PRICINGS: dict[str, type[Macs] | type[Parameters]] = {"macs": Macs, "params": Parameters}
