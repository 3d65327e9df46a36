"""Rules for the mean of a function over α ∈ [low, 1]: nodes and weights."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

from vitprune.core.errors import UserError

Rule = Literal["left", "right", "midpoint", "gauss-legendre"]


def rule(name: Rule, count: int, low: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Nodes α_k in [low, 1] and weights that sum to 1, both [count] float64; low = 1 is the single point 1.

    `right` with α_k = k/m is the paper's sum, `left` that of its authors' code, `gauss-legendre` exact for polynomials
    of degree 2m − 1. Raises UserError for an unknown rule, no nodes, or a `low` outside 0 … 1.
    """
    if name not in get_args(Rule):
        raise UserError(f"quadrature: `{name}` is not known; there are {', '.join(get_args(Rule))}")
    if count < 1:
        raise UserError(f"nodes: {count} integration steps; at least one is needed")
    if not 0 <= low <= 1:
        raise UserError(f"low: the integration starts at {low}; it must lie between 0 and 1")
    if low == 1:
        return np.ones(1), np.ones(1)
    if name == "gauss-legendre":
        x, w = np.polynomial.legendre.leggauss(count)
        at, weights = (x + 1) / 2, w / 2
    else:
        shift = {"left": 0.0, "right": 1.0, "midpoint": 0.5}[name]
        at, weights = (np.arange(count) + shift) / count, np.full(count, 1 / count)
    return low + (1 - low) * at, weights
