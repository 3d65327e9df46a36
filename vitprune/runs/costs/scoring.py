"""What reading, scoring and the statistics of a run cost."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from vitprune.criteria.catalog import CRITERIA
from vitprune.pruning.repair.names import needs_moments
from vitprune.recipe.recipe import Recipe
from vitprune.runs.choose import SHARE
from vitprune.runs.costs import formulas
from vitprune.runs.costs.facts import Set, left
from vitprune.runs.costs.outline import MB, TRAINING, Outline, Stage, Work
from vitprune.runs.costs.rates import name_of, sums_of
from vitprune.runs.stages import sums
from vitprune.runs.stages.image_scores import SHARD, Discovery

READ = 1000  # images that are read in a part, about
ELIMINATE = ("obs", "fisher-obs")  # criteria whose curves come from eliminations


def split(o: Outline) -> Stage:
    """All images read once."""
    return Stage(
        (Work("reading images", o.images.count * o.rates.read, math.ceil(o.images.count / READ)),),
        0.0,
        o.images.count * 80 / MB,
    )


def discover(o: Outline, of: Sequence[Set] | None = None) -> Stage:
    """Every criterion, single images and sums; of the class sets, or of those given."""
    sets = o.images.sets_and_union if of is None else of
    once = Work("decoding", o.images.union.probe * o.rates.prepare) if o.images.kept else Work("decoding", 0.0)
    works, disk = [once], 0.0
    for found in o.discoveries:
        images = o.images.union.first(found.per_class)
        parts = max(1, math.ceil(images / SHARD))
        works.append(o.work(found.criterion, _scoring(o, found, images), parts, found.name(found.ts[0])))
        classes = len(o.images.union.per_class)
        disk += sum(formulas.scores_bytes(o.shape, classes, images, t) for t in found.ts) / MB
    memory, most = o.pass_mb + o.cache_mb, 0.0
    for name in names_of(o.recipe):
        if CRITERIA[name].whole:
            works += _whole(o, name, sets)
            summed = o.workers * _sums_mb(o, name)
            memory, most = max(memory, o.pass_mb + o.cache_mb + summed), max(most, _sums_mb(o, name))
            disk += formulas.curves_bytes(o.shape, _attention(o, name)) * len(sets) / MB
    return Stage(tuple(_once(works)), memory, disk + _parts_mb(o, most))


def names_of(recipe: Recipe) -> list[str]:
    """The criteria that are worked out, each once; of `auto` all that it chooses among."""
    own = [recipe.criterion.name, *recipe.baselines]
    names = [name for name in own if name != "auto"] + (list(recipe.criterion.among) if "auto" in own else [])
    return [name for name in dict.fromkeys(names) if name != "random"]


def _attention(o: Outline, name: str) -> bool:
    return o.recipe.prunes_attention and CRITERIA[name].attention is not None


def _sums_mb(o: Outline, name: str) -> float:
    """Megabytes of a criterion's sums of all sites, as each worker has them that makes a part of them."""
    if not CRITERIA[name].summed:
        return 0.0
    return formulas.sums_bytes(o.shape, _attention(o, name), "gradients" in CRITERIA[name].needs) / MB


def _scoring(o: Outline, found: Discovery, images: int) -> float:
    """Seconds of one discovery: every image at every node, for each t, and where candidates go one by one each of them."""
    candidates = 1
    if getattr(found.how, "candidates", "") == "each" or found.criterion == "knowledge-attribution":
        units = max(layer.units for layer in o.shape.ffns)
        candidates = 1 + min(found.how.shortlist or units, units)
    seconds = found.nodes * len(found.ts) * candidates * o.rates.criteria[name_of(found)]
    return images * seconds + o.decoding(images)


def _whole(o: Outline, name: str, sets: Sequence[Set]) -> Iterator[Work]:
    """What a criterion of weights, or of images as a whole, comes to for each class set."""
    row, both = CRITERIA[name], _attention(o, name)
    for one in sets:
        images, label = one.first(o.recipe.criterion.probe_per_class), one.name or "all"
        if row.summed:
            sum_name = sums_of(name, both)
            seconds = images * o.rates.criteria[sum_name] + o.decoding(images)
            yield o.work(f"{sum_name} {label}", seconds, math.ceil(images / o.batch), f"{sum_name} {label}")
        elif "training" in row.needs:
            each = TRAINING * o.rates.gradient * images + o.decoding(images)
            yield Work(name, o.recipe.criterion.how(name).epochs * each)
        elif "images" in row.needs:
            graded = o.rates.gradient * TRAINING if "gradients" in row.needs else o.rates.forward
            yield Work(name, images * graded + o.decoding(images))
        if name in ELIMINATE:
            yield from _curves(o, name, both, images)


def _curves(o: Outline, name: str, attention: bool, images: int) -> Iterator[Work]:
    """The curves of a criterion from its sums."""
    flops = formulas.of_ffns(o.shape) + (formulas.of_attentions(o.shape) if attention else [])
    yield Work(f"{name}: elimination", sum(flops) / o.rates.eliminated, len(o.shape.ffns))
    if name == "fisher-obs":
        yield Work(f"{name}: elimination", formulas.roots(o.shape, attention) / o.rates.double)
    if attention:
        passes = sum(min(formulas.ranked(a), images) for a in o.shape.attentions)
        ranking = formulas.ranking(o.shape, images) / o.rates.product + o.forward(passes)
        yield Work(f"{name}: ranks of queries and keys", ranking, len(o.shape.attentions))


def _once(works: Sequence[Work]) -> Iterator[Work]:
    """Sums that several criteria have in common, once."""
    seen: set[str] = set()
    for work in works:
        if not work.name.startswith("sums ") or work.name not in seen:
            yield work
        seen.add(work.name)


def _parts_mb(o: Outline, one: float) -> float:
    """Megabytes that the parts of sums take until they are added up, each as large as they."""
    count = math.ceil(o.images.union.first(o.recipe.criterion.probe_per_class) / o.batch)
    return one * min(count, max(sums.FEWEST, sums.BYTES / MB / one)) if one else 0.0


def moments(o: Outline) -> Stage:
    """Statistics for a repair that is made of them."""
    if not needs_moments(o.repair):
        return Stage()
    rate = o.rates.criteria[sums_of("obs", False)]
    works = [
        Work("statistics", one.probe * rate + o.decoding(one.probe), math.ceil(one.probe / o.batch))
        for one in o.images.sets_and_union
    ]
    size = formulas.sums_bytes(o.shape, False, False) / MB
    return Stage(tuple(works), o.workers * size + o.pass_mb, size * len(o.images.sets_and_union))


def choosing(o: Outline) -> Stage:
    """What `auto` does before: every candidate discovered, repaired and examined on folds of the probe split."""
    if o.recipe.criterion.name != "auto":
        return Stage()
    inner, one = discover(o), o.images.union
    share, count = left(o.recipe, o.shape, None, None), len(o.recipe.criterion.among)
    works = [Work(work.name, SHARE * work.seconds, work.parts) for work in inner.works]
    seconds = SHARE * o.repairing(o.repair, one, share, False) + o.forward((1 - SHARE) * one.probe, share)
    return Stage((*works, Work("candidates", count * seconds)), inner.memory_mb, inner.disk_mb)
