"""A site: one place of a model from which units can be removed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # recipes are read, and checked, without either
    pass


@dataclass(frozen=True, slots=True)
class FfnSite:
    """One FFN: block index, module paths of its layers inside the model, hidden width n.

    A gated FFN's hidden unit is the product of value and gate: `gate` is the layer beside `fc1` that makes the gate, or
    `parts` is 2 and fc1 holds both (rows j and n + j are unit j). Rows of fc1 after those belong to something else (`split`
    is then the block that cuts them apart). `norm` stands between the hidden units and fc2.
    """

    block: int
    fc1: str
    act: str
    fc2: str
    width: int
    gate: str | None = None
    parts: int = 1
    norm: str | None = None
    split: str | None = None

    @property
    def layers(self) -> tuple[str, ...]:
        """Every module that holds weights of hidden units."""
        return tuple(path for path in (self.fc1, self.gate, self.norm, self.fc2) if path is not None)


@dataclass(frozen=True, slots=True)
class TokenLayout:
    """Which tokens of the stream [B, T, D] are what: how many are no patches, whether the first is a class token that the
    head reads, and which of them the head reads at all (`start`, `stop`). `plain`: one stream for all blocks."""

    prefix: int
    class_token: bool
    start: int = 0
    stop: int | None = None
    plain: bool = True
