"""Which units the pictures are of: those that stand in the report, and the classes' top units."""

from __future__ import annotations

import numpy as np
import torch

from vitprune.runs.seeing.looking import Looking
from vitprune.see import alignment
from vitprune.see.alignment import Best

Unit = tuple[int, int]  # block, number in the dense model
SHOWN = 24  # top units that the report shows, at most


def drawn(looking: Looking) -> dict[str | None, dict[str, list[Unit]]]:
    """Per class set a seeded draw of removed units, and of kept ones beside them, in the model's order: of the same blocks, or
    of any where `units.match` is `none`. Nobody picks them; with nothing removed kept ones are drawn among all. Where the
    recipe lists units, those and no others."""
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
    beside: list[Unit] = []
    if how.match == "none":
        every = [(i, int(j)) for i, pool in enumerate(pools) for j in pool]
        beside = [every[at] for at in generator.permutation(len(every))[: how.kept]]
        return {"removed": sorted(removed), "kept": sorted(beside)}
    blocks = [i for i, _ in removed] or generator.integers(0, len(kept), how.kept).tolist()
    for i in [blocks[at % len(blocks)] for at in range(how.kept)] if blocks else []:
        if pools[i]:
            beside.append((i, pools[i].pop()))
    return {"removed": sorted(removed), "kept": sorted(beside)}


def of_classes(looking: Looking) -> dict[int, list[Unit]]:
    """Per class the units that speak most for it, `units.top_per_class` of each, where some block carries classes; nothing
    where the recipe lists units. Of many classes a seeded draw."""
    how = looking.see.units
    if how.list is not None or not how.top_per_class or "ranked" not in looking.left:
        return {}
    outputs = classes(looking, SHOWN // how.top_per_class)
    best = zip(outputs, tops(looking, outputs, carrying(looking)), strict=False)
    return {c: [(unit.block, unit.unit) for unit in units[: how.top_per_class]] for c, units in best if units}


def shown_units(looking: Looking, tops_too: bool = False) -> list[Unit]:
    """Every unit that the report shows, of all class sets, in the model's order; the classes' top units where asked."""
    found = {unit for sides in drawn(looking).values() for units in sides.values() for unit in units}
    return sorted(found.union(*of_classes(looking).values()) if tops_too else found)


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


def tops(looking: Looking, outputs: list[int], blocks: list[int], most: int = 3) -> list[list[Best]]:
    """Per class its top units among these blocks, `most` of them, the strongest first; none where no block carries classes."""
    aligned = [
        one[:, outputs] if one is not None and i in blocks else None for i, one in enumerate(looking.left["ranked"])
    ]
    alive = [torch.from_numpy(block[:, 0] >= 0) for block in looking.left["writes"]]
    return alignment.best_units(aligned, alive, most)
