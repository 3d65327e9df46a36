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


TAKEN = {"stages", "stage", "all", "onnx", "report-data", "compare", "parts", "rows", "dense"}  # folders, files of ours


OURS = re.compile(r".*\.(json|ya?ml|md|html|svg|csv|onnx|data|safetensors|weights|moments|lock|tmp)")  # more of them


RESERVED = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|clock\$|com[0-9]|lpt[0-9])(\..*)?")  # devices, to Windows


PAGES = {"comparison.md", "comparison.html"}


NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


BY_ORDER = "by-order"


class Part(BaseModel):
    """Base of every section: unknown keys are errors, values do not change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Whole(Part):
    """A budget of the whole model: one of these."""

    macs: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="share of the multiply-adds that is left"
    )
    params: Annotated[float, Field(gt=0, le=1)] | None = Field(None, description="share of the parameters that is left")

    @model_validator(mode="after")
    def one(self) -> Whole:
        if (self.macs is None) == (self.params is None):
            raise ValueError("is a share of one thing: `budget: {macs: 0.25}` or `budget: {params: 0.25}`")
        return self

    @property
    def of(self) -> Literal["macs", "params"]:
        """What it is a share of."""
        return "params" if self.macs is None else "macs"

    @property
    def share(self) -> float:
        """How much is left, above 0 and at most 1."""
        found = self.params if self.macs is None else self.macs
        assert found is not None
        return found

    def words(self) -> str:
        """For a line of text: `25 % of the multiply-adds`."""
        return f"{100 * self.share:g} % of the {'multiply-adds' if self.of == 'macs' else 'parameters'}"


def on_any_disk(name: str) -> str:
    """What a name is to a disk that knows neither case nor Unicode forms, nor a dot or a space at the end."""
    return unicodedata.normalize("NFKC", name).casefold().rstrip(". ")
