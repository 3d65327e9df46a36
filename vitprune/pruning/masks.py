"""Scores + budget + classes → mask. Plain arithmetic, no model in sight."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from vitprune.core.errors import UserError
from vitprune.criteria.curves import Curve
from vitprune.criteria.scores import Scores
from vitprune.model.sites.ffn import FfnSite
from vitprune.pruning import allocate
from vitprune.pruning.plan import Plan
from vitprune.pruning.prices import Prices


def width(keep: int | float, n: int, round_to: int | None = None) -> int:
    """Units kept of n: an integer is a count, a float a ratio (rounded down, so never above the budget).

    With `round_to` a width below n goes down to a multiple of it, but not below one multiple (or n, if that is less).
    Raises UserError below one unit or above n.
    """
    if isinstance(keep, bool) or not isinstance(keep, int | float):
        raise UserError(f"keep: {keep!r} is neither a count nor a ratio")
    if isinstance(keep, float) and not 0 < keep <= 1:
        raise UserError(f"keep: the ratio {keep} does not lie above 0 and at most at 1.0")
    count = keep if isinstance(keep, int) else int(keep * n + 1e-9)
    if count < 1:
        raise UserError(f"keep: {keep} of {n} hidden units leaves none; keep at least one per block")
    if count > n:
        raise UserError(f"keep: {keep} units per block, but a block has only {n}")
    if round_to and count < n:
        count = min(n, max(count // round_to, 1) * round_to)
    return count


def check_t(t: int, sites: Sequence[FfnSite]) -> None:
    """Raises UserError when a block has fewer than t hidden units."""
    smallest = min(site.size for site in sites)
    if not 1 <= t <= smallest:
        raise UserError(f"t: {t} units per block are asked for, but a block has {smallest}; choose 1 to {smallest}")


def build(
    scores: Scores,
    keep: int | float,
    *,
    classes: Sequence[int] | None = None,
    round_to: int | None = None,
    allocation: str = "uniform",
    floor: int = 1,
    prices: Prices | None = None,
) -> Plan:
    """The mask that keeps the best units for `classes` (None: all rows), averaged over those classes.

    `uniform`: each block's best. `global`: the best of all blocks together, at least `floor` of each; a count is a count
    per block on average. `budgeted`: the widths of least summed cost of the removals (of the scores' curves; the scores
    themselves where there are none) whose `prices` fit `keep` of the dense ones. Ties, score 0 included, go to the larger
    `scores.ties`, then to the smaller index.
    """
    rows = list(range(scores.classes)) if classes is None or scores.classes == 1 else sorted(set(classes))
    if not rows:
        raise UserError("classes: an empty set of classes has no mask")
    if not 0 <= min(rows) <= max(rows) < scores.classes:
        raise UserError(f"classes: the scores know classes 0 to {scores.classes - 1}, not {min(rows)} to {max(rows)}")
    first = [block[rows].double().mean(0).numpy() for block in _numbers(scores)]
    second = [tie[rows].double().mean(0).numpy() for tie in (scores.ties or {}).values()] or [
        np.zeros_like(f) for f in first
    ]
    counts = [width(keep, len(block), round_to) for block in first]
    if allocation == "global":
        counts = _global_counts(first, second, sum(counts), round_to, floor)
    elif allocation == "budgeted":
        curves = {name: Curve.ranked(torch.from_numpy(f)) for name, f in zip(scores.sites, first, strict=True)}
        curves |= scores.curves or {}
        counts = _budgeted(curves, keep, round_to, floor, prices or (lambda name, widths: widths.astype(float)))
    masks = []
    for block, ties, count in zip(first, second, counts, strict=True):
        masks.append(_best(block, ties, count))
    return Plan(dict(zip(scores.sites, masks, strict=True)), tuple(rows) if classes is not None else ())


def _numbers(scores: Scores) -> Iterator[Tensor]:
    """The rows of every site, one after the other."""
    for block in scores.sites.values():
        if bool(block.isnan().any()):
            raise UserError(
                f"scores of `{scores.criterion}`: some are not numbers; check the model's weights and the images"
            )
        yield block


def _best(block: np.ndarray, ties: np.ndarray, count: int) -> Tensor:
    """The mask [n] of the `count` best units by `block` [n], then by `ties` [n], then by the smaller index."""
    order = np.lexsort((np.arange(len(block)), -ties, -block))
    mask = torch.zeros(len(block), dtype=torch.bool)
    mask[torch.from_numpy(order[:count].copy())] = True
    return mask


def best(scores: Scores, widths: dict[str, int], classes: Sequence[int]) -> dict[str, Tensor]:
    """By site name the mask [n] of its best units for `classes`, as many of each site as `widths` says."""
    found: dict[str, Tensor] = {}
    for name, units in widths.items():
        ties = {name: scores.ties[name]} if scores.ties else None
        one = replace(scores, sites={name: scores.sites[name]}, ties=ties, curves=None)
        found |= build(one, units, classes=classes).keep
    return found


def _global_counts(
    first: list[np.ndarray], second: list[np.ndarray], budget: int, round_to: int | None, floor: int
) -> list[int]:
    """Units per block when all blocks share one threshold and each keeps its `floor` best (or one multiple)."""
    block = np.concatenate([np.full(len(f), i) for i, f in enumerate(first)])
    order = np.lexsort((np.arange(len(block)), -np.concatenate(second), -np.concatenate(first)))
    least = min(floor, budget // len(first))
    held = np.zeros(len(order), bool)
    for i in range(len(first)):
        held[np.flatnonzero(block[order] == i)[:least]] = True  # each block's first units
    rest = order[~held][: max(0, budget - int(held.sum()))]
    counts = np.bincount(block[order[held]], minlength=len(first)) + np.bincount(block[rest], minlength=len(first))
    if not round_to:
        return [int(c) for c in counts]
    return [min(len(f), max(int(c) // round_to, 1) * round_to) for c, f in zip(counts, first, strict=True)]


def _budgeted(
    curves: dict[str, Curve], keep: int | float, round_to: int | None, floor: int, prices: Prices
) -> list[int]:
    costs = [curve.costs.numpy() for curve in curves.values()]
    choices = [allocate.options(len(c), round_to, floor) for c in costs]
    priced = [np.asarray(prices(name, choice), float) for name, choice in zip(curves, choices, strict=True)]
    whole = [float(p[-1]) for p in priced]
    share = [keep / len(c) if isinstance(keep, int) else keep for c in costs]
    budget = sum(w * s for w, s in zip(whole, share, strict=True))
    return allocate.widths(costs, priced, choices, budget)


def per_class(scores: Scores, keep: int) -> list[torch.Tensor]:
    """The paper's class masks, one per class: per block bool [C, n] with `keep` units in each row."""
    made = []
    for name, block in zip(scores.sites, _numbers(scores), strict=True):
        ties = torch.zeros_like(block) if scores.ties is None else scores.ties[name]
        count, pairs = width(keep, block.shape[1]), zip(block.double().numpy(), ties.double().numpy(), strict=True)
        made.append(torch.stack([_best(row, tie, count) for row, tie in pairs]))
    return made


def threshold_mask(gates: Mapping[str, Tensor], budget: float) -> tuple[Plan, int]:
    """One threshold across all blocks for the share `budget` of all units; and how many blocks it would have emptied.

    ViT-Slim lets a block go empty; here its best unit stays, so that every block can be sliced.
    """
    signed = [gate.flatten().double().numpy() for gate in gates.values()]
    every = np.sort(np.concatenate(signed))
    threshold = every[int((1 - budget) * len(every))]
    kept = [torch.from_numpy(gate >= threshold) for gate in signed]
    empty = [i for i, block in enumerate(kept) if not bool(block.any())]
    for i in empty:
        kept[i][int(signed[i].argmax())] = True
    return Plan(dict(zip(gates, kept, strict=True))), len(empty)
