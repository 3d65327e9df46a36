"""What the costs of a run are worked out from, and what they are made of: pieces of work, memory, disk."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from vitprune.pruning.repair import streams
from vitprune.pruning.repair.names import closed_form
from vitprune.recipe.parts import Whole
from vitprune.recipe.recipe import Recipe
from vitprune.runs.costs import formulas
from vitprune.runs.costs.facts import Images, Set, Shape
from vitprune.runs.costs.rates import Rates
from vitprune.runs.stages.image_scores import Discovery

MB = 1e6  # bytes
TRAINING = 1.3  # passes forward and back, of one of training


@dataclass(frozen=True, slots=True)
class Work:
    """A piece of work: the seconds that it takes one process, and in how many parts workers can share it."""

    name: str
    seconds: float
    parts: int = 1

    def taken(self, workers: int, alone: float) -> float:
        """Seconds among so many workers; what they cannot share goes `alone` times as fast in the process that has all
        threads."""
        return self.seconds / min(workers, self.parts) if self.parts > 1 else self.seconds / alone


@dataclass(frozen=True, slots=True)
class Stage:
    """The works of a stage; megabytes of memory beside what the process has anyway, and of disk."""

    works: tuple[Work, ...] = ()
    memory_mb: float = 0.0
    disk_mb: float = 0.0


@dataclass(frozen=True, slots=True)
class Outline:
    """Everything that the formulas need to know. `room`: bytes that are free for streams that are kept from repair to repair,
    of which `kept_room` lie in memory; `streams_room`: those of one repair that do; `batch`: images of a pass; `undone`: what
    is left of work that was interrupted, by its key."""

    recipe: Recipe
    shape: Shape
    images: Images
    rates: Rates
    repair: str
    discoveries: tuple[Discovery, ...]
    workers: int = 1
    batch: int = 1
    room: int = 1 << 32
    streams_room: int = streams.IN_MEMORY
    kept_room: float = math.inf
    undone: dict[str, float] = field(default_factory=dict)

    def work(self, name: str, seconds: float, parts: int = 1, key: str = "") -> Work:
        """A piece of work, less the share of its parts that is there already."""
        return Work(name, seconds * self.undone.get(key, 1.0), parts)

    @property
    def budgets(self) -> tuple[Whole | None, ...]:
        """What is left of each model that is made: one, or those of a frontier."""
        return self.recipe.whole.each if self.recipe.whole is not None else (None,)

    def decoding(self, images: int) -> float:
        """Seconds to prepare images for another pass; nothing where they stay in memory."""
        return 0.0 if self.images.kept else images * self.rates.prepare

    def forward(self, images: float, share: float = 1.0) -> float:
        """Seconds of forward passes of a model with a share of the dense one's multiply-adds."""
        return images * self.rates.forward * share

    def repairing(self, repair: str, one: Set, share: float, kept: bool) -> float:
        """Seconds of a repair from a class set's images; `kept`: the dense model's streams are there already."""
        seen, shape, rates = one.refit(self.recipe.refit_images), self.shape, self.rates
        if repair == "none":
            return 0.0
        single, double = formulas.refitting(shape, repair, share, seen)
        total = self.forward(formulas.passes(repair, share, seen, shape.outputs, kept))
        total += single / rates.product + double / rates.double
        if repair.endswith("distill"):
            step = rates.forward + TRAINING * rates.gradient * share
            total += self.recipe.distill_epochs * (seen * step + self.decoding(seen))
        return total + (self.decoding(seen) if total else 0.0)

    def streams_kept(self, one: Set) -> bool:
        """Whether the dense model's streams stay from one repair to the next."""
        if closed_form(self.repair) not in ("sequential", "layerwise"):
            return False
        seen = one.refit(self.recipe.refit_images) * self.workers
        return formulas.streams_bytes(self.shape, seen) <= streams.KEPT_SHARE * self.room

    def repair_memory(self, one: Set) -> tuple[float, float]:
        """Megabytes of a repair in memory and in the run's folder, of all workers that repair at once."""
        if closed_form(self.repair) not in ("sequential", "layerwise"):
            return self.pass_mb, 0.0
        seen = one.refit(self.recipe.refit_images)
        carried = formulas.carried_bytes(self.shape, seen)
        lying = formulas.spilled(carried, self.streams_room)
        kept = formulas.streams_bytes(self.shape, seen) if self.streams_kept(one) else 0
        filed = formulas.spilled(kept, self.kept_room)
        return (carried - lying + kept - filed) / MB * self.workers + self.pass_mb, (lying + filed) / MB * self.workers

    @property
    def pass_mb(self) -> float:
        """Megabytes of a pass with the way back, of all workers."""
        return self.batch * self.shape.pass_bytes / MB * self.workers

    @property
    def cache_mb(self) -> float:
        """Megabytes of images that stay in memory, of all workers."""
        return self.images.count * self.shape.image_bytes / MB * self.workers if self.images.kept else 0.0
