"""The repairs' names, and what each needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:  # recipes are read, and checked, without either
    pass


Recovery = Literal[
    "none", "mean", "affine", "sequential", "layerwise",
    "layerwise+head", "distill", "mean+distill", "affine+distill", "sequential+distill", "layerwise+distill",
]  # fmt: skip

RECOVERIES: tuple[Recovery, ...] = get_args(Recovery)


def closed_form(recovery: str) -> str:
    """How hidden units and attention are repaired, by solving: none, mean, affine, sequential or layerwise."""
    return "none" if recovery == "distill" else recovery.removesuffix("+distill").removesuffix("+head")


def needs_moments(recovery: str) -> bool:
    """Whether it is computed from the dense model's moments."""
    return closed_form(recovery) in ("mean", "affine")


def needs_images(recovery: str) -> bool:
    """Whether it runs images through the pruned model."""
    return recovery != "none" and (recovery.endswith("distill") or not needs_moments(recovery))
