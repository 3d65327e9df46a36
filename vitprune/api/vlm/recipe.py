"""The recipe of a vision-language model: what `model.name: transformers:FOLDER` asks for where the folder holds one.

model: {name: transformers:FOLDER}
data: {pairs: pairs.jsonl}          # one object per line: image, text, and a prompt if there is one
see: {types: {of: gate, rule: test, top: 50, delta: 0.03}, units: {per_type: 4}, names: {by: words}}
criterion: {name: fisher-obs}       # or modality-types (experimental), random
keep: 0.75                          # or keep_types: {visual: 0.9, text: 0.4, multimodal: 1.0, unknown: 0.1}
recovery: layerwise                 # affine, none
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from vitprune.core.errors import UserError
from vitprune.core.reading import Json, read_text
from vitprune.recipe.mistakes import refuse_aliases
from vitprune.recipe.seeing import plain_address
from vitprune.see.types.rules import Settings

MOST = 1_000_000
PREFIX = "transformers:"
NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}"
Tower = Literal["language", "vision"]
Kind = Literal["visual", "text", "multimodal", "unknown"]
Share = Field(ge=0, le=1)


class Section(BaseModel):
    """A mapping in which an unknown key is a mistake."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Model(Section):
    """`model`."""

    name: str

    @field_validator("name")
    @classmethod
    def _folder(cls, value: str) -> str:
        if not value.startswith(PREFIX):
            raise ValueError(f"a vision-language model is given as {PREFIX}FOLDER")
        return value

    @property
    def folder(self) -> Path:
        """Where the model lies."""
        return Path(self.name.removeprefix(PREFIX))


class Data(Section):
    """`data`: the pairs; at most `most` of them are read."""

    pairs: Path
    most: int | None = Field(default=None, ge=8)


class Split(Section):
    """`split`: the share of the images to choose with; the others are for the exam alone."""

    seed: int = Field(default=0, ge=0)
    probe: float = Field(default=0.5, gt=0, lt=1)


class Types(Section):
    """`see.types`: what is read of a gated unit, the rule that counts, and every number of the rules."""

    of: Literal["gate", "product"] = "gate"
    rule: Literal["test", "counts", "rates"] = "test"
    top: int = Field(default=50, ge=1)
    t_visual: float = Field(default=2.0, ge=0, le=10)
    n_visual: int = Field(default=4, ge=1)
    t_text: float = Field(default=3.0, ge=0, le=10)
    n_text: int = Field(default=2, ge=1)
    share_visual: float = Field(default=4 / 576, ge=0, le=1)
    share_text: float = Field(default=2 / 100, ge=0, le=1)
    quantile: float = Field(default=0.95, gt=0, lt=1)
    q: float = Field(default=0.05, gt=0, lt=1)
    delta: float = Field(default=0.03, gt=0, lt=1)
    least: float = Field(default=0.01, ge=0, lt=1)
    alpha: float = Field(default=0.05, gt=0, lt=0.5)
    flips: int = Field(default=999, ge=99, le=100_000)
    seed: int = Field(default=0, ge=0)

    @property
    def settings(self) -> Settings:
        """The numbers of the rules."""
        return Settings(**self.model_dump(exclude={"of", "rule"}))


class Units(Section):
    """`see.units`: of each type so many language units are explained, one half those with the most evidence, the others
    drawn."""

    per_type: int = Field(default=4, ge=0, le=50)
    seed: int = Field(default=0, ge=0)


class Names(Section):
    """`see.names`: `words` of the pairs' own texts, or a language model behind an address (`server`), which is sent a
    unit's `k` strongest pairs and `random` others; its key is read from VITPRUNE_SERVER_KEY alone."""

    by: Literal["words", "server"] = "words"
    k: int = Field(default=8, ge=1, le=50)
    random: int = Field(default=3, ge=0, le=50)
    url: str | None = None
    model: str | None = Field(default=None, min_length=1, max_length=200)
    max_calls: int = Field(default=200, ge=1)
    timeout: float = Field(default=60.0, gt=0, le=3600)

    _plain = field_validator("url")(plain_address)

    @model_validator(mode="after")
    def _what_a_server_needs(self) -> Self:
        for key in ("url", "model"):
            if self.by == "server" and getattr(self, key) is None:
                raise ValueError(f"`by: server` needs `{key}`")
            if self.by != "server" and getattr(self, key) is not None:
                raise ValueError(f"`{key}` goes with `by: server`")
        return self


