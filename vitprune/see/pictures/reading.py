"""Units read off a pass that goes no further than it must: before or after the activation, at which tokens.

Legend: B images, T tokens of a site, k units, H hidden units of a site.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from vitprune.core.errors import UserError
from vitprune.model import families
from vitprune.model.inside import hooks
from vitprune.model.sites.ffn import FfnSite

Side = Literal["pre", "post"]  # what goes into the activation (of a gated FFN: of its gate), or what fc2 reads
Tokens = Literal["auto", "cls", "patches", "all"]


def gated(site: FfnSite) -> bool:
    """Whether a hidden unit is a product with a gate; its sign is then nobody's choice."""
    return site.gate is not None or site.parts == 2


def hidden(model: nn.Module, sites: Sequence[FfnSite], images: Tensor, side: Side = "post") -> list[Tensor]:
    """All hidden units of the sites, [B, T, H] each; `sites` in the order of the pass, which ends at the last of them."""
    found: dict[int, Tensor] = {}
    paths = [site.fc2 if side == "post" else site.act for site in sites]

    def keep(position: int, x: Tensor) -> None:
        found[position] = x.clone()  # an activation may work in place

    with hooks.layers(model, paths[:-1], read=keep):
        last = hooks.input_of(model.get_submodule(paths[-1]), lambda: model(images))
    made = [found[i] for i in range(len(paths) - 1)] + [last]
    return [x.flatten(1, -2) if x.ndim > 2 else x[:, None] for x in made]


def finite(site: FfnSite, found: Tensor) -> Tensor:
    """The same values. Raises UserError naming the block where one is not finite."""
    if not found.isfinite().all():
        raise UserError(f"see: block {site.block}: its units are not finite on the probe images; check the weights")
    return found


def tokens_of(model: nn.Module, site: FfnSite, sites: Sequence[FfnSite], choice: Tokens) -> slice:
    """The tokens at which a unit is looked at.

    `auto`: those that the head reads in the last block of a model whose head reads single tokens, since what the others
    hold there is never seen; all of them elsewhere. Raises UserError for `cls` without a class token.
    """
    layout = families.token_layout(model)
    if choice == "cls" and not layout.class_token:
        raise UserError("see: tokens: cls: this model's head reads no class token; take `auto`, `patches` or `all`")
    if choice == "patches":
        return slice(layout.prefix, None)
    if choice == "cls":
        return slice(0, 1)
    last = site.block == sites[-1].block
    return slice(layout.start, layout.stop) if choice == "auto" and last and layout.class_token else slice(0, None)


class Upper:
    """A high quantile of many values per unit, exact, holding only the largest: `count` values of each of k units come in
    any portions and order, of a portion as few as its `most` largest. Linear between neighbours, as numpy's."""

    def __init__(self, count: int, quantile: float, units: int) -> None:
        self.count, self.place = count, quantile * (count - 1)
        self.most = count - int(self.place)  # how many of the largest can matter
        self.kept = torch.zeros(units, 0)
        self.seen = 0

    def add(self, values_kn: Tensor, among: int | None = None) -> None:
        """More values of every unit: all, or the largest `among` so many."""
        self.seen += values_kn.shape[1] if among is None else among
        both = torch.cat([self.kept.to(values_kn), values_kn], 1)
        self.kept = both.topk(min(self.most, both.shape[1]), dim=1).values

    def value(self) -> Tensor:
        """The quantile of each unit, [k]."""
        assert self.seen == self.count, f"{self.seen} of {self.count} values came"
        low = self.kept[:, -1]
        high = self.kept[:, -2] if self.kept.shape[1] > 1 else low
        return low + (high - low) * (self.place - int(self.place))
