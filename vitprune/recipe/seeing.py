"""The section `see`: what a run shows of its units."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, get_args
from urllib.parse import urlsplit

from pydantic import Field, StrictInt, field_validator, model_validator

from vitprune.recipe.parts import Part, Seed

PartName = Literal[
    "exemplars", "alignment", "drift", "readout", "maps", "masks", "concepts", "blocks", "stimuli", "names", "simulator"
]  # a row each in runs/seeing/table.py
PARTS: tuple[str, ...] = get_args(PartName)
Form = Literal["folded", "raw", "normed", "cos"]
Tokens = Literal["auto", "cls", "patches", "all"]
Site = Literal["ffn", "attention"]
SITES: tuple[str, ...] = get_args(Site)


UNIT = re.compile(r"\d{1,9}:\d{1,9}")  # block and number in it, both from 0
DIRECTION = re.compile(r"(\d{1,9}):h(\d{1,9})\.(\d{1,9})")  # block, head in it and dimension of its values


class SeeUnits(Part):
    """Which units stand in the report: a seeded draw, removed ones and kept ones beside them, and the top units of classes; or
    those of a list."""

    removed: Annotated[StrictInt, Field(ge=0, le=100)] = Field(12, description="removed units that are shown")
    kept: Annotated[StrictInt, Field(ge=0, le=100)] = Field(12, description="kept units that are shown")
    top_per_class: Annotated[StrictInt, Field(ge=0, le=3)] = Field(
        1, description="units that speak most for a class, of each class, shown beside the drawn ones"
    )
    match: Literal["block", "none"] = Field(
        "block", description="block: the kept ones are of the blocks of the removed ones; none: of any"
    )
    seed: Seed = Field(0, description="of the draw")
    list: Sequence[str] | None = Field(
        None, min_length=1, max_length=100,
        description='these in place of a draw, BLOCK:UNIT each, as ["5:17"]; of attention BLOCK:hHEAD.DIMENSION, as "5:h2.17"',
    )  # fmt: skip

    @field_validator("list")
    @classmethod
    def addresses(cls, given: Sequence[str] | None) -> Sequence[str] | None:
        for one in given or ():
            if not UNIT.fullmatch(one) and not DIRECTION.fullmatch(one):
                raise ValueError(f"`{one[:40]}` is no unit; write BLOCK:UNIT, both from 0, such as 5:17")
        return given

    @property
    def asked(self) -> tuple[tuple[int, int], ...]:
        """Block and number of the listed units, each once, in the model's order."""
        pairs = (one.partition(":") for one in self.list or () if UNIT.fullmatch(one))
        return tuple(sorted({(int(block), int(unit)) for block, _, unit in pairs}))

    @property
    def directions(self) -> tuple[tuple[int, int, int], ...]:
        """Block, head and dimension of the listed directions of attention, the same way."""
        found = (DIRECTION.fullmatch(one) for one in self.list or ())
        return tuple(sorted({(int(one[1]), int(one[2]), int(one[3])) for one in found if one}))


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


class Maps(Part):
    """Where in an image a unit fires."""

    of: Literal["activation", "gradient"] = Field(
        "activation",
        description="activation: the unit's value at every patch; gradient: which patches raise it at the tokens that speak "
        "for its class",
    )


class Masks(Part):
    """The pixels where the top unit of a class is above its threshold."""

    threshold: Literal["unit", "image"] = Field(
        "unit", description="unit: one of all images, so that masks can be compared; image: of each image's own pixels"
    )
    percentile: Annotated[float, Field(gt=0, lt=100)] = Field(80.0, description="above which a pixel is in the mask")
    labelled: Annotated[float, Field(gt=0, lt=100)] = Field(
        99.5, description="the same of every unit where its masks are held against the labels of data.masks"
    )
    running: bool = Field(
        False,
        description="also masks of the running mean over the blocks up to the unit's, of the class's top unit in each of them",
    )


class Stimuli(Part):
    """Images made for the top units of classes, and for random units beside them."""

    method: Literal["fourier", "maco", "pixel"] = Field(
        "fourier",
        description="fourier: a spectrum that prefers low frequencies; maco: phases alone, under the probe images' spectrum; "
        "pixel: the pixels themselves",
    )
    steps: Annotated[StrictInt, Field(ge=0, le=10_000)] = Field(250, description="of gradient ascent")
    seeds: Annotated[StrictInt, Field(ge=1, le=20)] = Field(3, description="images of each unit")
    activation: Literal["pre", "post"] = Field("pre", description="which side of the activation is raised")
    tokens: Tokens | None = Field(
        None,
        description="where it is raised, in place of see.tokens; auto: at the tokens that the head reads in the last block, "
        "else at all",
    )
    classes: Annotated[StrictInt, Field(ge=1)] = Field(10, description="classes at most, drawn with units.seed")
    top: Annotated[StrictInt, Field(ge=1, le=10)] = Field(
        1, description="units of a class that one image raises together"
    )
    mix: Literal["equal", "score", "softmax"] = Field("equal", description="how much each of several units counts")
    diversity: Annotated[float, Field(ge=0)] = Field(
        0.0, description="how much the images of one unit are kept apart; 0.001 is the authors'"
    )
    judge: str | None = Field(None, description="another model that judges the images, by the words of model.name")


def plain_address(url: str | None) -> str | None:
    """An address without credentials, query and the slashes at its end. Raises ValueError for anything else."""
    if url is None:
        return None
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or any(c.isspace() for c in url):
        raise ValueError("is an address such as http://127.0.0.1:8000/v1")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("is an address alone; a key goes into the environment, VITPRUNE_SERVER_KEY")
    return url.rstrip("/")


