"""Criteria × budgets × repairs × seeds of the split, on one model: one table, one plot, and a test of what is better.

Every seed is a split of its own with its own discovery; every cell is examined on that seed's test split and kept as a
file, so that an interrupted comparison goes on where it was. Nothing is chosen by the figures: a table, not a search.
"""

from __future__ import annotations

import functools
import itertools
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from vitprune.core import claims
from vitprune.core.errors import UserError
from vitprune.core.files import write_json, write_sealed, write_text
from vitprune.core.progress import Reporter
from vitprune.core.reading import Json, digest, read_sealed
from vitprune.criteria.catalog import CRITERIA
from vitprune.exam.metrics import mcnemar
from vitprune.pruning import masks
from vitprune.pruning.repair.names import needs_moments
from vitprune.recipe.experiments import Compare
from vitprune.recipe.parse import dump
from vitprune.recipe.recipe import Recipe
from vitprune.report import grid
from vitprune.runs import choose, pipeline
from vitprune.runs.contenders import WHOLE, Cell, Contender
from vitprune.runs.engine import worker
from vitprune.runs.engine.base import Columns, Job
from vitprune.runs.engine.opening import Workers
from vitprune.runs.engine.parts import Parts, packed, unpacked
from vitprune.runs.results.row import Row
from vitprune.runs.stages import score
from vitprune.runs.stages.versions import version
from vitprune.runs.state import defaults, lengths, skeleton, told
from vitprune.runs.state.run import Run
from vitprune.runs.state.workspace import PARTS

SCHEMA = 1
Found = dict[Contender, Cell]
Size = tuple[int | float | None, tuple[str, float] | None]  # `keep`, or a budget of the whole model


def entrants(spec: Compare, seed: int) -> list[Contender]:
    """Every contender of one seed that is pruned, in the order of the recipe; `auto` is chosen among the others."""
    sizes: list[Size] = [(keep, None) for keep in spec.keep or ()]
    sizes += [(None, (budget.of, budget.amount)) for budget in spec.budget or ()]
    return [Contender(c, k, r, seed, budget=b) for k, b in sizes for r in spec.recovery for c in spec.criteria]


def compare(
    recipe: Recipe, *, device: str = "auto", force: bool = False, reporter: Reporter | None = None, workers: Workers = 1
) -> Json:
    """Run or continue the comparison of a recipe's `compare` section; writes compare.{json,md,svg} and returns the first.

    Raises UserError for everything the user can mend.
    """
    worker.one_process()
    reporter = reporter or Reporter(quiet=True)
    recipe, spec, notes = asked(recipe)
    for note in notes:
        reporter.say(f"note: {note}")
    root, names = recipe.out / recipe.name, [c for c in spec.criteria if c != "auto"]
    if len(names) < 2:
        raise UserError("compare: `auto` chooses among the other criteria; name two of them at least")
    claims.claim(root)
    claims.refuse_strangers(root, (), recipe.file)
    found: Found = {}
    costs: list[Json] = []
    choices: list[Json] = []
    for seed in spec.seeds:
        with Run.open(part(recipe, spec, names, seed), device, reporter, workers) as run:
            for keep, site in itertools.product(spec.keep or (), run.sites):
                masks.width(keep, site.size, recipe.round_to)
            if spec.budget:
                run.adapt()
            for budget in spec.budget or ():
                run.reaches(budget)
            run.keeps = tuple(spec.keep or (None,))
            inputs, _ = pipeline.advance(run, "moments", force)
            notes += [note for note in (*lengths.notes(run, names), *run.notes) if note not in notes]
            key = digest(version("prune"), version("evaluate"), SCHEMA, inputs, recipe.pruning())
            found |= _of_seed(run, spec, seed, key, force)
            costs += [{"seed": seed, **cost} for cost in score.notes_of(run)]
            if "auto" in spec.criteria:
                choices += _choices(run, spec, seed, key, found, force)
    return _write(_record(recipe, spec, found, costs) | {"choices": choices, "notes": notes}, root)


def asked(recipe: Recipe) -> tuple[Recipe, Compare, list[str]]:
    """The recipe and its `compare` section, with the defaults that its model allows, and the notes that say so."""
    spec = recipe.compare or Compare().under(recipe.whole)
    if recipe.data.probe and len(spec.seeds) > 1:
        raise UserError("compare: data.probe and data.test are one split, not several; set compare.seeds: [0]")
    if recipe.groups is not None:
        raise UserError("compare: one class set at a time; use `classes`, or one recipe per group")
    notes: list[str] = []
    if {"criteria", "recovery"} - spec.model_fields_set:  # a default may not fit the model
        spec, notes = defaults.comparison(spec, recipe, skeleton.facts(recipe.model))
        recipe = recipe.model_copy(update={"compare": spec}) if notes else recipe
    spec.first(recipe.criterion.name)
    return recipe, spec, notes


