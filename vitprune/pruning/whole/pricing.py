"""What a model's sites cost at every size, in the word that its budget is given in."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from torch import nn

from vitprune.model import families, size
from vitprune.model.inside import first_token
from vitprune.model.sites.attention import AttentionSite
from vitprune.model.sites.ffn import FfnSite
from vitprune.model.tokens import stream_width, tokens_per_site


class Pricing(Protocol):
    """Prices of one model. `name`: the budget's word; `total`: what the dense model costs by them."""

    name: str
    total: float

    def room(self, amount: float) -> float:
        """What a budget's `amount` buys: a price."""
        ...

    def amount(self, price: float) -> float:
        """The `amount` of a budget that buys this price."""
        ...

    def attention(self, site: AttentionSite, heads: int, dim: int, queries: int | None = None) -> float:
        """What the attention costs with `heads` of `dim` dimensions, `queries` of queries and keys."""
        ...

    def ffn(self, site: FfnSite, sizes: np.ndarray) -> np.ndarray:
        """What the FFN costs at each number of hidden units [n]."""
        ...


class Share:
    """Prices of which a budget is a share: of what the dense model costs."""

    total: float

    def room(self, amount: float) -> float:
        """That share of the dense model's."""
        return amount * self.total

    def amount(self, price: float) -> float:
        """The price over the dense model's."""
        return price / self.total


class Macs(Share):
    """Multiply-adds of an image. `shortcut`: of a file whose last block is there for the class token alone, where the model
    allows it; what a budget is a share of is the dense model without."""

    name = "macs"

    def __init__(self, model: nn.Module, shortcut: bool = False) -> None:
        ffns = families.ffn_sites(model)
        self.shortcut = shortcut and first_token.why_not(model) is None
        self.model, self.dense, self.last = model, float(size.macs(model)), ffns[-1]
        self.total = float(size.macs(model, self.shortcut))
        self.width = stream_width(model, ffns[0])
        self.tokens = {site.name: count for site, count in zip(ffns, tokens_per_site(model, ffns), strict=True)}
        self.every = self.tokens[ffns[0].name]
        if self.shortcut:
            self.tokens[self.last.name] = 1

    def room(self, amount: float) -> float:
        """That share of the dense model's, all of whose blocks are there for every token."""
        return amount * self.dense

    def amount(self, price: float) -> float:
        """The price over the dense model's."""
        return price / self.dense

    def attention(self, site: AttentionSite, heads: int, dim: int, queries: int | None = None) -> float:
        """Those of its layers and of its two products."""
        read = 1 if self.shortcut and site.block == self.last.block else self.every
        return float(site.macs(self.width, self.every, read, heads, dim, queries))

    def ffn(self, site: FfnSite, sizes: np.ndarray) -> np.ndarray:
        """Those of its layers at all tokens that it sees."""
        return sizes.astype(float) * site.cost(self.model, 1).macs * self.tokens[site.name]


class Parameters(Share):
    """Parameters."""

    name = "params"

    def __init__(self, model: nn.Module) -> None:
        self.model, self.total = model, float(size.parameters(model))

    def attention(self, site: AttentionSite, heads: int, dim: int, queries: int | None = None) -> float:
        """Those of its layers."""
        return float(site.parameters(self.model, heads, dim, queries))

    def ffn(self, site: FfnSite, sizes: np.ndarray) -> np.ndarray:
        """Those of its layers."""
        return sizes.astype(float) * site.cost(self.model, 1).parameters
