"""The part `alignment`: which classes each unit writes, which it fires for, and what went with the removed units.

The two are never one: a unit that writes a class need not fire for it. Where the units of a block are no closer to the
classes than to random heads, nothing is said of what they write.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vitprune.core.reading import Json
from vitprune.exam import metrics
from vitprune.recipe.seeing import Site
from vitprune.runs.seeing import passes
from vitprune.runs.seeing.looking import Looking
from vitprune.runs.seeing.parts import evidence
from vitprune.see import alignment, firing
from vitprune.see.alignment import Chance, Form, Written
from vitprune.see.firing import TOP, Fires
from vitprune.see.pictures import reading

NULL_SEED = 0


@dataclass(frozen=True, slots=True)
class Against:
    """Per block what its units write: [H, C] held against the classes, the same to be ranked (of units whose sign is nobody's
    choice the larger of both signs), the test against random heads, which write anything, and how long it is."""

    aligned: list[Tensor]
    ranked: list[Tensor]
    null: list[Chance]
    alive: list[Tensor]
    lengths: list[Tensor]


@torch.no_grad()
def against(written: Written, form: Form, free: Sequence[bool], seed: int) -> Against:
    """What every block of `written` writes, by form; `free`: blocks whose units may have either sign."""
    other = dataclasses.replace(written, values=[-values for values in written.values])
    aligned = [written.aligned(i, form).float() for i in range(len(written.values))]
    ranked = [
        torch.maximum(one, other.aligned(i, form).float()) if any_sign else one
        for i, (one, any_sign) in enumerate(zip(aligned, free, strict=True))
    ]
    null = [
        alignment.chance(torch.cat([values, -values]) if any_sign else values, written.head, seed + i)
        for i, (values, any_sign) in enumerate(zip(written.values, free, strict=True))
    ]
    alive = [~alignment.dead(values) for values in written.values]
    return Against(aligned, ranked, null, alive, [values.norm(dim=1) for values in written.values])


def work(looking: Looking) -> None:
    """Nothing; alignment.safetensors, the columns of both, and what see.json says of blocks, classes and class sets."""
    form = looking.see.alignment
    found = against(alignment.written(looking.model), form, [reading.gated(s) for s in looking.sites], NULL_SEED)
    looking.save("alignment", saved(found))
    writes, blocks = tell(looking, found)
    looking.left["writes"] = writes
    pairs = zip(found.ranked, found.alive, strict=True)
    looking.left["first"] = [one.masked_fill(~lives[:, None], float("-inf")).argmax(0).cpu() for one, lives in pairs]
    carrying = [chance.carries for chance in found.null]
    for name, values in (("aligned", found.aligned), ("ranked", found.ranked)):
        looking.left[name] = [one.cpu() if there else None for one, there in zip(values, carrying, strict=True)]
    looking.told["alignment"] = {
        "form": form,
        "heads": alignment.HEADS,
        "enough": alignment.ENOUGH,
        "blocks": blocks,
        **_classes(looking, found),
        "evidence": evidence.of(looking),
    }


def tell(looking: Looking, found: Against, of: Site = "ffn") -> tuple[list[np.ndarray], list[Json]]:
    """What every unit writes, [H, up to 3] classes of each block, and what is said of the blocks; the columns are made."""
    looking.column("norm", [one.cpu().numpy().astype(np.float64) for one in found.lengths], of)
    looking.column("dead", [["no" if lives else "yes" for lives in block.tolist()] for block in found.alive], of)
    each = list(zip(found.ranked, found.alive, found.null, strict=True))
    writes = [_writes(one, lives, chance) for one, lives, chance in each]
    _columns(looking, "writes", writes, of)
    blocks = [_block(i, chance, int((~lives).sum())) for i, (_, lives, chance) in enumerate(each)]
    first = [one.argmax(1).cpu().numpy() for one in found.ranked]
    _fires(looking, first, [one.cpu().numpy() for one in found.alive], blocks, of)
    return writes, blocks


def saved(found: Against) -> dict[str, np.ndarray]:
    """What is kept of it in a file."""
    half = np.finfo(np.float16)
    each = [(one.cpu().numpy(), length.cpu().numpy()) for one, length in zip(found.aligned, found.lengths, strict=True)]
    arrays = {f"alignment.{i}": one.clip(half.min, half.max).astype(np.float16) for i, (one, _) in enumerate(each)}
    return arrays | {f"norm.{i}": length for i, (_, length) in enumerate(each)}


def _writes(aligned: Tensor, alive: Tensor, chance: Chance) -> np.ndarray:
    """Per unit the classes it writes most, [H, up to 3]; −1 where nothing may be said."""
    order = torch.sort(aligned, dim=1, descending=True, stable=True).indices[:, :TOP]
    said = order if chance.carries else torch.full_like(order, -1)
    made: np.ndarray = torch.where(alive[:, None], said, -1).cpu().numpy()
    return made


def _columns(looking: Looking, name: str, classes: list[np.ndarray], of: Site) -> None:
    for rank in range(min(block.shape[1] for block in classes)):
        blocks = [[looking.name(c) if c >= 0 else None for c in block[:, rank].tolist()] for block in classes]
        looking.column(f"{name}_{rank + 1}", blocks, of)


def _block(i: int, chance: Chance, dead: int) -> Json:
    made = {"block": i, "found": chance.found, "random": chance.mean, "random_sd": chance.sd, "z": chance.z}
    return made | {"carries": chance.carries, "dead": dead}


def _fires(looking: Looking, first: list[np.ndarray], alive: list[np.ndarray], blocks: list[Json], of: Site) -> None:
    """Columns `fires for`, and per block how often that is what a unit writes."""
    found: dict[str, list[Fires]] = {}
    seen = passes.seen(looking, of)
    for read in seen[0].asked.reads:
        found[read] = [firing.fires(block, read) for block in seen]
        _columns(looking, f"fires_{read}", [one.classes for one in found[read]], of)
        looking.column(f"between_{read}", [one.between for one in found[read]], of)
    if of == "ffn":
        looking.left["fires"] = found
    for i, block in enumerate(blocks):
        block["agreement"] = {read: _agreement(first[i], found[read][i], alive[i], looking) for read in found}


def _agreement(first: np.ndarray, fires: Fires, alive: np.ndarray, looking: Looking) -> Json:
    """How many units fire most for the class that they write most, with an interval; chance is one in as many classes. Of
    every block: where it is at chance, that is what it shows."""
    same, n = int((first == fires.classes[:, 0])[alive].sum()), int(alive.sum())
    classes = len(set(looking.run.images.labels[looking.index].tolist()))
    found: Json = {"share": same / n, "ci95": list(metrics.wilson(same, n))} if n else {"share": None, "ci95": []}
    return found | {"n": n, "chance": 1 / classes}


def _classes(looking: Looking, found: Against) -> dict[str, object]:
    """The strongest units of every class of the run, and the classes whose first one is the same."""
    targets = looking.run.classes.every()
    pairs = zip(found.ranked, found.null, strict=True)
    narrowed = [one[:, targets] if chance.carries else None for one, chance in pairs]
    best = alignment.best_units(narrowed, found.alive)
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
