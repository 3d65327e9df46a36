"""The costs of a whole run, of a comparison and of one of the paper's tables, from the run as it is opened."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import psutil

from vitprune.core import memory
from vitprune.core.reading import Json
from vitprune.criteria.catalog import CRITERIA
from vitprune.pruning.repair import streams
from vitprune.pruning.repair.names import needs_moments
from vitprune.recipe.experiments import Compare, Paper
from vitprune.recipe.recipe import Recipe
from vitprune.runs.costs import done, making, rates, scoring, seeing
from vitprune.runs.costs.facts import Images, Shape, left
from vitprune.runs.costs.outline import MB, Outline, Stage, Work
from vitprune.runs.costs.rates import Asked, Rates, name_of
from vitprune.runs.stages import score
from vitprune.runs.stages.image_scores import Discovery
from vitprune.runs.state.run import Run

STAGES: dict[str, Callable[[Outline], Stage]] = {
    "split": scoring.split,
    "choose": scoring.choosing,
    "discover": scoring.discover,
    "moments": scoring.moments,
    "prune": making.prune,
    "evaluate": making.evaluate,
    "export": making.export,
    "see": seeing.see,
    "report": making.report,
}
LAST = {"discover": "discover", "prune": "prune", "evaluate": "evaluate", "export": "export", "run": "report"}


@dataclass(frozen=True, slots=True)
class Cost:
    """What a stage costs: seconds, megabytes of memory at its highest point and of disk; `done`: it is there already."""

    seconds: float
    memory_mb: float
    disk_mb: float
    done: bool = False

    def as_json(self) -> Json:
        """The cost as `plan --json` has it."""
        made: Json = {"seconds": round(self.seconds, 1), "memory_mb": round(self.memory_mb)}
        return made | {"disk_mb": round(self.disk_mb, 1), "done": self.done}


@dataclass(frozen=True, slots=True)
class Estimate:
    """The cost of every stage, and the seconds of every piece of work by its name. `spilled_mb`: of the disk, what a
    repair's streams take that find no room in memory, until it ends."""

    stages: dict[str, Cost]
    works: dict[str, float] = field(default_factory=dict)
    spilled_mb: float = 0.0

    @property
    def seconds(self) -> float:
        return sum(cost.seconds for cost in self.stages.values())

    @property
    def memory_mb(self) -> float:
        return max((cost.memory_mb for cost in self.stages.values()), default=0.0)

    @property
    def disk_mb(self) -> float:
        return sum(cost.disk_mb for cost in self.stages.values())

    def as_json(self) -> Json:
        """`cost` of `plan --json`."""
        stages = {name: cost.as_json() for name, cost in self.stages.items()}
        total = Cost(self.seconds, self.memory_mb, self.disk_mb).as_json()
        made = {key: total[key] for key in ("seconds", "memory_mb", "disk_mb")}
        return {"stages": stages, **made, "spilled_mb": round(self.spilled_mb, 1)}


def of_run(run: Run, verb: str = "run", force: bool = False) -> Estimate:
    """What the stages up to a verb's last will cost, less what is done. Raises UserError where no image can be read."""
    there = set() if force else done.finished(run)
    names = _stages(verb, run.recipe)
    if all(name in there for name in names if name != "report"):
        return Estimate({name: Cost(0.0, 0.0, 0.0, True) for name in names})
    o = outline(run, force)
    made = {name: STAGES[name](o) for name in names}
    return added(made, there, o, used_mb(run))


def _stages(verb: str, recipe: Recipe) -> list[str]:
    """The stages of a verb that are told."""
    names = list(STAGES)
    wanted = names[: names.index(LAST[verb]) + 1]
    idle = {"choose"} if recipe.criterion.name != "auto" else set()
    idle |= {"see"} if recipe.see is None else set()
    return [name for name in wanted if name not in idle and (verb != "export" or name != "evaluate")]


def outline(run: Run, force: bool = False) -> Outline:
    """The run in numbers, with the rates of this machine."""
    shape = Shape.of(run)
    found = tuple(score.discoveries(_among(run)))
    asked = Asked(found, [*_summed(run), *seeing.sums(run)], seeing.looks(run))
    return Outline(
        run.recipe, shape, Images.of(run, shape.image_bytes), rates.measured(run, asked), run.recovery, found,
        run.workers, run.batching.batch, memory.free(run.device), sum(streams.rooms(run.device)),
        streams.kept_room(run.device, run.workers), {} if force else done.undone(run, found, run.recovery),
    )  # fmt: skip


def _among(run: Run) -> Run:
    """The run with the candidates of `auto` for baselines, whose own criterion is then one of them."""
    own = run.recipe.criterion
    if own.name != "auto":
        return run
    update = {"criterion": own.model_copy(update={"name": own.among[0]}), "baselines": scoring.names_of(run.recipe)}
    made = run.inside(run.folder.root, run.recipe.model_copy(update=update))
    return made


