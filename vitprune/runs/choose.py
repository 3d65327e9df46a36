"""`criterion: auto`: every candidate is tried on a fold inside the probe split, and the best one is taken.

A quarter of each class's probe images is held out; the candidates are discovered and repaired on the other three
quarters and examined on the held-out one, at the recipe's own budget and repair. Those whose top-1 there is not clearly
below the highest (two standard errors of the paired difference) are told apart by the mean probability of the true class,
which a few hundred images settle better than top-1. The test split plays no part.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitprune.core.errors import UserError
from vitprune.core.files import write_json, write_sealed
from vitprune.core.reading import digest, read_sealed
from vitprune.criteria.catalog import why_not
from vitprune.images.split import split_per_class
from vitprune.model import families
from vitprune.model.inside import blockwise
from vitprune.pruning.repair.names import Recovery
from vitprune.recipe.recipe import Recipe
from vitprune.runs.contenders import Cell, Contender
from vitprune.runs.engine.base import Columns, Job
from vitprune.runs.engine.parts import packed, unpacked
from vitprune.runs.stages import moments, score
from vitprune.runs.stages.versions import version
from vitprune.runs.state import lengths
from vitprune.runs.state.run import Run
from vitprune.runs.state.workspace import PARTS

SHARE = 0.75  # of the probe split, to discover and repair with
CLEAR = 2.0  # standard errors of a paired difference


def fold(run: Run, among: Sequence[str]) -> Run:
    """A run whose probe and test split both lie inside this one's probe split, ready for the candidates.

    Raises UserError when a class has a single probe image.
    """
    made = run.recipe.model_copy(
        update={
            "criterion": run.recipe.criterion.model_copy(update={"name": among[0]}),
            "baselines": list(among),
            "paper_protocol": None,
            "compare": None,
        }
    )
    outside = np.setdiff1d(np.arange(len(run.source.names)), run.split.probe)
    try:
        split = split_per_class(
            run.source.class_of,
            run.source.classes,
            seed=run.split.seed,
            probe=SHARE,
            leave_out=outside,
            contents=run.contents,
        )
    except UserError as error:
        raise UserError(f"criterion `auto`: needs a fold inside the probe split; {error}") from error
    record = {"seed": split.seed, "probe_share": SHARE, "probe": split.probe.tolist(), "test": split.test.tolist()}
    inner = run.inside(run.folder.stage_folder("choose"), made, split=record, shared=True)
    write_json(inner.folder.stage_folder("split") / "split.json", record)
    return inner


def prepare(run: Run, among: Sequence[str], force: bool = False) -> Run:
    """The fold with every candidate's scores and the statistics of the repair; what is there is taken unless `force`."""
    inner = fold(run, among)
    key = _key(inner)
    for name, work in (("discover", score.discover), ("moments", moments.moments)):
        if force:
            inner.folder.clear(inner.folder.stage_folder(name), set())
        if not inner.folder.is_current(name, key):
            inner.folder.begin(name)
            inner.folder.finish(name, key, work(inner), 0.0)
    return inner


def _key(inner: Run) -> str:
    """What a choice depends on."""
    code = version("discover")
    recipe = inner.recipe.model_dump(mode="json") | {"criterion": lengths.told(inner)}
    return digest(code, inner.split_record, inner.model_digest, inner.data_digest, recipe)


def best(inner: Run, among: Sequence[str], keep: int | float, recovery: Recovery) -> dict[str, Any]:
    """Which candidate to take at a budget, from the fold's held-out images, and the figures it was taken by."""
    job = Job("choose", list(among), functools.partial(_tried, inner, keep, recovery), [_key(inner), keep, recovery])
    folder = inner.folder.root / PARTS
    parts = inner.reporter.track(inner.executor.run(job, folder), f"choose at keep {keep:g}, {recovery}", len(among))
    cells = {name: Cell.from_json(unpacked(columns)) for name, columns in zip(among, parts, strict=True)}
    inner.folder.clear(folder, set())
    hits = {name: cell.hits for name, cell in cells.items()}
    probability = {name: cell.whole.mean_true_probability for name, cell in cells.items()}
    found: dict[str, Any] = {"chosen": decide(hits, probability), "keep": keep, "recovery": recovery}
    found |= {"top1": {name: cell.whole.top1 for name, cell in cells.items()}, "mean_true_probability": probability}
    return found | {"n": len(inner.split.test)}


def _tried(inner: Run, keep: int | float, recovery: Recovery, name: str) -> Columns:
    return packed(Cell.of(inner, Contender(name, keep, recovery, inner.split.seed)).as_json())


def decide(hits: dict[str, np.ndarray], probability: dict[str, float]) -> str:
    """The highest mean probability among those whose hits [n] are within two standard errors of the most; ties: first."""
    leader = max(hits, key=lambda name: hits[name].sum())
    behind = {name: int((hits[leader] & ~own).sum()) for name, own in hits.items()}
    ahead = {name: int((own & ~hits[leader]).sum()) for name, own in hits.items()}
    level = [name for name in hits if behind[name] - ahead[name] <= CLEAR * (behind[name] + ahead[name]) ** 0.5]
    return max(level, key=lambda name: probability[name])


def _read(path: Path, key: str) -> dict[str, Any] | None:
    found = read_sealed(path)
    return found if found is not None and found.get("key") == key and "chosen" in found else None


def candidates(run: Run) -> list[str]:
    """The recipe's `among`, less what cannot look at this model."""
    own, model = run.recipe.criterion, run.loaded.model
    facts = {"class_token": families.token_layout(model).class_token, "halves": blockwise.halves(model) is not None}
    found: list[str] = [name for name in own.among if why_not(name, own.tokens, **facts) is None]
    if not found:
        raise UserError("criterion `auto`: nothing in `among` can look at this model; see `vitprune models`")
    return found


def _resolved(recipe: Recipe, name: str) -> Recipe:
    made = recipe.criterion.model_copy(update={"name": name})
    return recipe.model_copy(update={"criterion": made})


def choose(run: Run, force: bool = False) -> tuple[Recipe, dict[str, Any]]:
    """The recipe with the chosen criterion in the place of `auto`, and why it was chosen."""
    recipe = run.recipe
    if recipe.groups is not None:
        raise UserError("criterion `auto`: one class set at a time; use `classes`, or one recipe per group")
    among, path = candidates(run), run.folder.stage_folder("choose") / "choice.json"
    key = _key(fold(run, among))
    why = _read(path, key)
    if force or why is None:
        why = {"key": key, **best(prepare(run, among, force), among, recipe.share, run.recovery)}
        write_sealed(path, why)
    return _resolved(recipe, why["chosen"]), why
