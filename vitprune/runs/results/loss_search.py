"""The smallest model whose loss of top-1 stays within `budget: {loss_points: …}`, by cross-fitting on the probe split.

The probe split is cut in five folds. A model is made at a share of the multiply-adds from four of them, costs and repair
alike, and examined on the fifth beside the dense model; over the five folds each probe image is judged once, by a model that
never saw it. A share is within the loss where the upper end of the paired difference is (`exam.paired`). Shares are tried by
bisection, taking it that a smaller model loses more. The test split plays no part.
"""

from __future__ import annotations

import functools
import time
from typing import Any

import numpy as np

from vitprune.core.errors import UserError
from vitprune.core.files import write_sealed
from vitprune.core.reading import Json, digest, read_sealed
from vitprune.exam import metrics, paired
from vitprune.exam.logits import logits_of, predictor
from vitprune.images.split import folds
from vitprune.model.inside import pieces
from vitprune.recipe.exports import of_file
from vitprune.recipe.parts import Whole
from vitprune.recipe.recipe import Recipe
from vitprune.runs.engine.base import Columns, Job
from vitprune.runs.results import losses
from vitprune.runs.stages import moments, score
from vitprune.runs.stages.prune import main_mask, slimmed
from vitprune.runs.stages.versions import version
from vitprune.runs.state.run import Run
from vitprune.runs.state.workspace import PARTS

FOLDS = 5
SHARES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.33, 0.25, 0.2, 0.15, 0.12, 0.1, 0.08, 0.06, 0.05)  # of the multiply-adds
DENSE = 1.0


def search(run: Run, force: bool = False) -> None:
    """Nothing; where the budget is a loss of top-1, what share it comes to is left for every class set."""
    whole, folder = run.recipe.whole, run.folder.stage_folder(losses.STAGE)
    if whole is None or whole.of != "loss_points":
        return
    if force:
        run.folder.clear(folder, set())
    used = set()
    for group, targets in run.classes.sets_and_union().items():
        about = _about(run, targets)
        key, path = digest(about, whole.amount, SHARES), losses.path_of(run, group)
        used |= {_name(group, about), path.name}
        found = read_sealed(path)
        if found is None or found.get("key") != key:
            found = {"key": key, "asked": whole.amount, **_searched(run, group, targets, about)}
            write_sealed(path, found)
        run.reporter.say(losses.sentence(found | {"group": group}))
    run.folder.clear(folder / PARTS, used)
    run.folder.clear(folder, used | {PARTS})


def _about(run: Run, targets: list[int]) -> Json:
    """What the figures at a share depend on; not the points that are asked for."""
    recipe = run.recipe
    return {
        "code": [version("discover"), version("prune"), pieces.RULE, FOLDS],
        "made of": [run.model_digest, run.data_digest, run.device.type, run.split_record["probe"], run.split.seed],
        "recipe": [recipe.criterion.model_dump(mode="json"), recipe.model_copy(update={"whole": None}).pruning()],
        "how": [run.recovery, recipe.prunes_attention, targets, run.classes.keeps_head(targets), *_finer(recipe)],
        "priced": of_file(recipe.whole, recipe.export),
    }


def _finer(recipe: Recipe) -> list[str]:
    """What else attention may become."""
    return [*(["free"] if recipe.attention_dims == "free" else []), *(["depth"] if recipe.prunes_depth else [])]


def _name(group: str | None, about: Json) -> str:
    """The folder of a class set's parts."""
    return f"{group or 'all'}-{digest(about)[:16]}"


