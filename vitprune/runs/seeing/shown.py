"""What people look at: which units stand in the report, and what is known of each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vitprune.core.errors import UserError
from vitprune.core.reading import Json
from vitprune.runs.seeing import targets
from vitprune.runs.seeing.looking import Looking
from vitprune.runs.seeing.pictures import Pictures
from vitprune.runs.seeing.targets import Unit


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
    """Nothing; `told["shown"]` has the cards of the drawn units, `told["tops"]` those of the classes' top units, with a strip
    of pictures where exemplars are known."""
    strips: dict[Unit, str | None] = {}
    shown: Json = {}
    for group, sides in targets.drawn(looking).items():
        shown[group or ""] = {
            side: [_card(looking, pictures, strips, unit) for unit in units] for side, units in sides.items()
        }
    looking.told["shown"] = shown
    if found := targets.of_classes(looking):
        rows: list[Json] = [
            {"class": looking.name(c), "units": [_card(looking, pictures, strips, unit) for unit in units]}
            for c, units in found.items()
        ]
        looking.told["tops"] = rows


def _card(looking: Looking, pictures: Pictures, strips: dict[Unit, str | None], unit: Unit) -> Json:
    i, j = unit
    if unit not in strips:
        strips[unit] = _strip(looking, pictures, i, j)
    at = offsets(looking)[i] + j
    card: Json = {name: column[at] for name, column in looking.columns.items()}
    return {**card, "unit": f"{i}:{j}", "strip": strips[unit]}


def _strip(looking: Looking, pictures: Pictures, i: int, j: int) -> str | None:
    found = looking.left.get("exemplars")
    if found is None or looking.left["silent"][i][j]:
        return None
    return pictures.exemplars(found, i, j, f"{i}-{j}")
