"""Which units the pictures are of: those that stand in the report, and the classes' top units."""

from __future__ import annotations

import numpy as np
import torch

from vitprune.runs.seeing import shown
from vitprune.runs.seeing.looking import Looking
from vitprune.see import alignment
from vitprune.see.alignment import Best

Unit = tuple[int, int]  # block, number in the dense model


def shown_units(looking: Looking) -> list[Unit]:
    """Every unit that the report shows, of all class sets, in the model's order."""
    return sorted({unit for sides in shown.drawn(looking).values() for units in sides.values() for unit in units})


def own_class(looking: Looking, unit: Unit) -> int | None:
    """The class that a unit writes most, or None where its block carries none (or nothing is known of it)."""
    aligned = looking.left.get("aligned")
    if aligned is None or aligned[unit[0]] is None or looking.left["writes"][unit[0]][unit[1], 0] < 0:
        return None
    return int(looking.left["writes"][unit[0]][unit[1], 0])


def carrying(looking: Looking) -> list[int]:
    """The blocks that carry classes."""
    return [i for i, one in enumerate(looking.left["aligned"]) if one is not None]


def unseen_block(looking: Looking) -> int | None:
    """The block whose patches reach no logit: the last, where the head reads the class token alone."""
    return len(looking.sites) - 1 if looking.layout.class_token else None


def seen_blocks(looking: Looking) -> list[int]:
    """The blocks that carry classes and whose patches some logit depends on; where there is none, those that carry classes."""
    carry = carrying(looking)
    return [i for i in carry if i != unseen_block(looking)] or carry


def classes(looking: Looking, most: int | None = None) -> list[int]:
    """The run's classes that have images, as outputs in their order; of more than `most` a seeded draw."""
    seen = set(looking.run.images.labels[looking.index].tolist())
    found = [c for c in looking.run.classes.every() if c in seen]
    if most is None or len(found) <= most:
        return found
    drawn = np.random.default_rng([looking.see.units.seed, len(found)]).permutation(found)[:most]
    return sorted(int(c) for c in drawn)


def tops(looking: Looking, outputs: list[int], blocks: list[int]) -> list[list[Best]]:
    """Per class its three top units among these blocks, the strongest first; none where no block carries classes."""
    aligned = [
        one[:, outputs] if one is not None and i in blocks else None for i, one in enumerate(looking.left["aligned"])
    ]
    alive = [torch.from_numpy(block[:, 0] >= 0) for block in looking.left["writes"]]
    return alignment.best_units(aligned, alive)
