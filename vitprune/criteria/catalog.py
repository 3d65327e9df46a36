"""The table of criteria. A new one is a file here and a row below: recipes, digests, lists and the contract tests follow.

Two signatures. `ImageScore` scores every hidden unit for every image: it is computed in shards that survive
interruption, and gathered per class. `WholeScore` looks at weights, or at a set of images as a whole.
"""

from __future__ import annotations

from dataclasses import fields
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, get_type_hints

from vitprune.core.errors import UserError
from vitprune.criteria.settings import Seeded
from vitprune.criteria.signatures import OfAttention, Row, Summed

if TYPE_CHECKING:
    from torch import nn

_LEARN: tuple[Literal["labels", "gradients", "training", "images"], ...] = ("images", "labels", "gradients")


def _call(file: str, name: str, *args: Any, **how: Any) -> Any:
    return getattr(import_module(f"vitprune.criteria.{file}"), name)(*args, **how)


def of(file: str, name: str, **how: Any) -> Any:
    """The function `name` of a file beside this one, found when it is first called: the table is read without torch."""
    return partial(_call, file, name, **how)


def named(file: str, name: str) -> Any:
    """The settings class `name` of a file beside this one, which is read at once and so imports no torch."""
    return getattr(import_module(f"vitprune.criteria.{file}"), name)


def _hidden(scores: Any) -> Summed:
    """Scores from sums of the hidden units alone."""
    return Summed("hidden", of("statistics.obs", "sums"), scores)


def _heads(file: str, name: str, sums: str | None = None) -> OfAttention:
    """What a function of `heads` says of attention, from these sums of FFNs and attentions."""
    made = of("statistics.attention", "sums", fisher=sums == "fisher")
    return OfAttention(of(f"heads.{file}", name), (f"{sums}-whole", made) if sums else None)


