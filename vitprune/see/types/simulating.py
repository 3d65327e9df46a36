"""How well explanations of units tell their strengths on samples that they were not made from.

As `see/naming/scores.py`, over the image's tokens or the text's tokens of all samples pooled, texts of any length. Beside
every score that of other units' explanations on the same truth, which is what any explanation reaches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from vitprune.core.reading import Json
from vitprune.see.naming import scores
from vitprune.see.naming.scores import Sums
from vitprune.see.types.shown import Unit

SILENT = "never fires on these samples"
Values = Sequence[np.ndarray]  # of every sample, at its places


def sums(predicted: Values, true: Values) -> Sums:
    """Of one unit's predictions and truth."""
    pairs = [(p.astype(np.float64), y.astype(np.float64)) for p, y in zip(predicted, true, strict=True)]
    columns = [[p.sum(), y.sum(), (p * p).sum(), (y * y).sum(), (p * y).sum()] for p, y in pairs]
    found = np.array(columns).reshape(len(pairs), 5)
    return Sums(np.array([len(y) for _, y in pairs]), *(found[:, k : k + 1] for k in range(5)))


def scored(predicted: Mapping[Unit, Values], true: Mapping[Unit, Values], seed: int) -> Json:
    """Per unit its score with an interval over samples and its control, and the medians of both. Null, with a reason, where
    the truth or the prediction never changes; of fewer than two samples there is nothing."""
    rows: list[Json] = []
    for unit, said in predicted.items():
        own = true[unit]
        if len(own) < 2:
            continue
        found = sums(said, own)
        others = _others(unit, list(predicted), seed)
        known = [r for r in (float(sums(predicted[o], own).correlation()[0]) for o in others) if r == r]
        control = float(np.mean(known)) if known else float("nan")
        why = SILENT if max((y.max() for y in own if len(y)), default=0.0) <= 0 else None
        row = scores.told(float(found.correlation()[0]), control, found.interval(seed)[:, 0], why)
        rows.append({"unit": unit.name, "others": len(known), **row})
    some = [row for row in rows if row["score"] is not None]
    middle = {key: [row[key] for row in some if row[key] is not None] for key in ("score", "control")}
    medians = {key: float(np.median(values)) if values else None for key, values in middle.items()}
    return {"units": rows, "median": medians["score"], "control": medians["control"], "n": len(some)}


def _others(unit: Unit, every: Sequence[Unit], seed: int) -> list[Unit]:
    """At most 20 other units in a seeded order, those of the same block first."""
    pool = [other for other in every if other != unit]
    order = np.random.default_rng([seed, unit.block, unit.number]).permutation(len(pool))
    return sorted((pool[n] for n in order), key=lambda other: other.block != unit.block)[: scores.OTHERS]
