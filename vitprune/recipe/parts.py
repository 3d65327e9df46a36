"""What the sections of a recipe are made of: seeds, budgets, names that may become files."""

from __future__ import annotations

import re
import unicodedata
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    StrictInt,
    WithJsonSchema,
    model_validator,
)

from vitprune.pruning import budget

Seed = Annotated[StrictInt, Field(ge=0, lt=1 << 63)]


Keep = Annotated[
    int | float,
    PlainValidator(budget.parse),
    PlainSerializer(budget.spelled),
    WithJsonSchema(budget.SCHEMA),
]


TAKEN = {
    "stages",
    "stage",
    "all",
    "onnx",
    "report-data",
    "compare",
    "parts",
    "rows",
    "dense",
    "see",
}  # folders, files of ours


OURS = re.compile(r".*\.(json|ya?ml|md|html|svg|csv|onnx|data|safetensors|weights|moments|lock|tmp)")  # more of them


RESERVED = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|clock\$|com[0-9]|lpt[0-9])(\..*)?")  # devices, to Windows


PAGES = {"comparison.md", "comparison.html"}


NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


BY_ORDER = "by-order"


class Part(BaseModel):
    """Base of every section: unknown keys are errors, values do not change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Share = Annotated[float, Field(gt=0, le=1)]
Size = Annotated[float, Field(gt=0, le=1e6)]
Points = Annotated[float, Field(ge=0, le=100)]
Shares = Annotated[list[Share], Field(min_length=1)]
Sizes = Annotated[list[Size], Field(min_length=1)]
Word = Literal["macs", "params", "latency", "size_mb", "loss_points"]


class Whole(Part):
    """A budget of the whole model: one of these. A list is a frontier: one model for each."""

    macs: Share | Shares | None = Field(None, description="share of the multiply-adds that is left")
    params: Share | Shares | None = Field(None, description="share of the parameters that is left")
    latency: Share | Shares | None = Field(
        None, description="share of the time of an image that is left, measured here"
    )
    size_mb: Size | Sizes | None = Field(None, description="megabytes (10^6 bytes) of the fp32 file, at most")
    loss_points: Points | None = Field(
        None, description="points of top-1 that the smallest model within them may lose, by the probe images"
    )

    @model_validator(mode="after")
    def one(self) -> Whole:
        given = [name for name in _WORDS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                "is a budget of one thing: `budget: {macs: 0.25}`, or params, latency, size_mb, loss_points in its place"
            )
        amounts = getattr(self, given[0])
        if isinstance(amounts, list) and len(set(amounts)) < len(amounts):
            raise ValueError(f"`{given[0]}` names one of its values twice")
        return self

    @property
    def of(self) -> Word:
        """What it is a budget of."""
        return next(name for name in _WORDS if getattr(self, name) is not None)

    @property
    def each(self) -> tuple[Whole, ...]:
        """The budgets of a frontier, largest first; one that is none, alone."""
        amounts = getattr(self, self.of)
        if not isinstance(amounts, list):
            return (self,)
        return tuple(Whole.model_validate({self.of: amount}) for amount in sorted(amounts, reverse=True))

    @property
    def several(self) -> bool:
        """Whether it is a frontier."""
        return isinstance(getattr(self, self.of), list)

    @property
    def folder(self) -> str:
        """The folder of its model in the folder of a frontier: `macs-0.25`."""
        return f"{self.of}-{self.amount:.12g}"

    @property
    def amount(self) -> float:
        """How much, in its own unit. Raises ValueError for a frontier, which has several."""
        found = getattr(self, self.of)
        if isinstance(found, list):
            raise ValueError("a frontier has several amounts")
        return float(found)

    @property
    def spelled(self) -> dict[str, float]:
        """As it is written: `{"macs": 0.25}`."""
        return {self.of: self.amount}

    @property
    def written(self) -> dict[str, float | list[float]]:
        """The same, a frontier with its list."""
        return {self.of: getattr(self, self.of)}

    def words(self) -> str:
        """For a line of text: `25 % of the multiply-adds`."""
        return " or ".join(_WORDS[one.of].format(one.amount, 100 * one.amount) for one in self.each)


_WORDS: dict[Word, str] = {
    "macs": "{1:g} % of the multiply-adds",
    "params": "{1:g} % of the parameters",
    "latency": "{1:g} % of the time",
    "size_mb": "{0:g} MB",
    "loss_points": "a loss of {0:g} points of top-1 at most",
}


def on_any_disk(name: str) -> str:
    """What a name is to a disk that knows neither case nor Unicode forms, nor a dot or a space at the end."""
    return unicodedata.normalize("NFKC", name).casefold().rstrip(". ")