class Simulator(Section):
    """`see.simulator`: so many pairs that a server is asked about, for every unit that it named."""

    images: int = Field(default=8, ge=2, le=1000)


class See(Section):
    """`see`."""

    types: Types = Types()
    units: Units = Units()
    names: Names = Names()
    simulator: Simulator = Simulator()


class Criterion(Section):
    """`criterion`. `protect`: types that modality-types removes last."""

    name: Literal["fisher-obs", "modality-types", "random"] = "fisher-obs"
    protect: list[Kind] = ["multimodal"]
    seed: int = Field(default=0, ge=0)


class VlmRecipe(Section):
    """The whole recipe. `keep`: the share of every block's FFN units, of the towers in `prune`; without it and without
    `keep_types` nothing is removed."""

    version: Literal[1] = 1
    name: str = Field(default="vlm", pattern=f"^{NAME}$")
    model: Model
    data: Data
    split: Split = Split()
    see: See = See()
    criterion: Criterion = Criterion()
    keep: float | None = Field(default=None, gt=0, le=1)
    keep_types: dict[Kind, float] | None = None
    prune: list[Tower] = Field(default=["language"], min_length=1)
    allocation: Literal["uniform", "budgeted"] = "uniform"
    drop_dead: bool = False
    recovery: Literal["layerwise", "affine", "none"] = "layerwise"
    controls: int = Field(default=1, ge=0, le=10)
    batch: int = Field(default=16, ge=1, le=4096)
    out: Path = Path("exported")

    @model_validator(mode="after")
    def _one_budget(self) -> Self:
        if self.keep is not None and self.keep_types is not None:
            raise ValueError("give keep or keep_types, not both")
        if self.keep_types is not None and any(not 0 <= share <= 1 for share in self.keep_types.values()):
            raise ValueError("keep_types: every share lies between 0 and 1")
        of_types = self.keep_types is not None or self.criterion.name == "modality-types"
        if of_types and "vision" in self.prune:
            raise ValueError("types are of language units; prune: [language] goes with them")
        if self.criterion.name == "modality-types" and self.allocation == "budgeted":
            raise ValueError("modality-types keeps as many units in every block; allocation: uniform goes with it")
        return self

    @property
    def folder(self) -> Path:
        """Where results go."""
        return self.out / self.name

    @property
    def prunes(self) -> bool:
        """Whether anything is to be removed."""
        return self.keep is not None or self.keep_types is not None


def load(path: Path, out: Path | None = None) -> VlmRecipe:
    """A recipe's file; its paths are looked for in the working folder, then beside it. Raises UserError, one line."""
    value = content(path)
    try:
        made = VlmRecipe.model_validate(value)
    except ValidationError as error:
        raise UserError(f"{path}: {_said(error)}") from error
    folder = _located(made.model.folder, path, "model.name")
    pairs = _located(made.data.pairs, path, "data.pairs")
    changed = {
        "model": Model(name=f"{PREFIX}{folder}"),
        "data": made.data.model_copy(update={"pairs": pairs}),
        **({"out": out} if out else {}),
    }
    return made.model_copy(update=changed)


def content(path: Path) -> Json:
    """The mapping in a YAML file. Raises UserError where there is none."""
    text = read_text(path, MOST)
    try:
        refuse_aliases(yaml.compose(text, yaml.SafeLoader), str(path))
        value = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise UserError(f"{path}: not valid YAML ({str(error).splitlines()[0][:120]})") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: a recipe is a mapping of keys")
    return value


def _located(given: Path, recipe: Path, key: str) -> Path:
    for place in (given, recipe.parent / given):
        if place.exists():
            return place
    raise UserError(f"{recipe}: {key}: there is no {given}, here or beside the recipe")


def _said(error: ValidationError) -> str:
    """The first mistake: where, what, and the nearest key to an unknown one."""
    every: list[Any] = sorted(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
    first, place = every[0], ".".join(str(part) for part in every[0]["loc"])
    if first["type"] != "extra_forbidden":
        return f"{place}: {first['msg'].removeprefix('Value error, ')}".removeprefix(": ")
    kind: Any = VlmRecipe
    for part in first["loc"][:-1]:
        kind = kind.model_fields[part].annotation
    near = difflib.get_close_matches(str(first["loc"][-1]), kind.model_fields, 1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(kind.model_fields)}"
    return f"{place[:120]}: is not known to recipes of vision-language models; {hint}"