OF_NAMES = {"labels": (), "clip": ("folder", "concepts"), "server": ("url", "model")}  # what each way needs


class Names(Part):
    """What units are called: a claim, which carries a score."""

    by: Literal["labels", "clip", "server"] = Field(
        "labels",
        description="labels: classes, and data.attributes where given, without another model; clip: a list of concepts by a "
        "local CLIP; server: a language model behind an address, which is sent images of the units that the report shows",
    )
    tokens: Tokens | None = Field(
        None, description="where a unit's activation is read, in place of see.tokens: the class token, or a mean"
    )
    folder: Path | None = Field(None, description="of `clip`: a folder of a CLIPModel that transformers wrote")
    concepts: Path | None = Field(None, description="of `clip`: a text file, one concept a line")
    url: str | None = Field(
        None, description="of `server`: an OpenAI-compatible address, as http://127.0.0.1:8000/v1; a key is read from the "
        "environment (VITPRUNE_SERVER_KEY) and from nowhere else",
    )  # fmt: skip
    model: str | None = Field(
        None, min_length=1, max_length=200, description="of `server`: which model it is asked for"
    )
    max_calls: Annotated[StrictInt, Field(ge=1)] = Field(200, description="of `server`: requests of a run, at most")
    timeout: Annotated[float, Field(gt=0, le=3600)] = Field(
        60.0, description="of `server`: seconds that a reply may take"
    )

    _plain = field_validator("url")(plain_address)

    @model_validator(mode="after")
    def what_each_way_needs(self) -> Names:
        for by, keys in OF_NAMES.items():
            for key in keys:
                if by == self.by and getattr(self, key) is None:
                    raise ValueError(f"`by: {by}` needs `{key}`")
                if by != self.by and getattr(self, key) is not None:
                    raise ValueError(f"`{key}` goes with `by: {by}`")
        return self


class Simulator(Part):
    """Whether an explanation tells what a unit does on images that it was not made from."""

    images: Annotated[StrictInt, Field(ge=2, le=1000)] = Field(
        20,
        description="of `clip` and `server`: images whose maps are predicted, half of them the shown units' strongest",
    )


class See(Part):
    """What `vitprune see` shows of hidden units; `see: {}` takes every default, without `see` nothing is computed."""

    parts: list[PartName] = Field(
        ["exemplars", "alignment", "drift"],
        min_length=1,
        description="exemplars: the images that move each unit most; alignment: which classes it writes and fires for, and "
        "what went with the removed ones; drift: what the repair made of the kept ones, and who stands in for the removed; "
        "readout: how well the classes can be read off the tokens from block to block; maps: where in an image the shown "
        "ones fire; masks: which pixels the classes' top units need; concepts: which labelled pixels (data.masks) each unit "
        "shows; blocks: the classes' units from block to block; stimuli: images made for units, and who recognises them; "
        "names: what units are called; simulator: whether classes and names tell what units do on other images",
    )
    sites: list[Site] = Field(
        ["ffn"],
        description="attention: the parts exemplars and alignment look at the dimensions of every head's values too, which "
        "are directions that a rotation may change",
    )
    units: SeeUnits = Field(default_factory=lambda: SeeUnits(), description="which units the report shows")
    alignment: Form = Field(
        "folded",
        description="how what a unit writes is held against the classes: folded (through the last norm, its scale left out), "
        "raw, normed (through the last norm as a token of its own), cos",
    )
    tokens: Tokens = Field(
        "auto",
        description="where a unit is given one figure an image (selectivity, names, stimuli): the class token, the mean over "
        "patches or over all tokens; auto: what the head reads",
    )
    images: SeeImages = Field(default_factory=lambda: SeeImages(), description="which images are looked at")
    exemplars: Exemplars = Field(default_factory=lambda: Exemplars(), description="how many, and when a unit fires")
    maps: Maps = Field(default_factory=lambda: Maps(), description="what the maps show")
    masks: Masks = Field(default_factory=lambda: Masks(), description="when a pixel is in a mask")
    stimuli: Stimuli = Field(default_factory=lambda: Stimuli(), description="how images are made for units")
    names: Names = Field(default_factory=lambda: Names(), description="who names the units, and from what")
    simulator: Simulator = Field(default_factory=lambda: Simulator(), description="how explanations are tried")

    @field_validator("parts")
    @classmethod
    def nothing_twice(cls, parts: list[PartName]) -> list[PartName]:
        if len(set(parts)) < len(parts):
            raise ValueError("names one of its parts twice")
        return parts

    @field_validator("sites")
    @classmethod
    def units_and_perhaps_directions(cls, sites: list[Site]) -> list[Site]:
        if len(set(sites)) < len(sites):
            raise ValueError("names one of its sites twice")
        if "ffn" not in sites:
            raise ValueError("is [ffn] or [ffn, attention]; the units of the FFNs are always looked at")
        return sites

    @model_validator(mode="after")
    def listed_directions_are_looked_at(self) -> See:
        if self.units.directions and "attention" not in self.sites:
            raise ValueError("`units.list` names a direction of attention, which needs `sites: [ffn, attention]`")
        if "attention" in self.sites and not {"exemplars", "alignment"} & set(self.parts):
            raise ValueError(
                "`sites: [ffn, attention]` needs one of the parts that look at attention: exemplars, alignment"
            )
        return self

    @property
    def stimuli_tokens(self) -> Tokens:
        """Where stimuli raise a unit."""
        return self.stimuli.tokens or self.tokens

    @property
    def names_tokens(self) -> Tokens:
        """Where units are read for names and the simulator."""
        return self.names.tokens or self.tokens

    @property
    def by_default(self) -> bool:
        """Whether the parts were left to us, so that those a model does not allow are left out."""
        return "parts" not in self.model_fields_set
