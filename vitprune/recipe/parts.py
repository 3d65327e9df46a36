"""What the sections of a recipe are made of: seeds, budgets, names that may become files."""

from __future__ import annotations

import re
import unicodedata
from typing import Annotated

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    StrictInt,
    WithJsonSchema,
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


def on_any_disk(name: str) -> str:
    """What a name is to a disk that knows neither case nor Unicode forms, nor a dot or a space at the end."""
    return unicodedata.normalize("NFKC", name).casefold().rstrip(". ")
