"""Which budgets of the whole model there are, told before anything is worked out: prices need no costs."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import nn

from vitprune.core.errors import UserError
from vitprune.model import families
from vitprune.model.sites.attention import AttentionSite
from vitprune.pruning.allocate import options
from vitprune.pruning.whole.megabytes import Megabytes
from vitprune.pruning.whole.pricing import Macs, Parameters, Pricing


def priced(word: str, model: nn.Module, by_file: bool = False) -> Pricing | None:
    """The prices of a model in a budget's word, where they can be counted; None where they are measured. `by_file`:
    multiply-adds are those of the exported file."""
    if word == "size_mb":
        return Megabytes(model)
    if word == "macs":
        return Macs(model, by_file)
    return Parameters(model) if word == "params" else None


def least(
    model: nn.Module,
    attentions: Sequence[AttentionSite],
    prices: Pricing,
    round_to: int | None = None,
    floor: int = 1,
    depth: bool = False,
) -> float:
    """What the smallest model costs that these attentions and the FFNs allow, in `prices`; `depth`: an attention may be
    gone."""
    gone = 0.0
    for attention in attentions:
        whole = prices.attention(attention, attention.heads, attention.dim)
        smallest = (0, 0) if depth and attention.whole_heads else (attention.counts[0], attention.dims[0])
        gone += whole - prices.attention(attention, *smallest)
    for site in families.ffn_sites(model):
        each = prices.ffn(site, options(site.size, round_to, floor))
        gone += float(each.max() - each.min())
    return prices.total - gone


def require(amount: float, smallest: float, prices: Pricing) -> None:
    """Raises UserError where the smallest model is above the budget, naming the smallest amount that there is."""
    if prices.room(amount) < smallest:
        raise UserError(
            f"budget: {prices.name}: {amount:g} is below what is left of this model when every site is as small as it may "
            f"be, {math.ceil(1000 * prices.amount(smallest)) / 1000:.9g}; raise it"
        )
