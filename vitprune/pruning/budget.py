"""The budget: what may be left of a model, and how it is asked for.

`keep` is a share of the hidden units (a float up to 1.0, or `25%`) or a count per block (`25 units`). A bare whole number
from 2 to 100 may mean either, so it is refused with both spellings.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

from vitprune.core.errors import UserError
from vitprune.criteria.catalog import allocation_of

if TYPE_CHECKING:  # recipes are read, and checked, without torch
    from vitprune.criteria.scores import Scores
    from vitprune.model.sites.base import Site
    from vitprune.pruning.plan import Plan
    from vitprune.pruning.prices import Price, Prices

PERCENT = re.compile(r"(\d{1,12}(?:\.\d{0,12})?|\.\d{1,12})\s*%", re.ASCII)
UNITS = re.compile(r"(\d{1,12})\s*units?", re.ASCII)
UNCLEAR = range(2, 101)
SCHEMA = {
    "anyOf": [
        {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
        {"type": "integer", "minimum": 1, "not": {"minimum": UNCLEAR[0], "maximum": UNCLEAR[-1]}},
        {"type": "string", "pattern": r"^\s*((\d+(\.\d*)?|\.\d+)\s*%|\d+\s*units?)\s*$"},
    ]
}


@dataclass(frozen=True, slots=True)
class Budget:
    """What is asked for: `keep` of every site (`allocation: uniform`), of all units together (`global`) or of what they
    cost (`budgeted`: `of` says parameters, multiply-adds or seconds); `auto` lets the criterion decide.

    A site keeps a multiple of `round_to` and, where sites differ, at least `floor` units.
    """

    keep: int | float
    allocation: str = "uniform"
    of: Price = "flops"
    round_to: int | None = None
    floor: int = 1

    def plan(
        self,
        scores: Scores,
        sites: Sequence[Site],
        prices: Prices | None = None,
        classes: Sequence[int] | None = None,
    ) -> Plan:
        """What every site keeps for `classes` (None: all), by their scores.

        `prices` says what sizes of a site cost, counted in what the budget is `of` (None: in units). Raises UserError for a
        budget out of range, and for scores of other sites.
        """
        from vitprune.pruning import masks

        sizes = {site.name: site.size for site in sites}
        scored = {name: block.shape[-1] for name, block in scores.sites.items()}
        if sizes != scored:
            raise UserError(
                f"prune: the scores are of FFNs of {list(scored.values())} units, the model's have "
                f"{list(sizes.values())}; discover again"
            )
        return masks.build(
            scores, self.keep, classes=classes, round_to=self.round_to, floor=self.floor, prices=prices,
            allocation=allocation_of(scores.criterion, self.allocation),
        )  # fmt: skip


def parse(given: Any) -> int | float:
    """The budget: an int is a count per block, a float a share. Raises ValueError with the spellings that are right."""
    if isinstance(given, str):
        return _spelled(given.strip())
    if isinstance(given, bool) or not isinstance(given, Real):
        raise ValueError("is neither a share nor a count; write `0.25`, `25%` or `25 units`")
    if isinstance(given, Integral):
        count = int(given)
        if count in UNCLEAR:
            raise ValueError(
                f"{count} may mean a share or a count: write `keep: {count}%` for {count} % of the hidden units, "
                f"`keep: {count} units` for {count} units per block"
            )
        return _count(count)
    share = float(given)
    if 1 < share <= 100:
        raise ValueError(
            f"a ratio lies above 0 and at most at 1.0: write `keep: {share:g}%` for {share:g} % of the hidden units, "
            f"`keep: {round(share)} units` for units per block"
        )
    return _share(share)


def spelled(keep: int | float) -> int | float | str:
    """How a recipe writes it, so that it is read again as what it is."""
    if isinstance(keep, int) and keep in UNCLEAR:
        return f"{keep} units"
    return keep


def words(keep: int | float) -> str:
    """For a line of text: `25 %`, `25 units`."""
    return f"{keep} unit{'s' * (keep != 1)}" if isinstance(keep, int) else f"{100 * keep:g} %"


def _spelled(text: str) -> int | float:
    if found := PERCENT.fullmatch(text):
        return _share(float(Decimal(found[1]) / 100))
    if found := UNITS.fullmatch(text):
        return _count(int(found[1]))
    raise ValueError("is neither a share nor a count; write `0.25`, `25%` or `25 units`")


def _share(share: float) -> float:
    if not 0 < share <= 1:
        raise ValueError("a ratio lies above 0 and at most at 1.0, which is `100%`")
    return share


def _count(count: int) -> int:
    if count < 1:
        raise ValueError("a count of hidden units per block is at least 1")
    return count
