"""The section `see`: what a run shows of its units."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field, StrictInt, field_validator

from vitprune.recipe.parts import Part, Seed

PartName = Literal["exemplars", "alignment", "drift"]  # a row each in runs/seeing/table.py
PARTS: tuple[str, ...] = get_args(PartName)
Form = Literal["folded", "raw", "normed", "cos"]


class SeeUnits(Part):
    """Which units stand side by side in the report: a seeded draw, removed ones and as many kept ones of the same blocks."""

    removed: Annotated[StrictInt, Field(ge=0, le=100)] = Field(12, description="removed units that are shown")
    kept: Annotated[StrictInt, Field(ge=0, le=100)] = Field(12, description="kept units that are shown")
    seed: Seed = Field(0, description="of the draw")


class SeeImages(Part):
    """Which images the units are seen on: probe images, never the exam's."""

    per_class: Annotated[StrictInt, Field(ge=1)] = Field(40, description="of each class at most, no picture twice")


class Exemplars(Part):
    """The images that move a unit most, and some that were drawn without looking."""

    k: Annotated[StrictInt, Field(ge=1, le=100)] = Field(15, description="images of each unit, the strongest first")
    random: Annotated[StrictInt, Field(ge=0, le=100)] = Field(5, description="images of each unit drawn at random")
    quantile: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.99, description="of a unit's activations over all patches, above which it is said to fire"
    )


class See(Part):
    """What `vitprune see` shows of hidden units; `see: {}` takes every default, without `see` nothing is computed."""

    parts: list[PartName] = Field(
        ["exemplars", "alignment", "drift"],
        min_length=1,
        description="exemplars: the images that move each unit most; alignment: which classes it writes and fires for, and "
        "what went with the removed ones; drift: what the repair made of the kept ones, and who stands in for the removed",
    )
    units: SeeUnits = Field(default_factory=lambda: SeeUnits(), description="which units the report shows")
    alignment: Form = Field(
        "folded",
        description="how what a unit writes is held against the classes: folded (through the last norm, its scale left out), "
        "raw, normed (through the last norm as a token of its own), cos",
    )
    images: SeeImages = Field(default_factory=lambda: SeeImages(), description="which images are looked at")
    exemplars: Exemplars = Field(default_factory=lambda: Exemplars(), description="how many, and when a unit fires")

    @field_validator("parts")
    @classmethod
    def nothing_twice(cls, parts: list[PartName]) -> list[PartName]:
        if len(set(parts)) < len(parts):
            raise ValueError("names one of its parts twice")
        return parts

    @property
    def by_default(self) -> bool:
        """Whether the parts were left to us, so that those a model does not allow are left out."""
        return "parts" not in self.model_fields_set