def part(recipe: Recipe, spec: Compare, names: Sequence[str], seed: int) -> Recipe:
    """The recipe of one seed, a run of its own inside the comparison."""
    return recipe.model_copy(
        update={
            "name": f"seed-{seed}",
            "out": recipe.out / recipe.name / "compare",
            **({"keep": spec.keep[0], "whole": None, "prune": None, "attention_dims": "equal"} if spec.keep else {}),
            **({"keep": None, "whole": spec.budget[0], "allocation": "auto", "rounds": 1} if spec.budget else {}),
            "criterion": recipe.criterion.model_copy(update={"name": spec.first(recipe.criterion.name)}),
            "split": recipe.split.model_copy(update={"seed": seed}),
            "baselines": list(names),
            "recovery": next((r for r in spec.recovery if needs_moments(r)), "none"),
            "paper_protocol": None,
            "compare": None,
            "export": recipe.export.model_copy(update={"budget": None}),
        }
    )


def _record(recipe: Recipe, spec: Compare, found: Found, costs: list[Json]) -> Json:
    """The content of compare.json; what was chosen and noted follows."""
    return {
        "schema": SCHEMA,
        "name": recipe.name,
        "model": recipe.model.name if recipe.model.name == "bundled" else Path(recipe.model.name).name,
        "classes": recipe.classes,
        "allocation": WHOLE if spec.budget else recipe.allocation,
        "seeds": list(spec.seeds),
        "dense": _summary([found[Contender.dense(s)] for s in spec.seeds]),
        "table": [_line(contender, spec, found) for contender in entrants(spec, spec.seeds[0])],
        "choices": [],
        "notes": [],
        "costs": _costs(costs),
        "rows": [row for contender in found for row in _plain(contender, costs, found)],
        "recipe_yaml": dump(told.recipe(recipe, recipe.out / recipe.name)),
    }


def _plain(contender: Contender, costs: list[Json], found: Found) -> list[Json]:
    """The rows of compare.json of one contender: those of report.json with what the discovery cost; a second one, with
    the head's other outputs closed, where the classes are not all the model's."""
    cell, dense = found[contender], found[Contender.dense(contender.seed)]
    job = (cell.chosen or contender.criterion, contender.seed)
    cost = next((c for c in costs if (c["settings"]["criterion"], c["seed"]) == job), {})
    price = {"seconds": cost.get("seconds"), "peak_memory_mb": cost.get("peak_memory_mb")}
    rows = []
    for own, base in ((cell.whole, dense.whole), (cell.masked, dense.masked)):
        if own is None or base is None:
            continue
        made = own.as_json() | ({"chosen": cell.chosen} if cell.chosen and own is cell.whole else {}) | price
        made["criterion"] = contender.criterion  # `auto` is examined under the name of what it took
        if not contender.is_dense:
            made["top1_change_points"] = 100 * (own.top1 - base.top1)
        rows.append(made)
    return rows


def _choices(run: Run, spec: Compare, seed: int, key: str, found: Found, force: bool) -> list[Json]:
    """What `auto` takes at every budget and repair of one seed; its cell is that of the criterion it takes."""
    among = [c for c in spec.criteria if c in (spec.among or spec.choices())]
    key = digest(key, among)
    inner, made = None, []
    for keep in spec.keep or ():
        for recovery in spec.recovery:
            contender = Contender("auto", keep, recovery, seed)
            path = run.folder.root / "cells" / contender.file_name
            why = None if force else _read(path, key, "chosen")
            if why is None:
                inner = inner or choose.prepare(run, among, force)
                why = {"key": key, "seed": seed, **choose.best(inner, among, keep, recovery)}
                write_sealed(path, why)
            taken = found[replace(contender, criterion=why["chosen"])]
            found[contender] = replace(taken, chosen=why["chosen"])
            made.append({name: value for name, value in why.items() if name != "key"})
    return made


def _of_seed(run: Run, spec: Compare, seed: int, key: str, force: bool) -> Found:
    """The cells of one seed's contenders: read where they are there of the same inputs, else pruned and examined."""
    jobs = [Contender.dense(seed), *(c for c in entrants(spec, seed) if c.criterion != "auto")]
    paths = [run.folder.root / "cells" / contender.file_name for contender in jobs]
    known = [None if force else _read(path, key, "hits") for path in paths]
    if None in known:
        known = list(_examined(run, f"compare, seed {seed}", jobs, known, key, force))
    return {contender: Cell.from_json(cell) for contender, cell in zip(jobs, known, strict=True) if cell}