CRITERIA: dict[str, Row] = {
    "jas": Row(
        "Wang et al., ICLR 2025, Eq. 3 and Alg. 3",
        of("attribution.jas", "jas"),
        needs=_LEARN,
        settings=named("attribution.settings", "Jas"),
        path_dependent=True,
    ),
    "activation": Row(
        "Wang et al., ICLR 2025, App. C.2: largest raw value, class token",
        of("statistics.activation", "activation"),
        needs=("images",),
        class_token=True,
    ),
    "mean-activation": Row(
        "mean |a| over all tokens", of("statistics.activation", "mean_activation"), needs=("images",), ranks_by="mean"
    ),
    "knowledge-attribution": Row(
        "Dai et al., 2022; Wang et al., App. B: one unit's integrated gradient",
        of("attribution.knowledge_attribution", "knowledge_attribution"),
        needs=_LEARN,
        settings=named("attribution.settings", "Alone"),
    ),
    "influence-pattern": Row(
        "Lu et al., 2021; Wang et al., Eq. 9 and Alg. 2, with the chain product",
        of("attribution.influence_pattern", "influence_pattern"),
        needs=("images", "gradients"),
        settings=named("attribution.settings", "Chain"),
        class_token=True,
        halves=True,
    ),
    "influence-gradient": Row(
        "what the authors' code takes for the influence pattern: mean ∂p/∂w",
        of("attribution.influence_pattern", "influence_gradient"),
        needs=_LEARN,
        settings=named("attribution.settings", "Rule"),
        class_token=True,
    ),
    "joint-gates": Row(
        "this tool: joint integrated gradients of whole hidden units",
        of("attribution.joint_gates", "joint_gates"),
        needs=_LEARN,
        ranks_by="mean",
        settings=named("attribution.settings", "Gates"),
    ),
    "fisher": Row(
        "gate Fisher information, labels from the prediction",
        of("attribution.fisher", "fisher"),
        needs=("images", "gradients"),
        ranks_by="mean",
        settings=Seeded,
    ),
    "magnitude-l1": Row(
        "torch-pruning, GroupMagnitudeImportance, p = 1", whole=of("weights.torch_pruning", "magnitude", p=1)
    ),
    "magnitude-l2": Row(
        "torch-pruning, GroupMagnitudeImportance, p = 2",
        whole=of("weights.torch_pruning", "magnitude", p=2),
        attention=_heads("scores", "magnitude"),
    ),
    "taylor": Row(
        "Molchanov et al., 2019; torch-pruning, GroupTaylorImportance",
        whole=of("weights.torch_pruning", "taylor"),
        needs=_LEARN,
        attention=_heads("scores", "taylor"),
    ),
    "hessian": Row(
        "LeCun et al., 1989; torch-pruning, GroupHessianImportance",
        whole=of("weights.torch_pruning", "hessian"),
        needs=_LEARN,
    ),
    "variance": Row(
        "VBP, ICCV 2025",
        whole=of("statistics.variance", "variance", weighted=False),
        needs=("images",),
        summed=_hidden(of("statistics.variance", "from_sums", weighted=False)),
        attention=_heads("scores", "variance", "plain"),
    ),
    "variance-weight": Row(
        "σ²‖W2‖²",
        whole=of("statistics.variance", "variance", weighted=True),
        needs=("images",),
        summed=_hidden(of("statistics.variance", "from_sums", weighted=True)),
    ),
    "obs": Row(
        "optimal brain surgeon on fc2's input, Schur updates",
        whole=of("statistics.obs", "obs"),
        needs=("images",),
        summed=_hidden(of("statistics.obs", "from_sums")),
        attention=_heads("obs", "obs", "plain"),
    ),
    "fisher-obs": Row(
        "this tool: OBS costs in the Fisher metric, in nats per image",
        whole=of("statistics.fisher_obs", "fisher_obs"),
        needs=("images", "gradients"),
        settings=Seeded,
        across_blocks=True,
        summed=Summed("fisher", of("statistics.fisher_obs", "sums"), of("statistics.fisher_obs", "from_sums")),
        attention=_heads("obs", "fisher_obs", "fisher"),
    ),
    "class-alignment": Row(
        "value vectors projected to classes, raw",
        whole=of("weights.class_alignment", "class_alignment", form="raw"),
        halves=True,
    ),
    "class-alignment-normed": Row(
        "the same through the final norm",
        whole=of("weights.class_alignment", "class_alignment", form="normed"),
        halves=True,
    ),
    "vit-slim": Row(
        "Chavan et al., CVPR 2022, FFN gates only",
        whole=of("weights.vit_slim", "vit_slim"),
        needs=(*_LEARN, "training"),
        settings=named("weights.settings", "Slim"),
        across_blocks=True,
        trains=of("weights.vit_slim", "train"),
    ),
}


def settings() -> dict[str, tuple[Any, Any]]:
    """Every setting of every criterion by its name: its type and its default. Raises ValueError where two rows disagree."""
    found: dict[str, tuple[Any, Any]] = {}
    for name, row in CRITERIA.items():
        types = get_type_hints(row.settings, include_extras=True)
        for field in fields(row.settings):
            told = (types[field.name], field.default)
            if found.setdefault(field.name, told) != told:
                raise ValueError(f"criterion `{name}`: its setting `{field.name}` is told otherwise by a row above it")
    return found


def how_of(criterion: str, **values: Any) -> Any:
    """The settings of a criterion: of `values` those that it has, everything else at its default."""
    row = CRITERIA[criterion]
    return row.settings(**{name: value for name, value in values.items() if name in row.uses})


def allocation_of(criterion: str, asked: str) -> str:
    """What `allocation: auto` means for a criterion: one threshold where its scores compare across blocks."""
    if asked != "auto":
        return asked
    return "global" if criterion in CRITERIA and CRITERIA[criterion].across_blocks else "uniform"


def covers_attention(criterion: str) -> bool:
    """Whether a criterion chooses heads and their dimensions beside hidden units; a draw does."""
    return criterion == "random" or (criterion in CRITERIA and CRITERIA[criterion].attention is not None)


def whole_criteria() -> str:
    """The criteria that do, for a line of text."""
    return ", ".join(f"`{name}`" for name in (*CRITERIA, "random") if covers_attention(name))


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
    from vitprune.model import families
    from vitprune.model.inside import blockwise

    class_token, parts = families.token_layout(model).class_token, blockwise.halves(model)
    why = why_not(criterion, tokens, class_token=class_token, halves=parts is not None)
    if why is not None:
        raise UserError(why)
