"""What went with the removed units: each class's direct evidence, beside what the exam says the class lost.

A unit's evidence for class c is its mean activation on the class's images, where the head reads, times what it writes for c
beyond what it writes for all. It is taken over the blocks that carry classes; a class's share is signed: above 0 where the
removed units spoke for it.
"""

from __future__ import annotations

import statistics

import numpy as np

from vitprune.core.reading import Json, read_json
from vitprune.runs.seeing import passes
from vitprune.runs.seeing.looking import Looking
from vitprune.see import drift, firing

PERMUTATIONS_SEED = 0


def of(looking: Looking) -> Json:
    """Class set → its removed evidence per class, the exam's losses, and whether the one follows the other."""
    lost = read_json(looking.run.folder.stage_folder("evaluate") / "rows.json")["per_class"]
    return {group or "": _of_set(looking, group, lost.get(group or "", [])) for group in looking.kept}


def _of_set(looking: Looking, group: str | None, rows: list[Json]) -> Json:
    shares, told = _shares(looking, group), _between(looking, group)
    if not shares:
        return {"blocks": [], "classes": [], **told}
    known = {row["class"]: row for row in rows}
    classes = []
    for output, share in shares.items():
        row = known.get(looking.name(output), {})
        loss = None if row.get("slim_top1") is None else 100 * (row["dense_top1"] - row["slim_top1"])
        classes.append({"class": looking.name(output), "share": share, "lost_points": loss, "n": row.get("n")})
    pairs = [(row["share"], row["lost_points"]) for row in classes if row["lost_points"] is not None]
    shared, lossy = (np.array([pair[k] for pair in pairs]) for k in (0, 1))
    rank = drift.rank_correlation(shared, lossy, PERMUTATIONS_SEED)
    found: Json = {"blocks": [i for i, one in enumerate(looking.left["aligned"]) if one is not None]}
    found |= {"read": _read(looking), "classes": classes, "share": statistics.fmean(shares.values())}
    found |= {"rho": rank and rank[0], "p": rank and rank[1], "classes_compared": len(pairs)}
    return found | told


def _read(looking: Looking) -> str:
    """Where the head reads."""
    return passes.seen(looking)[0].asked.reads[0]


def _shares(looking: Looking, group: str | None) -> dict[int, float]:
    """Per class of the set which share of its direct evidence was that of removed units."""
    read, blocks = _read(looking), passes.seen(looking)
    gone: dict[int, float] = {}
    every: dict[int, float] = {}
    targets = looking.run.classes.sets()[group]
    for i, aligned in enumerate(looking.left["aligned"]):
        if aligned is None:
            continue
        apart = (aligned - aligned.mean(1, keepdim=True)).numpy()
        for output, mean in firing.means_of(blocks[i], read).items():
            if output in targets:
                removed, whole = firing.removed_evidence(mean, apart[:, output], looking.kept[group][i])
                gone[output], every[output] = gone.get(output, 0.0) + removed, every.get(output, 0.0) + whole
    return {output: gone[output] / whole for output, whole in every.items() if whole > 0}


def _between(looking: Looking, group: str | None) -> Json:
    """Median share of a unit's variance that lies between classes, of removed and of kept units, where the head reads."""
    fires = looking.left["fires"][_read(looking)]
    between = np.concatenate([one.between for one in fires])
    kept = np.concatenate(looking.kept[group])
    found = {name: between[mask & ~np.isnan(between)] for name, mask in (("removed", ~kept), ("kept", kept))}
    medians = {name: float(np.median(values)) if len(values) else None for name, values in found.items()}
    return {"between": medians | {"chance": fires[0].chance, "n": {k: len(v) for k, v in found.items()}}}
