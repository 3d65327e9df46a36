"""The slim copy of a model.

Legend: N images [N, C, H, W] as the model takes them (already normalised), labels [N] output indices.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Literal, get_args

from torch import Tensor, nn

from vitprune.core.errors import UserError
from vitprune.criteria.catalog import allocation_of
from vitprune.criteria.scores import Scores
from vitprune.model import door, families
from vitprune.model.inside import blockwise
from vitprune.model.inside.moments import moments
from vitprune.model.sites.ffn import FfnSite
from vitprune.pruning import budget as budgets
from vitprune.pruning import masks, prices, surgery
from vitprune.pruning.repair.names import Recovery, closed_form, needs_moments
from vitprune.pruning.repair.repair import chosen, repair


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
        by_name = {site.name: site for site in sites}
        _same_sizes(scores, sites)
        plan = masks.build(
            scores, kept, classes=classes, round_to=round_to, floor=floor,
            allocation=allocation_of(scores.criterion, allocation),
            prices=lambda name, widths: prices.price(model, by_name[name], widths, budget),
        )  # fmt: skip
        slim = surgery.slim(model, plan)
        asked, recovery = recovery, chosen(recovery, model)
        if recovery != "none":
            given = _images_for(recovery, model, images, batch)
            _tell(model, asked, recovery)
            stats = moments(model, sites, given) if needs_moments(recovery) else ()
            repair(slim, model, plan, recovery, stats=stats, batches=lambda: given, ridge=ridge)
    return slim


def _asked(keep: int | float | str, recovery: str) -> int | float:
    """The budget, where it and the repair are such as there are."""
    if recovery not in ("auto", *get_args(Recovery)):
        raise UserError(f"recovery `{recovery}`: not known; there are auto, {', '.join(get_args(Recovery))}")
    try:
        return budgets.parse(keep)
    except ValueError as error:
        raise UserError(f"prune: keep {keep!r}: {error}") from error


def _same_sizes(scores: Scores, sites: Sequence[FfnSite]) -> None:
    """Raises UserError for scores of another model."""
    sizes = {site.name: site.size for site in sites}
    scored = {name: block.shape[-1] for name, block in scores.sites.items()}
    if sizes != scored:
        raise UserError(
            f"prune: the scores are of FFNs of {list(scored.values())} units, the model's have "
            f"{list(sizes.values())}; discover again"
        )


def _images_for(recovery: str, model: nn.Module, images: Tensor | Iterable[Tensor] | None, batch: int) -> list[Tensor]:
    """What a repair looks at, in batches. Raises UserError where there is nothing."""
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
