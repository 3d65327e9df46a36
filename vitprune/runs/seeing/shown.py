"""What people look at: which units stand side by side in the report, and what is known of each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vitprune.core.errors import UserError
from vitprune.core.reading import Json
from vitprune.runs.seeing.looking import Looking
from vitprune.runs.seeing.pictures import Pictures

Unit = tuple[int, int]  # block, number in the dense model
STRONGEST = 5  # images of a strip, and one at random


def drawn(looking: Looking) -> dict[str | None, dict[str, list[Unit]]]:
    """Per class set a seeded draw of removed units, and of as many kept ones of the same blocks, in the model's order. Nobody
    picks them; with nothing removed kept ones are drawn among all. Where the recipe lists units, those and no others."""
    return {group: _draw(looking, kept) for group, kept in looking.kept.items()}


def _draw(looking: Looking, kept: list[np.ndarray]) -> dict[str, list[Unit]]:
    how = looking.see.units
    if how.list is not None:
        sides = {"removed": False, "kept": True}
        return {side: [(i, j) for i, j in how.asked if bool(kept[i][j]) is state] for side, state in sides.items()}
    generator = np.random.default_rng([how.seed, len(kept)])
    gone = [(i, int(j)) for i, mask in enumerate(kept) for j in np.flatnonzero(~mask)]
    removed = [gone[at] for at in generator.permutation(len(gone))[: how.removed]]
    pools = [generator.permutation(np.flatnonzero(mask)).tolist() for mask in kept]
    blocks = [i for i, _ in removed] or generator.integers(0, len(kept), how.kept).tolist()
    beside: list[Unit] = []
    for i in [blocks[at % len(blocks)] for at in range(how.kept)] if blocks else []:
        if pools[i]:
            beside.append((i, pools[i].pop()))
    return {"removed": sorted(removed), "kept": sorted(beside)}


def require(looking: Looking) -> None:
    """Raises UserError for a listed unit that the model does not have."""
    widths = [site.size for site in looking.sites]
    for block, unit in looking.see.units.asked:
        require_unit(widths, block, unit)


def require_unit(widths: Sequence[int], block: int, unit: int) -> None:
    """Raises UserError for a unit that a model of these widths does not have."""
    if block >= len(widths):
        raise UserError(f"see: unit {block}:{unit}: the model has blocks 0–{len(widths) - 1}")
    if unit >= widths[block]:
        raise UserError(f"see: unit {block}:{unit}: block {block} has units 0–{widths[block] - 1}")


def offsets(looking: Looking) -> list[int]:
    """Where each block's units begin in a column."""
    return np.cumsum([0, *(site.size for site in looking.sites)]).tolist()


def show(looking: Looking, pictures: Pictures) -> None:
    """Nothing; `told["shown"]` has the cards of the drawn units, with a strip of pictures where exemplars are known."""
    start = offsets(looking)
    strips: dict[Unit, str | None] = {}
    shown: Json = {}
    for group, sides in drawn(looking).items():
        shown[group or ""] = {}
        for side, units in sides.items():
            cards = []
            for i, j in units:
                if (i, j) not in strips:
                    strips[i, j] = _strip(looking, pictures, i, j)
                card: Json = {name: column[start[i] + j] for name, column in looking.columns.items()}
                cards.append({**card, "unit": f"{i}:{j}", "strip": strips[i, j]})
            shown[group or ""][side] = cards
    looking.told["shown"] = shown


def _strip(looking: Looking, pictures: Pictures, i: int, j: int) -> str | None:
    found = looking.left.get("exemplars")
    if found is None or looking.left["silent"][i][j]:
        return None
    top = [int(at) for at in found[f"top.images.{i}"][j][:STRONGEST] if at >= 0]
    beside = [int(at) for at in found[f"random.images.{i}"][j][:1] if at >= 0]
    return pictures.strip(f"{i}-{j}", top, beside) if top else None
