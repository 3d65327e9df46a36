"""The section `export`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    Field,
    StrictInt,
    field_validator,
)

from vitprune.recipe.parts import Part, Whole


def refuse(export: Export, whole: Whole | None, groups: bool) -> None:
    """Raise ValueError where a frontier, or the budget of it that is to be exported, does not go with the rest."""
    amounts = [one.amount for one in whole.each] if whole is not None and whole.several else []
    if amounts and groups:
        raise ValueError("a frontier (a list of budgets) is for one class set: no `groups`, or one recipe per group")
    if export.budget is not None and export.budget not in amounts:
        known = f"one of {', '.join(f'{a:g}' for a in amounts)}" if amounts else "there is none here"
        raise ValueError(f"`export.budget: {export.budget:g}` names a budget of a frontier, {known}")


class Export(Part):
    """What is written for deployment, beside the checkpoint."""

    onnx: bool = Field(True, description="write ONNX files and hold them against torch")
    precisions: list[Literal["fp32", "fp16", "int8"]] = Field(
        ["fp32"], description="of the ONNX files; fp32 is always among them, the others are made from it"
    )
    int8_floor_points: float = Field(
        0.5,
        ge=0,
        le=100,
        description="points of top-1 that int8 may cost on the probe split, else products stay in fp32",
    )
    budget: float | None = Field(
        None,
        gt=0,
        description="of a frontier (`budget: {macs: [0.5, 0.25]}`) the one that gets ONNX files and that the run's own "
        "folder has too; without it all get them",
    )
    latency_batches: list[Annotated[StrictInt, Field(ge=1, le=4096)]] = Field(
        [1, 8, 32], description="batch sizes at which dense and slim are timed in turn"
    )

    shortcut: bool = Field(
        True,
        description="the last block for the class token alone, where the head reads no other; exact, or written without",
    )

    @field_validator("precisions")
    @classmethod
    def fp32_and_nothing_twice(cls, precisions: list[str]) -> list[str]:
        if "fp32" not in precisions or len(set(precisions)) < len(precisions):
            raise ValueError("name fp32, which the others are made from, and nothing twice")
        return precisions


def of_file(whole: Whole | None, export: Export) -> bool:
    """Whether a budget is that of an ONNX file with the shortcut, which differs from the checkpoint in what is counted."""
    counted = whole is not None and whole.of in ("macs", "loss_points", "latency", "size_mb")
    return counted and export.onnx and export.shortcut


def timed_batch(export: Export) -> int:
    """The batch at which a budget in time is measured: the largest that the latency is told for."""
    return max(export.latency_batches, default=32)


def told_batch(export: Export) -> int:
    """The batch of the run's one figure of latency: 32, or the largest that is timed where the recipe leaves 32 out."""
    batches = export.latency_batches or [32]
    return 32 if 32 in batches else max(batches)


def sized_by_files(whole: Whole | None, export: Export) -> dict[str, bool | int]:
    """What a plan depends on of how its files are written and timed; nothing where it does not."""
    found: dict[str, bool | int] = {"shortcut": True} if of_file(whole, export) else {}
    if whole is not None and whole.of == "size_mb":
        found["onnx"] = export.onnx
    if whole is not None and whole.of == "latency":
        found["batch"] = timed_batch(export)
    return found