def _searched(run: Run, group: str | None, targets: list[int], about: Json) -> Json:
    """The share taken with its figures, and every one that was tried."""
    assert run.recipe.whole is not None
    asked, shares, tried = run.recipe.whole.amount, _allowed(run, group, targets), dict[float, Json]()
    (dense,) = _hits(run, group, about, [DENSE])
    within, beyond = -1, len(shares)  # places of the smallest share that is, and of the largest that is not
    hits = dict[int, np.ndarray]()
    while beyond - within > 1:
        at = (within + beyond) // 2
        if at not in hits:
            places = following(within, beyond, run.workers // FOLDS)
            hits |= zip(places, _hits(run, group, about, [shares[place] for place in places]), strict=True)
        tried[shares[at]] = figures(dense, hits[at], asked) | {"macs": shares[at]}
        within, beyond = (at, beyond) if tried[shares[at]]["within"] else (within, at)
        run.reporter.say(_line(group, tried[shares[at]], asked))
    taken = tried[shares[max(within, 0)]]
    return taken | {"n": len(dense), "folds": FOLDS, "tried": [tried[share] for share in sorted(tried, reverse=True)]}


def following(within: int, beyond: int, count: int) -> list[int]:
    """The places that a bisection between two tries next, the nearest in time first: as many as `count` workers are enough
    for, at least the first. What is tried too much is not told, so that the result is that of one process."""
    waiting, found = [(within, beyond)], list[int]()
    while waiting and len(found) < max(1, count):
        low, high = waiting.pop(0)
        if high - low > 1:
            middle = (low + high) // 2
            found.append(middle)
            waiting += [(low, middle), (middle, high)]
    return found


def figures(dense: np.ndarray, slim: np.ndarray, asked: float) -> Json:
    """The loss of top-1 from the images that either model gets right, bool [n], and whether it is within `asked`; points."""
    lost, gained, n = int((dense & ~slim).sum()), int((slim & ~dense).sum()), len(dense)
    bound = 100 * paired.upper(lost, gained, n)
    made: Json = {"lost": lost, "gained": gained, "loss_points": 100 * (lost - gained) / n, "bound_points": bound}
    return made | {"within": bound <= asked}


def _line(group: str | None, found: Json, asked: float) -> str:
    return (
        f"loss_points{f' of {group}' if group else ''}: {found['macs']:g} of the multiply-adds loses "
        f"{found['loss_points']:.2f} points, at most {found['bound_points']:.2f}: {'' if found['within'] else 'NOT '}"
        f"within {asked:g}"
    )


def _allowed(run: Run, group: str | None, targets: list[int]) -> tuple[float, ...]:
    """The shares that the model's sites allow, from the largest on; it alone where none does, and it will be refused."""
    for count in range(len(SHARES), 1, -1):
        try:
            main_mask(run.inside(run.folder.root, _at(run.recipe, SHARES[count - 1])), group, targets)
        except UserError:
            continue
        return SHARES[:count]
    return SHARES[:1]


def _at(recipe: Recipe, share: float) -> Recipe:
    return recipe.model_copy(update={"whole": Whole(macs=share)})


def _hits(run: Run, group: str | None, about: Json, shares: list[float]) -> list[np.ndarray]:
    """Which probe images of the class set a model at each of some shares gets right, bool [n], fold by fold; 1: the dense
    model. A part is a share and a fold."""
    told = "-".join(f"{share:g}" for share in shares)
    folder = run.folder.stage_folder(losses.STAGE) / PARTS / _name(group, about) / f"x{told}"
    items = [[share, fold] for share in shares for fold in range(FOLDS)]
    job = Job("losses", items, functools.partial(_part, run, group), digest(about))
    label = "dense" if shares == [DENSE] else told
    parts = list(run.reporter.track(run.executor.run(job, folder), f"loss_points, {label}", len(items)))
    hits = [columns["hits"] for columns in parts]
    return [np.concatenate(hits[at : at + FOLDS]) for at in range(0, len(hits), FOLDS)]


def _part(run: Run, group: str | None, item: list[Any]) -> Columns:
    """Which images of a fold a model of the other folds gets right."""
    targets, share = run.classes.sets_and_union()[group], float(item[0])
    inner = inside(run, group, share, int(item[1]))
    model = run.loaded.model
    if share != DENSE:
        _prepare(inner)
        model = slimmed(inner, main_mask(inner, None, targets), run.recovery, None, targets)
    logits, labels = logits_of(predictor(model), run.images, inner.split.test, run.batching.batch)
    return {"hits": metrics.hits(logits, labels, None if run.classes.keeps_head(targets) else targets)}


def inside(run: Run, group: str | None, share: float, fold: int) -> Run:
    """A run of a class set at a share of the multiply-adds: its test split is a fold of this run's probe split, its probe
    split the other folds. Raises UserError where there are too few images."""
    targets = run.classes.sets_and_union()[group]
    probe, labels = run.split.probe, run.images.labels
    of = folds(probe, run.source.class_of, FOLDS, run.split.seed, run.contents)
    judged = probe[(of == fold) & np.isin(labels[probe], targets)]
    if not len(judged):
        raise UserError(
            f"budget: loss_points: {FOLDS} folds need more probe images of these classes than there are; give more, or "
            "a share of the multiply-adds: `budget: {macs: 0.5}`"
        )
    made = _at(run.recipe, share).model_copy(
        update={
            "groups": None,
            "classes": [run.classes.name(i) for i in targets],
            "baselines": [],
            "paper_protocol": None,
            "compare": None,
        }
    )
    split = {"seed": run.split.seed, "probe_share": None, "probe": probe[of != fold].tolist(), "test": judged.tolist()}
    folder = run.folder.stage_folder(losses.STAGE) / "folds" / f"{group or 'all'}-{fold}"
    return run.inside(folder, made, split=split)


def _prepare(inner: Run) -> None:
    """Nothing; the fold's costs, and the statistics of its repair, are there, and are taken from there by other shares."""
    recipe = inner.recipe
    key = digest(
        [
            version("discover"),
            pieces.RULE,
            inner.split_record,
            inner.model_digest,
            inner.data_digest,
            inner.device.type,
        ],
        [recipe.criterion.model_dump(mode="json"), recipe.classes, recipe.prunes_attention, inner.recovery],
    )
    for name, work in (("discover", score.discover), ("moments", moments.moments)):
        if not inner.folder.is_current(name, key):
            inner.folder.begin(name)
            inner.folder.finish(name, key, work(inner), time.monotonic())
