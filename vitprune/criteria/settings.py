"""How an attribution integrates, differentiates and trains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # recipes are read, and checked, without either
    pass


@dataclass(frozen=True, slots=True)
class Attribution:
    """How a score integrates gradients over α; one setting for the whole of a discovery.

    `formula`: the paper's product of sums, or joint integrated gradients (Σ w̄·∂p). `candidates`: all units of a block
    scaled together, or `each` alone (Definition 1; with `shortlist`, only that many of the parallel pass). `nodes` of
    the `quadrature` rule. `tokens`: where a unit's value is assigned. `reference`: as the authors' code does it. `precision`
    of the matrix products; sums stay in the model's own type. `low`, `form`, `labels`: joint gates only.
    `epochs`, `rate` (AdamW's), `pressure` (weight of Σ|ζ|), `train_weights`: ViT-Slim only.
    """

    formula: Literal["jas", "joint-ig"] = "jas"
    candidates: Literal["parallel", "each"] = "parallel"
    shortlist: int | None = None
    quadrature: Literal["left", "right", "midpoint", "gauss-legendre"] = "gauss-legendre"
    nodes: int = 5
    tokens: Literal["cls", "patches", "all"] = "cls"
    objective: Literal["probability", "logit", "log-probability"] = "probability"
    reference: bool = False
    precision: Literal["float32", "bfloat16"] = "float32"
    low: float = 0.0
    form: Literal["signed", "absolute", "squared"] = "signed"
    labels: Literal["true", "sampled"] = "true"
    seed: int = 0
    epochs: int = 10
    rate: float = 5e-4
    pressure: float = 1e-4
    train_weights: bool = False
