"""Which units of each type are shown: one half those with the most evidence, the others drawn; none is picked by hand."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vitprune.model.vlm.tokens import TYPES
from vitprune.see.types.rules import MULTIMODAL, TEXT, VISUAL

SHOWN = (VISUAL, TEXT, MULTIMODAL)  # an unknown unit answers to nothing that could be shown


@dataclass(frozen=True, slots=True)
class Unit:
    """A language unit: its block and its number in the dense model, its type, and whether it was drawn."""

    block: int
    number: int
    kind: int
    drawn: bool

    @property
    def name(self) -> str:
        """`BLOCK:UNIT`, both from 0."""
        return f"{self.block}:{self.number}"

    @property
    def sees(self) -> bool:
        """Whether images are evidence of what it does."""
        return self.kind in (VISUAL, MULTIMODAL)

    @property
    def reads(self) -> bool:
        """Whether texts are."""
        return self.kind in (TEXT, MULTIMODAL)


def shown(rows: Sequence[Mapping[str, str]], per_type: int, seed: int) -> list[Unit]:
    """Units of `types.csv`, by type and then in the order chosen; of units alike in evidence the first."""
    place = [(int(row["block"]), int(row["unit"])) for row in rows]
    visual, text = (np.array([float(row[f"rate_{word}"]) for row in rows]) for word in TYPES[:2])
    fires = np.array([row["fires"] == "1" for row in rows], bool)
    weights = {VISUAL: visual - text, TEXT: text - visual, MULTIMODAL: np.minimum(visual, text)}
    found: list[Unit] = []
    for kind in SHOWN:
        own = np.flatnonzero(fires & np.array([row["type"] == TYPES[kind] for row in rows], bool))
        order = own[np.argsort(-weights[kind][own], kind="stable")]
        top, rest = order[: -(-per_type // 2)], order[-(-per_type // 2) :]
        drawn = np.random.default_rng([seed, kind]).permutation(rest)[: per_type - len(top)]
        for chosen, by_draw in ((top.tolist(), False), (sorted(drawn.tolist()), True)):
            found += [Unit(place[i][0], place[i][1], kind, by_draw) for i in chosen]
    return found


def rows_of(text: str) -> list[dict[str, str]]:
    """The lines of `types.csv`."""
    return list(csv.DictReader(text.splitlines()))
