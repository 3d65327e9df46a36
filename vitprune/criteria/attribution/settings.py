"""The settings of the criteria in this folder: how gradients are integrated over α; read without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, StrictInt

from vitprune.criteria.settings import About, Nodes, Objective, Quadrature, Seed

Tokens = Annotated[Literal["cls", "patches", "all"], About("where a path's units are assigned")]
Precision = Annotated[Literal["float32", "bfloat16"], About("of the engine's matrix products")]
Shortlist = Annotated[
    Annotated[StrictInt, Field(ge=1)] | None, About("with `candidates: each`: only this many of the parallel pass")
]


@dataclass(frozen=True, slots=True)
class Jas:
    """Neuron paths. `formula`: the paper's product of sums, or joint integrated gradients (Σ w̄·∂p). `candidates`: all units
    of a block scaled together, or `each` alone (Definition 1). Sums stay in the model's own type whatever `precision`."""

    formula: Annotated[Literal["jas", "joint-ig"], About("the paper's product of sums, or the sum of products")] = "jas"
    candidates: Annotated[
        Literal["parallel", "each"], About("a block's candidates scaled together, or each alone (slow)")
    ] = "parallel"
    shortlist: Shortlist = None
    quadrature: Quadrature = "gauss-legendre"
    nodes: Nodes = 5
    tokens: Tokens = "cls"
    objective: Objective = "probability"
    reference: Annotated[bool, About("as the authors' code: clamped class token, lowest-ranked unit in the sums")] = (
        False
    )
    precision: Precision = "float32"


@dataclass(frozen=True, slots=True)
class Alone:
    """Knowledge attribution: one unit at a time, no path."""

    shortlist: Shortlist = None
    quadrature: Quadrature = "gauss-legendre"
    nodes: Nodes = 5
    tokens: Tokens = "cls"
    objective: Objective = "probability"
    precision: Precision = "float32"


@dataclass(frozen=True, slots=True)
class Chain:
    """The influence pattern: the rule alone, what it differentiates are the units themselves."""

    quadrature: Quadrature = "gauss-legendre"
    nodes: Nodes = 5


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule, and what is integrated by it."""

    quadrature: Quadrature = "gauss-legendre"
    nodes: Nodes = 5
    objective: Objective = "probability"


@dataclass(frozen=True, slots=True)
class Gates:
    """Joint gates: a rule from `low` to 1, what is taken of each image, and whose labels."""

    quadrature: Quadrature = "gauss-legendre"
    nodes: Nodes = 5
    objective: Objective = "probability"
    low: Annotated[float, Field(ge=0, le=1), About("joint-gates: α runs from here to 1")] = 0.0
    form: Annotated[Literal["signed", "absolute", "squared"], About("joint-gates: taken per image")] = "signed"
    labels: Annotated[Literal["true", "sampled"], About("joint-gates: or drawn from the model's prediction")] = "true"
    seed: Seed = 0
