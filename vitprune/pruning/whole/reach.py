"""Which budgets of the whole model there are, told before anything is worked out: prices need no costs."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import nn

from vitprune.core.errors import UserError
from vitprune.model import families
from vitprune.model.sites.attention import AttentionSite
from vitprune.pruning.allocate import options
from vitprune.pruning.whole.pricing import PRICINGS, Pricing


def priced(word: str, model: nn.Module) -> Pricing:
    """The prices of a model in a budget's word. Raises UserError for a word that nothing is priced in."""
    pricing = PRICINGS.get(word)
    if pricing is None:
        raise UserError(f"budget: {word}: sites have no price in it here; there are {', '.join(PRICINGS)}")
    return pricing(model)


def least(
    model: nn.Module,
    attentions: Sequence[AttentionSite],
    prices: Pricing,
    round_to: int | None = None,
    floor: int = 1,
) -> float:
    """What the smallest model costs that these attentions and the FFNs allow, in `prices`."""
    gone = 0.0
    for attention in attentions:
        whole = prices.attention(attention, attention.heads, attention.dim)
        gone += whole - prices.attention(attention, 1, attention.dims[0])
    for site in families.ffn_sites(model):
        each = prices.ffn(site, options(site.size, round_to, floor))
        gone += float(each.max() - each.min())
    return prices.total - gone


def require(share: float, smallest: float, prices: Pricing) -> None:
    """Raises UserError where the smallest model is above the share, naming the smallest share that there is."""
    if share * prices.total < smallest:
        raise UserError(
            f"budget: {prices.name}: {share:g} is below what is left of this model when every site is as small as it may "
            f"be, {math.ceil(1000 * smallest / prices.total) / 1000:g}; raise it"
        )
