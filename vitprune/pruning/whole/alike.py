"""The same share of every site within a budget: for scores that do not compare from one site to the other.

A share of an FFN is one of its units, of an attention one of its heads' dimensions together. The largest share at which all
sites fit is taken: of each site the largest size within it, of equally large ones that which takes heads and dimensions most
alike. Attentions have few sizes, so what is left over goes to the FFNs, again the same share of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vitprune.pruning.whole.hulls import Options


def alike(sites: Sequence[Options], budget: float) -> list[int]:
    """Per site the place of the option it gets; the smallest of each where no share fits. Never above the budget, where the
    smallest options are within it."""
    taken = _within(sites, budget)
    fine = [i for i, site in enumerate(sites) if isinstance(site.sizes[0], int)]
    rest = budget - sum(
        float(s.prices[at]) for i, (s, at) in enumerate(zip(sites, taken, strict=True)) if i not in fine
    )
    for i, at in zip(fine, _within([sites[i] for i in fine], rest), strict=True):
        taken[i] = at
    return taken


def _within(sites: Sequence[Options], budget: float) -> list[int]:
    orders, shares = [], []
    for site in sites:
        every = [_share(size, site.sizes[_largest(site)]) for size in site.sizes]
        orders.append(np.array(sorted(range(len(every)), key=every.__getitem__)))
        shares.append(np.array([every[i][0] for i in orders[-1]]))
    at = np.unique(np.concatenate(shares))[::-1]
    places = [np.maximum(np.searchsorted(own, at + 1e-12) - 1, 0) for own in shares]
    picks = [order[place] for order, place in zip(orders, places, strict=True)]
    total = sum(site.prices[pick] for site, pick in zip(sites, picks, strict=True))
    fits = np.flatnonzero(total <= budget * (1 + 1e-12))
    return [int(pick[fits[0] if len(fits) else -1]) for pick in picks]


def _largest(site: Options) -> int:
    return int(np.argmax(site.prices))


def _share(size: Any, whole: Any) -> tuple[float, ...]:
    """How much of the whole a size is, how much alike its heads and dimensions are (0: as much as can be), and how much alike
    the dimensions of values and of queries and keys are."""
    if isinstance(size, int):
        return size / whole, 0.0
    kept, every = (sum(x[1:]) / len(x[1:]) for x in (size, whole))
    heads, dims = size[0] / whole[0], kept / every
    return heads * dims, -abs(heads - dims), float(min(size[1:]) - max(size[1:]))
