"""The part `names`: what every unit is called, and how far the name tells its activation on images it was not made from.

A name is a claim. Beside its score stands that of names of other units of the block, which is what any name reaches.
"""

from __future__ import annotations

import numpy as np

from vitprune.core.reading import Json
from vitprune.runs.seeing.looking import Looking
from vitprune.runs.seeing.parts.naming import collect
from vitprune.runs.seeing.parts.naming.clip_names import ClipNames
from vitprune.runs.seeing.parts.naming.collect import Activations
from vitprune.runs.seeing.parts.naming.namers import Labels, Named, Namer
from vitprune.runs.seeing.parts.naming.server_names import ServerNames, replies
from vitprune.see.naming import scores
from vitprune.see.naming.scores import Sums

SILENT = "never changes on these images"


def work(looking: Looking) -> None:
    """Nothing; columns of names and scores, and what see.json says of them by block and by shown unit."""
    found = collect.activations(looking)
    namer = _namer(looking, found)
    looking.left["namer"] = namer
    names: list[list[Named | None]] = []
    figures: list[tuple[np.ndarray, np.ndarray]] = []
    blocks, units = [], []
    for i in range(len(looking.sites)):
        names.append(_of_block(namer, found, i))
        predicted = namer.predicted(i)
        row, score, control = _scored(found, i, predicted, looking.see.units.seed)
        figures.append((score, control))
        blocks.append({"block": i, "named": sum(one is not None for one in names[i]), **row})
        units += [_unit(found, (i, j), names[i][j], predicted, score, control) for j in found.shown.get(i, [])]
    looking.left["names"] = names
    looking.column("name", [[None if one is None else one.text for one in block] for block in names])
    if any(not np.isnan(score).all() for score, _ in figures):
        looking.column("name_score", [score for score, _ in figures])
        looking.column("name_control", [control for _, control in figures])
    told: Json = {"by": looking.see.names.by, "tokens": found.tokens, "images": counts(found)}
    looking.files += replies(looking)
    looking.told["names"] = told | {"blocks": blocks, "units": units} | namer.about()


def _namer(looking: Looking, found: Activations) -> Namer:
    by = looking.see.names.by
    if by == "clip":
        return ClipNames.of(looking, found)
    return ServerNames.of(looking, found) if by == "server" else Labels.of(looking, found)


def counts(found: Activations) -> Json:
    """How many images, and how many of them are for names and how many for scores."""
    return {"n": len(found.index), "for_names": int(found.fit.sum()), "for_scores": int(found.held.sum())}


def moves(values: np.ndarray) -> np.ndarray:
    """Which units change at all, [H]."""
    wide = values.astype(np.float64)
    square = np.maximum((wide * wide).mean(0), 1e-30)
    made: np.ndarray = wide.var(0) > scores.FLAT * square
    return made


def _of_block(namer: Namer, found: Activations, i: int) -> list[Named | None]:
    """The names of a block; none for a unit that never changes."""
    alive = moves(found.values[i])
    return [one if lives else None for one, lives in zip(namer.block(i), alive, strict=True)]


def _scored(found: Activations, i: int, predicted: np.ndarray | None, seed: int) -> tuple[Json, np.ndarray, np.ndarray]:
    """Of a block the figures for see.json, and every unit's score and control."""
    true = found.values[i][found.held]
    nothing = np.full(true.shape[1], np.nan)
    if predicted is None or len(true) < 2:
        return {}, nothing, nothing
    return block_figures(predicted, true, seed + i)


def block_figures(predicted: np.ndarray, true: np.ndarray, seed: int) -> tuple[Json, np.ndarray, np.ndarray]:
    """Of a block's predictions and truth [n, H]: medians with an interval over images, and every unit's score and control."""
    sums = Sums.of(predicted, true)
    score, control = sums.correlation(), scores.shuffled(predicted, true, seed)
    known = score[~np.isnan(score)]
    low, high = (float(v) for v in np.quantile(known, (0.1, 0.9))) if len(known) else (None, None)
    interval = sums.interval(seed, middle=True) if len(known) else np.full(2, np.nan)
    middle = float(np.median(known)) if len(known) else np.nan
    others = float(np.nanmedian(control)) if not np.isnan(control).all() else np.nan
    row = scores.told(middle, others, interval, "no unit with a name that changes") | {"q10": low, "q90": high}
    return row | {"n": len(known), "null": int(np.isnan(score).sum())}, score, control


def _unit(
    found: Activations,
    unit: tuple[int, int],
    name: Named | None,
    predicted: np.ndarray | None,
    score: np.ndarray,
    control: np.ndarray,
) -> Json:
    i, j = unit
    made: Json = {"unit": f"{i}:{j}", "name": None if name is None else name.text}
    if name is None:
        alive = moves(found.values[i][:, [j]])[0]
        return made | {"why": None if alive else SILENT}
    for key, pairs in (("parts", name.parts), ("other", name.other)):
        made[key] = [{"concept": text, "weight": weight} for text, weight in pairs]
    if predicted is None:
        return made
    ends = Sums.of(predicted[:, [j]], found.values[i][found.held][:, [j]]).interval(j)[:, 0]
    return made | scores.told(float(score[j]), float(control[j]), ends)