def _summed(run: Run) -> list[tuple[str, bool]]:
    """The criteria that are sums over images, and what the repair's statistics are."""
    names = [name for name in scoring.names_of(run.recipe) if CRITERIA[name].summed]
    made = [(name, run.recipe.prunes_attention and CRITERIA[name].attention is not None) for name in names]
    return [*made, ("obs", False)] if needs_moments(run.recovery) else made


def used_mb(run: Run) -> float:
    """Megabytes that the process has with the model open, and as many again for every worker."""
    own = psutil.Process().memory_info().rss / MB
    return float(own * (1 + (run.workers if run.workers > 1 else 0)))


def added(made: Mapping[str, Stage], there: set[str], o: Outline, used: float) -> Estimate:
    """The estimate from the stages' works."""
    costs, works = dict[str, Cost](), dict[str, float]()
    for name, stage in made.items():
        if name in there:
            costs[name] = Cost(0.0, 0.0, 0.0, True)
            continue
        seconds = 0.0
        for work in stage.works:
            spent = work.taken(o.workers, o.rates.alone)
            seconds += spent
            works[work.name] = works.get(work.name, 0.0) + spent
        costs[name] = Cost(seconds, used + stage.memory_mb, stage.disk_mb)
    at_work = "prune" in costs and not costs["prune"].done
    spilled = max((o.repair_memory(one)[1] for one in o.images.sets), default=0.0) if at_work else 0.0
    return Estimate(costs, works, spilled)


def of_compare(run: Run, spec: Compare, force: bool = False) -> Estimate:
    """What a comparison will cost, from the run of its first seed: the discovery of every criterion for each seed, and every
    cell's repair and exam."""
    o = outline(run, force)
    folder, seeds = run.folder.root.parent, len(spec.seeds)
    known = 0 if force else len(list(folder.glob("seed-*/cells/*.json")))
    cells = _cells(o, spec)
    undone = max(0.0, 1 - known / max(1, seeds * (1 + cells[1])))
    begun = 0 if force else sum((folder / f"seed-{s}/stages/discover/stage.json").is_file() for s in spec.seeds)
    made = {name: _times(STAGES[name](o), seeds - begun) for name in ("split", "discover", "moments")}
    table = Stage((Work("cells", cells[0] * seeds * undone, cells[1] + 1),), making.evaluate(o).memory_mb)
    return added(made | {"cells": table}, set(), o, used_mb(run))


def _times(stage: Stage, count: int) -> Stage:
    """The same for so many seeds."""
    return replace(stage, works=tuple(replace(w, seconds=count * w.seconds) for w in stage.works))


def _cells(o: Outline, spec: Compare) -> tuple[float, int]:
    """Seconds of the cells of one seed, and how many models they are."""
    sizes = [(None, keep) for keep in spec.keep or ()] + [(budget, None) for budget in spec.budget or ()]
    names, one = [name for name in spec.criteria if name != "auto"], o.images.union
    total, kept = o.forward(one.test) + o.decoding(one.test), False
    for (budget, keep), repair in itertools.product(sizes, spec.recovery):
        share = left(o.recipe, o.shape, budget, keep)
        total += len(names) * (
            o.repairing(repair, one, share, kept) + o.forward(one.test, share) + o.decoding(one.test)
        )
        kept = o.streams_kept(one)
    return total, len(names) * len(sizes) * len(spec.recovery)


def of_paper(run: Run, spec: Paper, force: bool = False) -> Estimate:
    """What one of the paper's tables will cost."""
    o = outline(run, force)
    there = set() if force else done.finished(run)
    made = {name: STAGES[name](o) for name in ("split", "discover")}
    most = spec.images_per_class or o.images.test
    tests = min(o.images.test, most * max(1, len(o.images.union.per_class)))
    passes = _passes(o.rates, run, spec) if spec.table == "table-1" else _grid(run, spec)
    table = Stage((Work("table", o.forward(tests * passes) + passes * o.decoding(tests), 1),), o.pass_mb + o.cache_mb)
    return added(made | {"table": table}, there, o, used_mb(run))


def _grid(run: Run, spec: Paper) -> float:
    """Forward passes of a test image that a table of class sets takes."""
    p = run.recipe.paper_protocol
    return 1 + 2 * len(spec.rules) * len(p.t if p else ()) * len(spec.p) * len(spec.depth or [0])


def _passes(found: Rates, run: Run, spec: Paper) -> float:
    """The same of table 1: a path and its score at every node for each criterion, and two interventions."""
    how, total = run.recipe.criterion.how, 1.0
    for name, rule in itertools.product(spec.criteria, spec.rules):
        asked = Discovery(name, how(name), 1, (1,))
        own = asked.nodes * found.criteria.get(name_of(asked), found.gradient * len(run.sites) / 2)
        total += (
            2 + (own if rule == "image" else 0.0) / found.forward + how("jas").nodes * found.gradient / found.forward
        )
    return total
