"""The section `criterion`."""

from __future__ import annotations

from dataclasses import fields
from typing import Annotated, Literal

from pydantic import (
    Field,
    StrictInt,
    model_validator,
)

from vitprune.criteria.settings import Attribution
from vitprune.recipe.parts import Part, Seed

CriterionName = Literal[
    "jas",
    "activation",
    "mean-activation",
    "knowledge-attribution",
    "influence-pattern",
    "influence-gradient",
    "joint-gates",
    "fisher",
    "magnitude-l1",
    "magnitude-l2",
    "taylor",
    "hessian",
    "variance",
    "variance-weight",
    "obs",
    "fisher-obs",
    "class-alignment",
    "class-alignment-normed",
    "vit-slim",
    "random",
    "auto",
]


AMONG: list[CriterionName] = [
    "fisher-obs", "obs", "variance", "mean-activation", "fisher", "taylor", "joint-gates", "jas",
]  # fmt: skip


class Criterion(Part):
    """What ranks the hidden units. The settings from `formula` on belong to the criteria that integrate gradients."""

    name: CriterionName = Field(
        "fisher-obs", description="`vitprune criteria` lists what each needs and where it comes from"
    )
    among: list[CriterionName] = Field(AMONG, min_length=2, description="what `auto` chooses among, on a probe fold")
    t: Annotated[StrictInt, Field(ge=1)] = Field(50, description="units per image and block")
    probe_per_class: Annotated[StrictInt, Field(ge=1)] = Field(40, description="probe images per class for discovery")
    exact_per_class: Annotated[StrictInt, Field(ge=1)] | None = Field(
        None, description="knowledge-attribution: fewer probe images per class, as it runs every unit alone"
    )
    formula: Literal["jas", "joint-ig"] = Field(
        "jas", description="the paper's product of sums, or the sum of products"
    )
    candidates: Literal["parallel", "each"] = Field(
        "parallel", description="a block's candidates scaled together, or each alone (slow)"
    )
    shortlist: Annotated[StrictInt, Field(ge=1)] | None = Field(
        None, description="with `candidates: each`: only this many of the parallel pass"
    )
    quadrature: Literal["left", "right", "midpoint", "gauss-legendre"] | None = Field(
        None, description="gauss-legendre, or left with `reference`; the paper's is right with 20 nodes"
    )
    nodes: Annotated[StrictInt, Field(ge=1, le=1000)] | None = Field(
        None, description="integration steps m: 5 under gauss-legendre, else 20"
    )
    tokens: Literal["cls", "patches", "all"] = Field("cls", description="where a path's units are assigned")
    objective: Literal["probability", "logit", "log-probability"] = Field(
        "probability", description="of the true class: what is integrated"
    )
    reference: bool = Field(
        False, description="as the authors' code: clamped class token, lowest-ranked unit in the sums"
    )
    precision: Literal["float32", "bfloat16"] = Field("float32", description="of the engine's matrix products")
    low: float = Field(0.0, ge=0, le=1, description="joint-gates: α runs from here to 1")
    form: Literal["signed", "absolute", "squared"] = Field("signed", description="joint-gates: taken per image")
    labels: Literal["true", "sampled"] = Field("true", description="joint-gates: or drawn from the model's prediction")
    seed: Seed = Field(0, description="for `random`, for sampled labels and for training")
    epochs: Annotated[StrictInt, Field(ge=1, le=1000)] = Field(10, description="vit-slim: passes over the images")
    rate: float = Field(5e-4, gt=0, le=1, description="vit-slim: AdamW's learning rate")
    pressure: float = Field(1e-4, ge=0, description="vit-slim: weight of the gates' L1 norm")
    train_weights: bool = Field(False, description="vit-slim: the weights train along with the gates")

    @model_validator(mode="after")
    def settings_fit(self) -> Criterion:
        if {"auto", "random"} & set(self.among):
            raise ValueError("`among` names criteria that a choice can fall on, not `auto` or `random`")
        alone = self.candidates == "each" or self.name != "jas"
        if self.shortlist is not None and not alone:
            raise ValueError("`shortlist` goes with `candidates: each` or with knowledge-attribution")
        if self.reference and (self.candidates, self.formula) != ("parallel", "jas"):
            raise ValueError("`reference` is the authors' code: `formula: jas` and `candidates: parallel`")
        return self

    def images_per_class(self, name: str) -> int:
        """How many probe images of a class the criterion `name` looks at."""
        exact = self.exact_per_class if name == "knowledge-attribution" else None
        return self.probe_per_class if exact is None else min(exact, self.probe_per_class)

    def attribution(self) -> Attribution:
        """The settings with every default spelled out."""
        rule = self.quadrature or ("left" if self.reference else "gauss-legendre")
        ruled = {"quadrature", "nodes"}
        settings = {f.name: getattr(self, f.name) for f in fields(Attribution) if f.name not in ruled}
        return Attribution(quadrature=rule, nodes=self.nodes or (5 if rule == "gauss-legendre" else 20), **settings)
