"""What the settings of criteria are made of, and those that several criteria share; all of it is read without torch.

A criterion's settings are a frozen dataclass. A field's type says what is allowed, `About` what a recipe says of it; the
section `criterion` of a recipe, the digest of a discovery and the documentation follow from the fields.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, StrictInt


@dataclass(frozen=True, slots=True)
class About:
    """What the documentation says of a setting. `left_open`: a recipe may say null, and the section fills it in."""

    words: str
    left_open: bool = False


Quadrature = Annotated[
    Literal["left", "right", "midpoint", "gauss-legendre"],
    About("gauss-legendre, or left with `reference`; the paper's is right with 20 nodes", left_open=True),
]
Nodes = Annotated[
    StrictInt,
    Field(ge=1, le=1000),
    About("integration steps m: 5 under gauss-legendre, else 20", left_open=True),
]
Objective = Annotated[
    Literal["probability", "logit", "log-probability"], About("of the true class: what is integrated")
]
Seed = Annotated[StrictInt, Field(ge=0, lt=1 << 63), About("for `random`, for sampled labels and for training")]


@dataclass(frozen=True, slots=True)
class Nothing:
    """The settings of a criterion that has none."""


@dataclass(frozen=True, slots=True)
class Seeded:
    """The seed of a criterion that draws."""

    seed: Seed = 0
