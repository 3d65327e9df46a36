"""The part `simulator`: whether classes, attributes and names tell what units do on images that they were not made from.

Of whole images for every unit: the mean of the image's class, and a sum of attributes. Of maps for the shown units: the
class's mean map, and for names of a CLIP or a server what these say of the cells of an image. Beside every score stands
that of explanations of other units.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from vitprune.core.reading import Json
from vitprune.runs.seeing.looking import Looking
from vitprune.runs.seeing.parts.naming import cells, collect, namers, names
from vitprune.runs.seeing.parts.naming.clip_names import ClipNames
from vitprune.runs.seeing.parts.naming.collect import Activations
from vitprune.runs.seeing.parts.naming.server_names import ServerNames, replies
from vitprune.see.naming import scores, sparse


def work(looking: Looking) -> None:
    """Nothing; a column of the class means' score and its control, and in see.json every predictor's figures."""
    found = collect.activations(looking)
    labels, held = found.labels, found.held
    told: Json = {"tokens": found.tokens, "images": names.counts(found), "others": scores.OTHERS}

    def of_classes(i: int) -> np.ndarray:
        return scores.by_class(found.values[i][found.fit], labels[found.fit], labels[held])

    every, score, control = _predictor(looking, found, of_classes)
    told["predictors"] = {"labels": every}
    looking.column("simulated", score)
    looking.column("simulated_control", control)
    attributes = namers.attributes_of(looking, found)
    if attributes is not None:
        table = attributes.table

        def of_attributes(i: int) -> np.ndarray:
            return sparse.fit(table[found.fit], found.values[i][found.fit]).predicted(table[held])

        told["predictors"]["attributes"] = _predictor(looking, found, of_attributes)[0]
    told["maps"] = {"labels": cells.of_classes(looking, found)}
    namer = looking.left["namer"]
    if isinstance(namer, ClipNames | ServerNames):
        told["maps"][looking.see.names.by] = cells.of_names(looking, found, namer)
        looking.files += [path for path in replies(looking) if path not in looking.files]
    looking.told["simulator"] = told


def _predictor(
    looking: Looking, found: Activations, predict: Callable[[int], np.ndarray]
) -> tuple[Json, list[np.ndarray], list[np.ndarray]]:
    """Per block and per class set the figures of a predictor of whole images, and every unit's score and control."""
    blocks, score, control = [], [], []
    for i in range(len(looking.sites)):
        true = found.values[i][found.held]
        if len(true) < 2:
            nothing = np.full(looking.sites[i].size, np.nan)
            row, one, other = scores.told(np.nan, np.nan, why="fewer than two images for scores"), nothing, nothing
        else:
            row, one, other = names.block_figures(predict(i), true, looking.see.units.seed + i)
        blocks.append({"block": i, **row})
        score.append(one)
        control.append(other)
    whole, sets = np.concatenate(score), {}
    for group, kept in looking.kept.items():
        mask = np.concatenate(kept)
        sets[group or ""] = {"kept": _middle(whole[mask]), "removed": _middle(whole[~mask])}
    return {"blocks": blocks, "sets": sets}, score, control


def _middle(values: np.ndarray) -> Json:
    known = values[~np.isnan(values)]
    return {"median": float(np.median(known)) if len(known) else None, "n": len(known)}
