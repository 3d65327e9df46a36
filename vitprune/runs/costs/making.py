"""What pruning, repairing, examining and exporting the models of a run cost."""

from __future__ import annotations

import math
from collections.abc import Iterator

from vitprune.pruning.repair.names import closed_form
from vitprune.recipe.exports import told_batch
from vitprune.recipe.recipe import Recipe
from vitprune.runs.costs.facts import Set, left
from vitprune.runs.costs.outline import MB, Outline, Stage, Work
from vitprune.runs.costs.scoring import discover
from vitprune.runs.results.loss_search import FOLDS, SHARES
from vitprune.runs.stages.export import CALIBRATION_IMAGES, FLOOR_IMAGES
from vitprune.runs.state.batching import REPAIR_IMAGES

EXPORT = 1.5, 0.5  # seconds of an ONNX file, and of each of its blocks: the exporter's, on any machine about
LATENCY = 2.0, 1.6  # seconds that dense and slim are timed for at each batch, and how much longer they go on, about
TIMED = 40  # ONNX files that are made and timed for a budget in time, about
REPORT = 5.0  # seconds of pages and plots
USED = 0.5  # of the multiply-adds, by a model of the search for a loss on average


def prune(o: Outline) -> Stage:
    """A repair for every class set and budget; with rounds a discovery and a repair for each, with points of loss those of
    the search."""
    works: list[Work] = []
    memory = disk = 0.0
    for one in o.images.sets:
        for place, budget in enumerate(o.budgets):
            share = left(o.recipe, o.shape, budget, None)
            kept = o.streams_kept(one) and place > 0
            works.append(Work("repair", o.repairing(o.repair, one, share, kept), _repair_parts(o, one)))
            disk += 4 * o.shape.parameters * share / MB
            if budget is not None and budget.of == "latency":
                works.append(Work("timing", TIMED * (exporting(o) + LATENCY[0])))
        for step in range(1, o.recipe.rounds):
            share = left(o.recipe, o.shape, None, None) ** (step / o.recipe.rounds)
            works.append(Work("repair", o.repairing(o.repair, one, share, step > 1), _repair_parts(o, one)))
            works += discover(o, [one]).works
        mine = o.repair_memory(one)
        memory, disk = max(memory, mine[0] + o.cache_mb), disk + mine[1]
    if o.recipe.whole is not None and o.recipe.whole.of == "loss_points":
        works.append(searching(o))
    return Stage(tuple(works), memory, disk)


def _repair_parts(o: Outline, one: Set) -> int:
    """In how many parts a repair can be shared: its images', where it goes block by block."""
    by_block = closed_form(o.repair) in ("sequential", "layerwise")
    return math.ceil(one.refit(o.recipe.refit_images) / REPAIR_IMAGES) if by_block else 1


def searching(o: Outline) -> Work:
    """The search for a share that loses no more than is asked for: an upper bound of the shares that are tried, each of them
    in every fold with a discovery and a repair of its own."""
    tried = 1 + math.ceil(math.log2(len(SHARES) + 1))
    inside = sum(work.seconds for work in discover(o).works)
    each = sum(o.repairing(o.repair, one, USED, False) for one in o.images.sets_and_union)
    seconds = FOLDS * (inside + tried * each) * (FOLDS - 1) / FOLDS
    return Work("loss_points", seconds + o.forward(tried * o.images.union.probe), FOLDS)


def contenders(recipe: Recipe, repair: str) -> int:
    """Pruned models of an exam: every criterion and draw, without the repair and with it."""
    own, names = recipe.criterion.name, set(recipe.baselines)
    draws = recipe.random_draws if "random" in names else 0
    draws = max(draws, 1) if own == "random" else draws
    count = draws + len(names - {own, "random"}) + (own != "random")
    return count * (1 if repair == "none" else 2)


def evaluate(o: Outline) -> Stage:
    """Every row's model repaired and examined; class specialists on all test images; the paper's protocol."""
    once = o.images.test * o.rates.prepare if o.images.kept else 0.0
    works, memory, disk = [Work("decoding", once)], 0.0, 0.0
    for one in o.images.sets:
        rows = contenders(o.recipe, o.repair)
        repaired = 0 if o.repair == "none" else rows // 2 - 1  # the exported one is there already
        for budget in o.budgets:
            share, kept = left(o.recipe, o.shape, budget, None), o.streams_kept(one)
            one_row = o.repairing(o.repair, one, share, kept)
            first = o.repairing(o.repair, one, share, False) - one_row if repaired else 0.0
            seconds = (
                repaired * one_row + first + o.forward(one.test, 1 + rows * share) + (rows + 1) * o.decoding(one.test)
            )
            works.append(o.work("exam", seconds, rows + 1, f"exam {one.name or 'all'}"))
        mine = o.repair_memory(one) if repaired else (o.pass_mb, 0.0)
        memory, disk = max(memory, mine[0] + o.cache_mb), max(disk, mine[1])
        disk += 2 * 4 * one.test * o.shape.outputs / MB
    works += _specialists(o)
    if o.recipe.paper_protocol is not None:
        passes = 2 * len(o.recipe.paper_protocol.t) * o.images.test
        works.append(Work("paper protocol", o.forward(passes) + o.decoding(passes)))
    return Stage(tuple(works), memory + 8 * o.images.test * o.shape.outputs / MB, disk)


def _specialists(o: Outline) -> Iterator[Work]:
    """The dense, the generic and every group's model on all test images; none without groups."""
    if o.images.sets == (o.images.union,):
        return
    share, models = left(o.recipe, o.shape, o.budgets[0], None), 2 + len(o.images.sets)
    seconds = o.repairing(o.repair, o.images.union, share, False) + models * o.decoding(o.images.test)
    yield Work("specialists", seconds + o.forward(o.images.test, 1 + (models - 1) * share), 1)


def exporting(o: Outline) -> float:
    """Seconds of one ONNX file."""
    return EXPORT[0] + EXPORT[1] * len(o.shape.ffns)


def export(o: Outline) -> Stage:
    """The ONNX files of every class set in every precision, each examined on the whole test split, and the latencies."""
    e = o.recipe.export
    if not e.onnx:
        return Stage()
    works = [Work("ONNX", exporting(o))]
    disk, chosen = 4.0 * o.shape.parameters, [b for b in o.budgets if e.budget in (None, b and b.amount)]
    for one in o.images.sets:
        for budget in chosen:
            share = left(o.recipe, o.shape, budget, None)
            exams = o.forward(o.images.test * (1 + len(e.precisions)), share)
            judged = 3 * min(FLOOR_IMAGES, one.probe) + CALIBRATION_IMAGES if "int8" in e.precisions else 0
            exams += o.forward(judged, share) + o.decoding(o.images.test * (1 + len(e.precisions)) + judged)
            timing = sum(
                max(LATENCY[0] * LATENCY[1], 7 * o.forward(batch, 1 + share))
                for batch in {*e.latency_batches, told_batch(e)}
            )
            works += [
                Work("ONNX", len(e.precisions) * exporting(o), len(o.images.sets)),
                Work("exam of ONNX", exams),
                Work("latency", timing),
            ]
            disk += 4 * o.shape.parameters * share * len(e.precisions)
    return Stage(tuple(works), 3 * 4 * o.shape.parameters / MB + o.cache_mb, disk / MB)


def report(o: Outline) -> Stage:
    """The pages."""
    return Stage((Work("report", REPORT),), 0.0, 2.0 + 0.001 * o.images.test)
