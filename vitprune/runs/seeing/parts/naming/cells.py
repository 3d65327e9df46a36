"""Predicted against true maps of the shown units: class means of maps, and what names say of the cells of an image.

Legend: N images, M of them whose cells are predicted, P places (patches or cells), U shown units.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vitprune.core.reading import Json
from vitprune.runs.seeing.looking import Looking
from vitprune.runs.seeing.parts.naming import grids
from vitprune.runs.seeing.parts.naming.clip_names import ClipNames
from vitprune.runs.seeing.parts.naming.collect import Activations
from vitprune.runs.seeing.parts.naming.server_names import ServerNames
from vitprune.see.naming import marked, prompts, scores
from vitprune.see.naming.scores import Sums

Unit = tuple[int, int]  # block, number in the dense model
SILENT = "never fires on these images"


def of_classes(looking: Looking, found: Activations) -> Json:
    """Of each shown unit the mean map of an image's class, at its patches."""
    fit, held = found.fit, found.held
    if held.sum() < 2:
        return {"units": [], "median": None, "control": None, "n": 0, "images": int(held.sum())}
    true: dict[Unit, np.ndarray] = {}
    predicted: dict[Unit, np.ndarray] = {}
    for i, units in found.shown.items():
        means = scores.by_class(found.maps[i][fit], found.labels[fit], found.labels[held])
        for k, j in enumerate(units):
            true[i, j], predicted[i, j] = found.maps[i][held][:, :, k], means[:, :, k]
    shape: Shapes = {unit: (one.shape[1],) for unit, one in true.items()}
    return _told(true, lambda name, at: predicted[name], shape, looking.see.units.seed) | {"images": int(held.sum())}


def of_names(looking: Looking, found: Activations, namer: ClipNames | ServerNames) -> Json:
    """Of each shown unit that has a name, what the name says of the cells of the same images for all of them."""
    laid = grids.laid(looking, found)
    if isinstance(laid, str):
        return {"units": [], "median": None, "control": None, "n": 0, "why": laid}
    texts = {
        (i, j): name.text for i, units in found.shown.items() for j in units if (name := looking.left["names"][i][j])
    }
    at = chosen(found, looking.see.simulator.images, looking.see.units.seed)
    true, shape = {}, {}
    for i, units in found.shown.items():
        small = marked.celled(laid[i][at])
        for k, j in enumerate(units):
            if (i, j) in texts:
                true[i, j], shape[i, j] = small[:, k].reshape(len(at), -1), small.shape[2:]
    pictures = [grids.picture(looking, int(found.index[n])) for n in at]
    predict = _by_clip if isinstance(namer, ClipNames) else _by_server
    predicted = predict(looking, namer, pictures, texts, shape) if len(at) > 1 else {}
    if not predicted:
        return {"units": [], "median": None, "control": None, "n": 0, "images": len(at)}
    told = _told(true, lambda name, at: predicted[name, at], shape, looking.see.units.seed) | {"images": len(at)}
    if isinstance(namer, ServerNames):
        told["server"] = namer.told() | {"prompt": prompts.about(prompts.SIMULATE)}
    return told


def chosen(found: Activations, count: int, seed: int) -> np.ndarray:
    """Which images, places among N: half of them the shown units' strongest among those for scores, each unit's next in turn;
    the others a seeded draw of the rest. The same for all units, so that every name is tried on every unit's images."""
    held = np.flatnonzero(found.held)
    high = [found.maps[i][held][:, :, k].max(1) for i, units in found.shown.items() for k in range(len(units))]
    order = [held[np.argsort(-one, kind="stable")].tolist() for one in high]
    taken: list[int] = []
    for place in range(len(held) if order else 0):
        for one in order:
            if len(taken) < count // 2 and one[place] not in taken:
                taken.append(one[place])
    rest = np.random.default_rng([seed, count]).permutation(np.setdiff1d(held, taken))
    return np.array([*taken, *rest[: count - len(taken)].tolist()], np.int64)


Shapes = dict[Unit, tuple[int, ...]]
Said = dict[tuple[Unit, tuple[int, ...]], np.ndarray]


def _by_clip(
    looking: Looking, namer: Any, pictures: Sequence[np.ndarray], texts: dict[Unit, str], shape: Shapes
) -> Said:
    """What each name says of the cells of every grid that there is."""
    units, made = list(texts), Said()
    for rows, columns in sorted(set(shape.values())):
        cut = [marked.crops(picture, rows, columns) for picture in pictures]
        said = namer.patches(cut, [texts[unit] for unit in units])
        made |= {(unit, (rows, columns)): said[:, :, n] for n, unit in enumerate(units)}
    return made


def _by_server(
    looking: Looking, namer: Any, pictures: Sequence[np.ndarray], texts: dict[Unit, str], shape: Shapes
) -> Said:
    """What the server makes of each name on the cells of its own grid; held against `max_calls` before."""
    server = namer.server
    drawn = {grid: [marked.gridded(one, *grid) for one in pictures] for grid in set(shape.values())}
    asked = {
        unit: [prompts.simulating(f"{unit[0]}:{unit[1]}", text, one, *shape[unit]) for one in drawn[shape[unit]]]
        for unit, text in texts.items()
    }
    every = [prompt for own in asked.values() for prompt in own]
    new = sum(server.known(prompt) is None for prompt in every)
    looking.run.reporter.say(
        f"see: simulator: {new} requests to {server.place} about {len(texts)} units, an image each"
    )
    if new:
        server.afford(new, "trying the names")
    replies = iter(
        [server.ask(prompt)["cells"] for prompt in looking.run.reporter.track(every, "see server", len(every))]
    )
    return {(unit, shape[unit]): np.array([next(replies) for _ in own], np.float64) for unit, own in asked.items()}


def _told(
    true: dict[Unit, np.ndarray],
    predicted: Callable[[Unit, tuple[int, ...]], np.ndarray],
    shape: Shapes,
    seed: int,
) -> Json:
    """Per unit its score with an interval, and the mean score of other units' explanations on it, those of its own block
    first; medians over units."""
    rows: list[Json] = []
    for unit, own in true.items():
        sums = Sums.of(predicted(unit, shape[unit])[:, :, None], own[:, :, None])
        score, ends = float(sums.correlation()[0]), sums.interval(seed)[:, 0]
        others = _others(unit, shape, seed)
        found = [
            Sums.of(predicted(other, shape[unit])[:, :, None], own[:, :, None]).correlation()[0] for other in others
        ]
        known = [one for one in found if one == one]
        control = float(np.mean(known)) if known else np.nan
        why = SILENT if own.max() <= 0 else None
        explained = float(sums.explained()[0])
        row = scores.told(score, control, ends, why) | {"explained": None if explained != explained else explained}
        rows.append({"unit": f"{unit[0]}:{unit[1]}", "others": len(known), **row})
    known_rows = [row for row in rows if row["score"] is not None]
    controls = [row["control"] for row in known_rows if row["control"] is not None]
    middle = float(np.median([row["score"] for row in known_rows])) if known_rows else None
    return {
        "units": rows,
        "median": middle,
        "control": float(np.median(controls)) if controls else None,
        "n": len(known_rows),
    }


def _others(unit: Unit, shape: Shapes, seed: int) -> list[Unit]:
    """At most 20 other units of the same grid in a seeded order, those of the same block first."""
    pool = [other for other in shape if other != unit and shape[other] == shape[unit]]
    order = np.random.default_rng([seed, *unit]).permutation(len(pool))
    drawn = sorted((pool[n] for n in order), key=lambda other: other[0] != unit[0])
    return drawn[: scores.OTHERS]
