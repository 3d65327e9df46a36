"""What a look at the units costs: its passes with what they count, timed on a few batches, and what follows from them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from vitprune.model import families
from vitprune.model.inside import hooks
from vitprune.model.sites.attention import attention_sites
from vitprune.recipe.seeing import See
from vitprune.runs.costs.facts import left
from vitprune.runs.costs.outline import MB, Outline, Stage, Work
from vitprune.runs.costs.rates import rows, sums_of, timed
from vitprune.runs.seeing import passes, targets
from vitprune.runs.seeing.parts import blocks, masks
from vitprune.runs.state.run import Run
from vitprune.see import alignment, exemplars
from vitprune.see.drift import Pairs
from vitprune.see.histogram import BINS
from vitprune.see.seen import Asked, Seen

UNITS, DIRECTIONS, DRIFT = "see units", "see attention", "see drift"  # what is timed
Timed = Callable[[Tensor, Tensor], float]
# Passes of an image that the parts make beside the timed ones, of a whole model about.
PASSES = {"readout": 1.5, "maps": 1.0, "masks": 1.0, "concepts": 4.0, "blocks": 2.0, "names": 1.2, "simulator": 0.5}
STRIP = 12  # passes of one image for a shown unit's maps
DELETED = 8  # passes of an image whose pixels are blackened, the mask's and those of random areas
LONG = 1.0  # seconds of a timed batch, about: lists and counts take as long for one image as for many
UNIT = 2e-4  # seconds of a unit's rows, names and picture, about
THUMBNAIL = 3e-3  # megabytes of an image in the atlas


def looks(run: Run) -> dict[str, Timed]:
    """What is to be timed for the run's look, by what the rate is filed under."""
    see = run.recipe.see
    if see is None:
        return {}
    found: dict[str, Timed] = {}
    if {"exemplars", "alignment", "maps", "masks", "blocks", "stimuli"} & set(see.parts):
        found[UNITS] = functools.partial(_looked, run, False)
        if "attention" in see.sites:
            found[DIRECTIONS] = functools.partial(_looked, run, True)
    return found | ({DRIFT: functools.partial(_compared, run)} if "drift" in see.parts else {})


def sums(run: Run) -> list[tuple[str, bool]]:
    """The sums over images that the look needs: those that the stand-ins are found from."""
    return [("obs", False)] if run.recipe.see is not None and "drift" in run.recipe.see.parts else []


def _looked(run: Run, attention: bool, x: Tensor, y: Tensor) -> float:
    """Seconds an image of the pass that looks at every unit, or at every direction of attention."""
    model, see = run.loaded.model, run.recipe.see
    assert see is not None
    layout, batch = families.token_layout(model), passes.batch_of(run)
    sites = attention_sites(model) if attention else []
    widths = [s.heads * s.dim for s in sites] if attention else [s.size for s in run.sites]
    how = see.exemplars
    asked = [
        Asked(layout.prefix, layout.class_token, how.k, exemplars.draws(batch, width, how.k + how.random, [0]))
        for width in widths
    ]
    found, labels = [Seen.nothing(one) for one in asked], y.cpu().numpy()

    def look(position: int, hidden_BTH: Tensor) -> None:
        count = len(hidden_BTH)
        found[position].look(hidden_BTH, 0, np.arange(count), labels[np.arange(count) % len(labels)])

    def work(count: int) -> None:
        with torch.no_grad(), passes.hooked(model, run.sites, attention, look):
            model(rows(x, count))

    return timed(work, batch, LONG)


def _compared(run: Run, x: Tensor, _: Tensor) -> float:
    """Seconds an image of one pass and of comparing every unit with itself."""
    model = run.loaded.model

    def compare(_: int, hidden_BTH: Tensor) -> None:
        flat = hidden_BTH.flatten(0, 1)
        Pairs.of(flat, flat)

    def work(count: int) -> None:
        with torch.no_grad(), hooks.hidden_units(model, run.sites, compare):
            model(rows(x, count))

    return timed(work, passes.batch_of(run), LONG)


def see(o: Outline) -> Stage:
    """Every part that is asked for, of every model that is made."""
    how = o.recipe.see
    if how is None:
        return Stage()
    works: list[Work] = []
    for budget in o.budgets:
        works += _works(o, how, left(o.recipe, o.shape, budget, None))
    units = sum(layer.units for layer in o.shape.ffns)
    each = 4 * BINS + 24 * (how.exemplars.k + how.exemplars.random) + 8 * len(o.images.union.per_class)
    disk = _images(o, how) * THUMBNAIL + units * (300 + 2 * o.shape.outputs) / MB
    return Stage(tuple(works), o.pass_mb + o.cache_mb + units * each / MB, disk * len(o.budgets))


def _images(o: Outline, how: See) -> int:
    return o.images.union.first(how.images.per_class)


def _works(o: Outline, how: See, share: float) -> list[Work]:
    """Those of one look at a model with a share of the dense one's multiply-adds."""
    n, rates, parts = _images(o, how), o.rates.criteria, set(how.parts)
    split = max(1, math.ceil(n / passes.SHARD))
    units = sum(layer.units for layer in o.shape.ffns)
    seen = [Work(name, n * rates[name] + o.decoding(n), split) for name in (UNITS, DIRECTIONS) if name in rates]
    if "drift" in parts:
        compared = n * rates.get(DRIFT, o.rates.forward) * (1 + share) / 2 + o.forward(n) + o.decoding(n)
        seen += [Work(DRIFT, len(o.images.sets) * compared, split)]
        seen += [Work("see twins", n * rates.get(sums_of("obs", False), o.rates.forward) + o.decoding(n), split)]
    for part in sorted(parts & PASSES.keys()):
        seen.append(Work(f"see {part}", o.forward(n * PASSES[part]) + o.decoding(n) + _more(o, how, part), split))
    if "alignment" in parts:
        classes = min(o.shape.outputs, alignment.MOST)
        flops = sum(2 * layer.units * layer.width for layer in o.shape.ffns) * alignment.HEADS * classes
        seen.append(Work("see alignment", flops / o.rates.product))
    if "stimuli" in parts:
        s = how.stimuli
        images = 2 * min(s.classes, len(o.images.union.per_class)) * s.seeds
        seen.append(Work("see stimuli", images * s.steps * o.rates.gradient, images))
    return [*seen, Work("see pictures", units * UNIT + n * o.rates.read)]


def _more(o: Outline, how: See, part: str) -> float:
    """Seconds of a part beside its passes over all images."""
    classes = len(o.images.union.per_class)
    if part == "maps":
        tops = min(targets.SHOWN, classes * how.units.top_per_class)
        return o.forward(STRIP * (how.units.removed + how.units.kept + tops))
    if part == "masks":
        return o.forward(DELETED * min(masks.JUDGED, how.images.per_class) * min(masks.CLASSES, classes))
    if part == "blocks":
        return o.forward(0.5 * min(blocks.CLASSES, classes) * how.images.per_class)
    return 0.0
