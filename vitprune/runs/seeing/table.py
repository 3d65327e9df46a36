"""The parts of `see`. A new one is a module here, a row below and its word in `recipe/seeing.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from vitprune.core.errors import UserError
from vitprune.recipe.seeing import See
from vitprune.runs.seeing.looking import Looking
from vitprune.runs.seeing.parts import (
    alignment,
    blocks,
    concepts,
    drift,
    exemplars,
    maps,
    masks,
    readout,
    stimuli,
)
from vitprune.runs.seeing.parts.naming import names, simulator
from vitprune.see import alignment as aligned


@dataclass(frozen=True, slots=True)
class SeePart:
    """`work` leaves files, `looking.told[word]` for see.json and columns for units.csv. `why_not` says what of a model it
    cannot be had for, or None. `after`: parts whose leavings it reads; they are done before it, asked for or not."""

    work: Callable[[Looking], None]
    why_not: Callable[[nn.Module], str | None] = lambda _: None
    after: tuple[str, ...] = ()


TABLE: dict[str, SeePart] = {
    "exemplars": SeePart(exemplars.work),
    "alignment": SeePart(alignment.work, aligned.why_not),
    "drift": SeePart(drift.work),
    "readout": SeePart(readout.work, readout.why_not),
    "maps": SeePart(maps.work, maps.why_not, ("exemplars",)),
    "masks": SeePart(masks.work, maps.why_not, ("alignment",)),
    "concepts": SeePart(concepts.work, maps.why_not),
    "blocks": SeePart(blocks.work, maps.why_not, ("alignment",)),
    "stimuli": SeePart(stimuli.work, after=("alignment",)),
    "names": SeePart(names.work),
    "simulator": SeePart(simulator.work, after=("names",)),
}


def chosen(see: See, model: nn.Module, labelled: bool = False) -> tuple[list[str], dict[str, str]]:
    """The parts to be done in the table's order, and why others of the default list are left out. Where pixels are
    `labelled`, `concepts` goes with the default list and with `masks`.

    Raises UserError, naming the parts that work, for one that was asked for and that the model does not allow.
    """
    refused = {name: why for name in TABLE if (why := _why_not(name, model))}
    if not labelled:
        refused["concepts"] = "needs data.masks, a folder with one PNG of labels for each image"
    asked = list(map(str, see.parts))
    if labelled and (see.by_default or "masks" in asked) and "concepts" not in asked:
        asked.append("concepts")
    wanted: set[str] = set()
    for name in asked:
        if name in refused and not see.by_default:
            works = ", ".join(other for other in TABLE if other not in refused)
            raise UserError(f"see.parts: {name}: {refused[name]}; parts that work here: {works}")
        if name not in refused:
            wanted |= {name, *_before(name)}
    left_out = {name: refused[name] for name in asked if name in refused}
    return [name for name in TABLE if name in wanted], left_out


def _before(name: str) -> set[str]:
    found = set(TABLE[name].after)
    return found.union(*(_before(other) for other in found))


def _why_not(name: str, model: nn.Module) -> str | None:
    reasons = (TABLE[part].why_not(model) for part in (name, *sorted(_before(name))))
    return next((why for why in reasons if why), None)
