"""The table of criteria. A new one is a file here and a row below; the contract tests pick it up by themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor, nn

from vitprune.criteria.activation import activation
from vitprune.criteria.jas import jas
from vitprune.criteria.joint_gates import joint_gates
from vitprune.types import Attribution, FfnSite


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
        how: Attribution,
    ) -> dict[int, list[Tensor]]: ...


@dataclass(frozen=True, slots=True)
class Row:
    """One criterion: what computes it, what it needs, where it comes from, what it depends on.

    `ranks_by`: a class's units are ranked by how often they are among an image's t best (`frequency`, the paper's way)
    or by their mean score (`mean`, then t plays no part). `integrates`: the Attribution settings change it.
    `path_dependent`: so does t, beyond the ranking.
    """

    score: ImageScore
    needs: tuple[str, ...]
    source: str
    ranks_by: Literal["frequency", "mean"] = "frequency"
    integrates: bool = False
    path_dependent: bool = False


CRITERIA: dict[str, Row] = {
    "jas": Row(
        jas,
        ("labels", "gradients"),
        "Wang et al., ICLR 2025, Eq. 3 and Alg. 3",
        integrates=True,
        path_dependent=True,
    ),
    "activation": Row(activation, (), "Wang et al., ICLR 2025, App. C.2"),
    "joint-gates": Row(
        joint_gates,
        ("labels", "gradients"),
        "this tool: joint integrated gradients of whole hidden units",
        ranks_by="mean",
        integrates=True,
    ),
}