def _examined(
    run: Run, label: str, jobs: list[Contender], known: list[Json | None], key: str, force: bool
) -> Iterator[Json]:
    """Every contender's cell, written as soon as it is there; what lies beside the cells goes when all of them are."""
    job = Job("cells", [asdict(contender) for contender in jobs], functools.partial(_cell, run, key), key)
    folder = run.folder.root / "cells" / PARTS
    if force:
        run.folder.clear(folder, set())
    for position, cell in enumerate(known):
        if cell:
            Parts(folder, job).write(position, packed(cell))
    found = run.reporter.track(run.executor.run(job, folder), label, len(jobs), stage="cells")
    for contender, was, columns in zip(jobs, known, found, strict=True):
        cell = unpacked(columns)
        if was is None:
            write_sealed(run.folder.root / "cells" / contender.file_name, cell)
        yield cell
    run.folder.clear(folder, set())


def _cell(run: Run, key: str, contender: Json) -> Columns:
    return packed({"key": key, **Cell.of(run, Contender(**contender)).as_json()})


def _read(path: Path, key: str, needed: str) -> Json | None:
    content = read_sealed(path)
    return content if content is not None and content.get("key") == key and needed in content else None


def _summary(of_seeds: Sequence[Cell]) -> Json:
    rows, masked = [cell.whole for cell in of_seeds], [cell.masked for cell in of_seeds]
    return {
        "top1": _mean(rows, "top1"),
        "top1_sd": statistics.stdev(row.top1 for row in rows) if len(rows) > 1 else None,
        "top1_of_seeds": [row.top1 for row in rows],
        "top1_masked_head": None if None in masked else statistics.fmean(row.top1 for row in masked if row),
        "mean_true_probability": _mean(rows, "mean_true_probability"),
        "kept": _mean(rows, "kept"),
        "params": round(_mean(rows, "params")),
        "macs": round(_mean(rows, "macs")),
        **{key: _mean(rows, key) for key in ("macs_ratio", "kl") if all(getattr(row, key) is not None for row in rows)},
        "n": [row.n for row in rows],
    }


def _mean(rows: Sequence[Row], figure: str) -> float:
    return statistics.fmean(getattr(row, figure) for row in rows)


def _line(contender: Contender, spec: Compare, found: Found) -> Json:
    def seeds(made: Contender) -> list[Cell]:
        return [found[replace(made, seed=seed)] for seed in spec.seeds]

    mine, dense = seeds(contender), [found[Contender.dense(seed)] for seed in spec.seeds]
    losses = [100 * (d.whole.top1 - m.whole.top1) for d, m in zip(dense, mine, strict=True)]
    names = [c for c in spec.criteria if c not in (contender.criterion, "auto")]
    others = {name: seeds(replace(contender, criterion=name)) for name in names}
    best = max(others, key=lambda name: statistics.fmean(cell.whole.top1 for cell in others[name]))
    pairs = list(zip(mine, others[best], strict=True))
    p = [mcnemar(own.hits, other.hits) for own, other in pairs]
    loss = [mcnemar(d.hits, m.hits) for d, m in zip(dense, mine, strict=True)]
    return {
        "criterion": contender.criterion,
        "keep": contender.keep,
        "budget": None if contender.budget is None else dict([contender.budget]),
        "t": mine[0].whole.t,
        "recovery": contender.repair,
        "allocation": list(dict.fromkeys(cell.whole.allocation for cell in mine)),
        **_summary(mine),
        "loss_points": statistics.fmean(losses),
        "loss_points_sd": statistics.stdev(losses) if len(losses) > 1 else None,
        "loss_p": max(loss),
        "loss_p_of_seeds": loss,
        "best_other": best,
        "ahead_points": 100 * statistics.fmean(own.whole.top1 - other.whole.top1 for own, other in pairs),
        "mcnemar_p": max(p),
        "mcnemar_p_of_seeds": p,
    }


def _costs(costs: list[Json]) -> list[Json]:
    """Mean seconds and largest memory of every criterion's discovery, and what it needs."""
    rows = []
    for name in dict.fromkeys(cost["settings"]["criterion"] for cost in costs):
        own = [cost for cost in costs if cost["settings"]["criterion"] == name]
        peaks = [cost["peak_memory_mb"] for cost in own if cost.get("peak_memory_mb") is not None]
        rows.append(
            {
                "criterion": name,
                "needs": list(CRITERIA[name].needs),
                "source": CRITERIA[name].source,
                "images": own[0]["images"],
                "seconds": statistics.fmean(cost["seconds"] for cost in own),
                "peak_memory_mb": max(peaks) if peaks else None,
            }
        )
    return rows


def _write(record: Json, root: Path) -> Json:
    record = {"created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **record}
    write_json(root / "compare.json", record)
    write_text(root / "compare.md", grid.markdown(record))
    write_text(root / "compare.svg", grid.plot(record))
    return record
