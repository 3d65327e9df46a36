"""The part `alignment`: which classes each unit writes, which it fires for, and what went with the removed units.

The two are never one: a unit that writes a class need not fire for it. Where the units of a block are no closer to the
classes than to random heads, nothing is said of what they write.
"""

from __future__ import annotations

import numpy as np
import torch

from vitprune.core.reading import Json
from vitprune.exam import metrics
from vitprune.runs.seeing import passes
from vitprune.runs.seeing.looking import Looking
from vitprune.runs.seeing.parts import evidence
from vitprune.see import alignment, firing
from vitprune.see.alignment import Chance
from vitprune.see.firing import TOP, Fires

NULL_SEED = 0


def work(looking: Looking) -> None:
    """Nothing; alignment.safetensors, the columns of both, and what see.json says of blocks, classes and class sets."""
    form = looking.see.alignment
    written = alignment.written(looking.model)
    with torch.no_grad():
        aligned = [written.aligned(i, form).float() for i in range(len(written.values))]
        null = [alignment.chance(values, written.head, NULL_SEED + i) for i, values in enumerate(written.values)]
        alive = [~alignment.dead(values) for values in written.values]
        lengths = [values.norm(dim=1) for values in written.values]
    _save(looking, [one.cpu().numpy() for one in aligned], [one.cpu().numpy() for one in lengths])
    looking.column("norm", [one.cpu().numpy().astype(np.float64) for one in lengths])
    looking.column("dead", [["no" if lives else "yes" for lives in block.tolist()] for block in alive])
    first = [one.argmax(1).cpu().numpy() for one in aligned]
    writes = [_writes(one, lives, chance) for one, lives, chance in zip(aligned, alive, null, strict=True)]
    looking.left["writes"] = writes
    _columns(looking, "writes", writes)
    blocks = [_block(i, chance, int((~lives).sum())) for i, (chance, lives) in enumerate(zip(null, alive, strict=True))]
    _fires(looking, first, [one.numpy() for one in alive], blocks)
    looking.left["aligned"] = [one.cpu() if chance.carries else None for one, chance in zip(aligned, null, strict=True)]
    looking.told["alignment"] = {
        "form": form,
        "heads": alignment.HEADS,
        "enough": alignment.ENOUGH,
        "blocks": blocks,
        **_classes(looking, aligned, alive, null),
        "evidence": evidence.of(looking),
    }


def _save(looking: Looking, aligned: list[np.ndarray], lengths: list[np.ndarray]) -> None:
    half = np.finfo(np.float16)
    arrays = {f"alignment.{i}": one.clip(half.min, half.max).astype(np.float16) for i, one in enumerate(aligned)}
    looking.save("alignment", arrays | {f"norm.{i}": one for i, one in enumerate(lengths)})


def _writes(aligned: torch.Tensor, alive: torch.Tensor, chance: Chance) -> np.ndarray:
    """Per unit the classes it writes most, [H, up to 3]; −1 where nothing may be said."""
    order = torch.sort(aligned, dim=1, descending=True, stable=True).indices[:, :TOP]
    said = order if chance.carries else torch.full_like(order, -1)
    made: np.ndarray = torch.where(alive[:, None], said, -1).cpu().numpy()
    return made


def _columns(looking: Looking, name: str, classes: list[np.ndarray]) -> None:
    for rank in range(min(block.shape[1] for block in classes)):
        blocks = [[looking.name(c) if c >= 0 else None for c in block[:, rank].tolist()] for block in classes]
        looking.column(f"{name}_{rank + 1}", blocks)


def _block(i: int, chance: Chance, dead: int) -> Json:
    made = {"block": i, "found": chance.found, "random": chance.mean, "random_sd": chance.sd, "z": chance.z}
    return made | {"carries": chance.carries, "dead": dead}


def _fires(looking: Looking, first: list[np.ndarray], alive: list[np.ndarray], blocks: list[Json]) -> None:
    """Columns `fires for`, and per block how often that is what a unit writes."""
    found: dict[str, list[Fires]] = {}
    seen = passes.seen(looking)
    for read in seen[0].asked.reads:
        found[read] = [firing.fires(block, read) for block in seen]
        _columns(looking, f"fires_{read}", [one.classes for one in found[read]])
        looking.column(f"between_{read}", [one.between for one in found[read]])
    looking.left["fires"] = found
    for i, block in enumerate(blocks):
        block["agreement"] = {read: _agreement(first[i], found[read][i], alive[i], looking) for read in found}


def _agreement(first: np.ndarray, fires: Fires, alive: np.ndarray, looking: Looking) -> Json:
    """How many units fire most for the class that they write most, with an interval; chance is one in as many classes. Of
    every block: where it is at chance, that is what it shows."""
    same, n = int((first == fires.classes[:, 0])[alive].sum()), int(alive.sum())
    classes = len(set(looking.run.images.labels[looking.index].tolist()))
    return {"share": same / n, "n": n, "ci95": list(metrics.wilson(same, n)), "chance": 1 / classes}


def _classes(
    looking: Looking, aligned: list[torch.Tensor], alive: list[torch.Tensor], null: list[Chance]
) -> dict[str, object]:
    """The strongest units of every class of the run, and the classes whose first one is the same."""
    targets = looking.run.classes.every()
    narrowed = [one[:, targets] if chance.carries else None for one, chance in zip(aligned, null, strict=True)]
    best = alignment.best_units(narrowed, alive)
    first: dict[str, list[str]] = {}
    rows = []
    for c, units in zip(targets, best, strict=False):
        named = [{"unit": f"{u.block}:{u.unit}", "value": u.value, "margin": _finite(u.margin)} for u in units]
        rows.append({"class": looking.name(c), "units": named})
        if named:
            first.setdefault(str(named[0]["unit"]), []).append(looking.name(c))
    shared = {unit: names for unit, names in first.items() if len(names) > 1}
    return {"classes": rows, "distinct": len(first), "shared": shared}


def _finite(value: float) -> float | None:
    return value if abs(value) != float("inf") else None
