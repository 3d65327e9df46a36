"""The table of criteria. A new one is a file here and a row below; the contract tests pick it up by themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from vitprune.criteria.activation import activation
from vitprune.criteria.jas import jas
from vitprune.types import FfnSite


class ImageScore(Protocol):
    """Scores every hidden unit for every image, for each t in `ts`: per block [B, N]."""

    def __call__(
        self,
        model: nn.Module,
        sites: Sequence[FfnSite],
        images: Tensor,
        labels: Tensor,
        *,
        ts: Sequence[int],
        nodes: int,
    ) -> dict[int, list[Tensor]]: ...


@dataclass(frozen=True, slots=True)
class Row:
    """One criterion: what computes it, what it needs, where it comes from, whether `t` and `nodes` change it."""

    score: ImageScore
    needs: tuple[str, ...]
    source: str
    path_dependent: bool


CRITERIA: dict[str, Row] = {
    "jas": Row(jas, ("labels", "gradients"), "Wang et al., ICLR 2025, Eq. 3 and Alg. 3", True),
    "activation": Row(activation, (), "Wang et al., ICLR 2025, App. C.2", False),
}
