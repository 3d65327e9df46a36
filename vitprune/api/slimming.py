"""The slim copy of a model.

Legend: N images [N, C, H, W] as the model takes them (already normalised), labels [N] output indices.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Literal, get_args

from torch import Tensor, nn

from vitprune.core.errors import UserError
from vitprune.criteria.scores import Scores
from vitprune.model import door, families
from vitprune.model.inside import blockwise
from vitprune.pruning import budget as budgets
from vitprune.pruning import prices
from vitprune.pruning.budget import Budget
from vitprune.pruning.repair.names import Recovery, closed_form
from vitprune.pruning.repair.repair import Repairer, chosen
from vitprune.pruning.slimming import slim


def prune(
    model: nn.Module,
    scores: Scores,
    *,
    keep: int | float | str,
    recovery: Recovery | Literal["auto"] = "auto",
    images: Tensor | Iterable[Tensor] | None = None,
    classes: Sequence[int] | None = None,
    round_to: int | None = None,
    allocation: Literal["uniform", "global", "budgeted", "auto"] = "auto",
    budget: prices.Price = "flops",
    floor: int = 1,
    ridge: float | None = None,
    batch: int = 64,
) -> nn.Module:
    """A slim copy of `model`: the best units for `classes` (None: all) stay, the others are gone, what is left is repaired.

    `keep` is a ratio (0.25 or "25%") or a count per block ("25 units"), of every block, of all together, or of their
    price, as `allocation` says (`auto`: one threshold where the scores compare across blocks, else uniform).
    `recovery: auto` is layerwise where the blocks allow it, else affine. `images` are what the repair looks at, no
    labels; needed unless recovery is `none`. The model itself is not changed. Raises UserError for a budget out of range.
    """
    kept = _asked(keep, recovery)
    model = door.bare("prune", model)
    door.check_batch("prune", batch)
    with door.Inside(model):
        sites = families.ffn_sites(model)
        asked = Budget(kept, allocation, budget, round_to, floor)
        plan = asked.plan(scores, sites, prices.of_sites(model, sites, budget), classes)
        repairer, given = Repairer(chosen(recovery, model), ridge), None
        if repairer.method != "none":
            given = _images_for(repairer.method, model, images, batch)
            _tell(model, recovery, repairer.method)
        return slim(plan, repairer, repairer.prepare(model, None if given is None else lambda: given))


def _asked(keep: int | float | str, recovery: str) -> int | float:
    """The share or number to keep. Raises UserError for one, or a repair, that there is not."""
    if recovery not in ("auto", *get_args(Recovery)):
        raise UserError(f"recovery `{recovery}`: not known; there are auto, {', '.join(get_args(Recovery))}")
    try:
        return budgets.parse(keep)
    except ValueError as error:
        raise UserError(f"prune: keep {keep!r}: {error}") from error


def _images_for(recovery: str, model: nn.Module, images: Tensor | Iterable[Tensor] | None, batch: int) -> list[Tensor]:
    """The batches that a repair looks at. Raises UserError where there are none."""
    if images is None or (isinstance(images, Tensor) and not len(images)):
        raise UserError(f"prune: recovery `{recovery}` needs images; pass images=… or recovery='none'")
    given = door.batches_of("prune", model, images, batch)
    if not given:
        raise UserError(f"prune: recovery `{recovery}` needs images, and the batches given are none")
    return given


def _tell(model: nn.Module, asked: str, recovery: str) -> None:
    """A warning where a repair passes by what it would have changed, had the model been as timm makes it."""
    parts, note = blockwise.halves(model), None
    if asked == "auto" and parts is None and isinstance(model, families.PLAIN):
        note = f"recovery auto is {recovery}: {blockwise.why_not(model)}"
    elif parts is not None and parts.changed and closed_form(recovery) == "layerwise":
        first, why = next(iter(parts.changed.items()))
        more = f" and {len(parts.changed) - 1} more" if len(parts.changed) > 1 else ""
        note = f"recovery {recovery} leaves {first}{more} as they are: {why}"
    if note is not None:
        warnings.warn(note, UserWarning, stacklevel=3)
