"""The table of criteria. A new one is a file here and a row below; the contract tests pick it up by themselves.

Two signatures. `ImageScore` scores every hidden unit for every image: it is computed in shards that survive
interruption, and gathered per class. `WholeScore` looks at weights, or at a set of images as a whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol

from torch import Tensor, nn

from vitprune import models
from vitprune.criteria.activation import activation, mean_activation
from vitprune.criteria.fisher import fisher
from vitprune.criteria.fisher_obs import fisher_obs
from vitprune.criteria.influence_pattern import influence_gradient, influence_pattern
from vitprune.criteria.jas import jas
from vitprune.criteria.joint_gates import joint_gates
from vitprune.criteria.knowledge_attribution import knowledge_attribution
from vitprune.criteria.statistics import obs, variance
from vitprune.criteria.vit_slim import train, vit_slim
from vitprune.criteria.weights import Batches, class_alignment, hessian, magnitude, taylor
from vitprune.errors import UserError
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


class WholeScore(Protocol):
    """Scores every hidden unit for every class, or for all of them: per block [C, N] or [1, N]."""

    def __call__(
        self, model: nn.Module, sites: Sequence[FfnSite], batches: Batches, *, how: Attribution
    ) -> list[Tensor]: ...


class Trained(Protocol):
    """The same, and the trained copy of the model, which is what is then pruned."""

    def __call__(
        self, model: nn.Module, sites: Sequence[FfnSite], batches: Batches, *, how: Attribution
    ) -> tuple[list[Tensor], nn.Module]: ...


@dataclass(frozen=True, slots=True)
class Row:
    """One criterion: what computes it, what it needs, where it comes from, what it depends on.

    `ranks_by`: a class's units are ranked by how often they are among an image's t best (`frequency`, the paper's way)
    or by their mean score (`mean`, then t plays no part). `uses`: the Attribution settings that change it.
    `path_dependent`: so does t, beyond the ranking. `across_blocks`: the scores of all blocks are in one unit of account,
    so `allocation: auto` cuts them by one threshold.
    `trains`: `whole` where `train_weights` asks for weights as well. `class_token`: it looks at that token whatever the
    settings say (one that `uses` tokens does so by default). `halves`: it needs blocks that come in halves.
    """

    source: str
    score: ImageScore | None = None
    whole: WholeScore | None = None
    needs: tuple[Literal["labels", "gradients", "training", "images"], ...] = ()
    ranks_by: Literal["frequency", "mean"] = "frequency"
    uses: tuple[str, ...] = ()
    path_dependent: bool = False
    across_blocks: bool = False
    trains: Trained | None = None
    class_token: bool = False
    halves: bool = False

    @property
    def integrates(self) -> bool:
        """Whether it needs several passes for every image."""
        return "nodes" in self.uses


_RULE = ("quadrature", "nodes", "objective")
_ALONE = (*_RULE, "tokens", "shortlist")
_PATH = (*_ALONE, "formula", "candidates", "reference", "precision")
_SLIM = ("epochs", "rate", "pressure", "train_weights", "seed")
_LEARN: tuple[Literal["labels", "gradients", "training", "images"], ...] = ("images", "labels", "gradients")

CRITERIA: dict[str, Row] = {
    "jas": Row("Wang et al., ICLR 2025, Eq. 3 and Alg. 3", jas, needs=_LEARN, uses=_PATH, path_dependent=True),
    "activation": Row(
        "Wang et al., ICLR 2025, App. C.2: largest raw value, class token", activation, needs=("images",),
        class_token=True,
    ),
    "mean-activation": Row("mean |a| over all tokens", mean_activation, needs=("images",), ranks_by="mean"),
    "knowledge-attribution": Row(
        "Dai et al., 2022; Wang et al., App. B: one unit's integrated gradient", knowledge_attribution, needs=_LEARN,
        uses=(*_ALONE, "precision"),
    ),
    "influence-pattern": Row(
        "Lu et al., 2021; Wang et al., Eq. 9 and Alg. 2, with the chain product", influence_pattern,
        needs=("images", "gradients"), uses=("quadrature", "nodes"), class_token=True, halves=True,
    ),
    "influence-gradient": Row(
        "what the authors' code takes for the influence pattern: mean ∂p/∂w", influence_gradient, needs=_LEARN,
        uses=_RULE, class_token=True,
    ),
    "joint-gates": Row(
        "this tool: joint integrated gradients of whole hidden units", joint_gates, needs=_LEARN, ranks_by="mean",
        uses=(*_RULE, "low", "form", "labels", "seed"),
    ),
    "fisher": Row(
        "gate Fisher information, labels from the prediction", fisher, needs=("images", "gradients"), ranks_by="mean",
        uses=("seed",),
    ),
    "magnitude-l1": Row("torch-pruning, GroupMagnitudeImportance, p = 1", whole=partial(magnitude, p=1)),
    "magnitude-l2": Row("torch-pruning, GroupMagnitudeImportance, p = 2", whole=partial(magnitude, p=2)),
    "taylor": Row("Molchanov et al., 2019; torch-pruning, GroupTaylorImportance", whole=taylor, needs=_LEARN),
    "hessian": Row("LeCun et al., 1989; torch-pruning, GroupHessianImportance", whole=hessian, needs=_LEARN),
    "variance": Row("VBP, ICCV 2025", whole=partial(variance, weighted=False), needs=("images",)),
    "variance-weight": Row("σ²‖W2‖²", whole=partial(variance, weighted=True), needs=("images",)),
    "obs": Row("optimal brain surgeon on fc2's input, Schur updates", whole=obs, needs=("images",)),
    "fisher-obs": Row(
        "this tool: OBS costs in the Fisher metric, in nats per image", whole=fisher_obs, needs=("images", "gradients"),
        uses=("seed",), across_blocks=True,
    ),
    "class-alignment": Row(
        "value vectors projected to classes, raw", whole=partial(class_alignment, form="raw"), halves=True
    ),
    "class-alignment-normed": Row(
        "the same through the final norm", whole=partial(class_alignment, form="normed"), halves=True
    ),
    "vit-slim": Row(
        "Chavan et al., CVPR 2022, FFN gates only", whole=vit_slim, needs=(*_LEARN, "training"), uses=_SLIM,
        across_blocks=True,
        trains=train,
    ),
}  # fmt: skip


def allocation_of(criterion: str, asked: str) -> str:
    """What `allocation: auto` means for a criterion: one threshold where its scores compare across blocks."""
    if asked != "auto":
        return asked
    return "global" if criterion in CRITERIA and CRITERIA[criterion].across_blocks else "uniform"


def why_not(criterion: str, tokens: str, *, class_token: bool, halves: bool) -> str | None:
    """Why a criterion cannot look at a model whose head reads a class token or not, whose blocks come in halves or not."""
    row = CRITERIA.get(criterion)
    if row is None:  # a draw
        return None
    if not class_token and (row.class_token or ("tokens" in row.uses and tokens == "cls")):
        way = "see `vitprune models`" if row.class_token else "take tokens: all"
        return f"criterion `{criterion}`: scores the class token, but this model's head does not read one; {way}"
    if row.halves and not halves:
        return f"criterion `{criterion}`: needs blocks of one FFN after attention; this model has others"
    return None


def applies(criterion: str, tokens: str, model: nn.Module) -> None:
    """Raises UserError when a criterion cannot look at `model`."""
    class_token, parts = models.token_layout(model).class_token, models.halves(model)
    why = why_not(criterion, tokens, class_token=class_token, halves=parts is not None)
    if why is not None:
        raise UserError(why)
