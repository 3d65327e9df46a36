"""Every model of a table is made and examined here: the dense one, the exported one, and those pruned to stand beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import nn

from vitprune.core.errors import UserError
from vitprune.criteria.catalog import allocation_of
from vitprune.exam import metrics
from vitprune.exam.logits import predictor, test_indices, test_logits
from vitprune.exam.metrics import Metrics
from vitprune.model import classifier, size
from vitprune.model.inside import first_token
from vitprune.model.load import opening
from vitprune.pruning.plan import Plan
from vitprune.pruning.repair.names import Recovery
from vitprune.recipe.exports import of_file
from vitprune.runs.results import attention, losses
from vitprune.runs.results.row import Head, Row
from vitprune.runs.stages import score
from vitprune.runs.stages.prune import exported_mask, mask_of, same_sizes, slimmed, whole_plan
from vitprune.runs.state import lengths
from vitprune.runs.state.run import Run

DENSE = "dense"
WHOLE = "whole"  # the allocation of a row under a budget of the whole model


@dataclass(frozen=True, slots=True)
class Contender:
    """What a model is made by. `seed` is that of the split, or of the draw where the criterion is `random`; `group` names
    the class set it serves (None: every class of the run). `keep` None: under a `budget` of the whole model, its word and its
    amount."""

    criterion: str
    keep: int | float | None
    repair: Recovery
    seed: int
    group: str | None = None
    budget: tuple[str, float] | None = None

    @classmethod
    def dense(cls, seed: int, group: str | None = None) -> Contender:
        """The model as it was, examined on a class set."""
        return cls(DENSE, 1.0, "none", seed, group)

    @property
    def is_dense(self) -> bool:
        """Whether nothing is pruned."""
        return self.criterion == DENSE

    @property
    def file_name(self) -> str:
        """File name of its figures, among those of the same class set."""
        if self.is_dense:
            return f"dense-s{self.seed}.json"
        kind = "n" if isinstance(self.keep, int) else "r"
        kept = "{}{:g}".format(*self.budget) if self.budget else f"{kind}{self.keep:g}"
        return f"{self.criterion}-{kept}-{self.repair}-s{self.seed}.json"


@dataclass(frozen=True, slots=True)
class Made:
    """A contender's model, and the plan it was pruned by (None: dense). `logits` [N, C] are those on the test images of its
    class set, where they are known."""

    model: nn.Module
    plan: Plan | None
    logits: np.ndarray | None = None

    @property
    def kept(self) -> float:
        """Share of all units that is left."""
        return 1.0 if self.plan is None else self.plan.kept

    def costs(self, run: Run) -> tuple[int, int, int]:
        """Parameters, multiply-adds of an image, and those that a budget is of: of the ONNX file where it is the file's."""
        macs, filed = size.macs(self.model), of_file(run.recipe.whole, run.recipe.export) and self.plan is not None
        short = filed and first_token.why_not(self.model) is None
        return size.parameters(self.model), macs, size.macs(self.model, shortcut=True) if short else macs


@dataclass(frozen=True, slots=True)
class Examined:
    """A contender's rows, each with its hits, and the logits [N, C] and labels [N] they are of.

    The first row is of the whole head where the model has one; another is of the class set's own outputs, the others
    closed, where the set is not all of them.
    """

    rows: tuple[Row, ...]
    logits: np.ndarray
    labels: np.ndarray


def own(run: Run, repair: Recovery, group: str | None = None) -> Contender:
    """The run's own criterion and budget; with the run's repair, what is exported."""
    recipe = run.recipe
    seed = recipe.criterion.seed if recipe.criterion.name == "random" else recipe.split.seed
    return Contender(recipe.criterion.name, recipe.keep, repair, seed, group, budget_of(run, group))


def budget_of(run: Run, group: str | None) -> tuple[str, float] | None:
    """The run's budget of the whole model, its word and its amount; None where it goes by `keep`."""
    if run.recipe.whole is None:
        return None
    whole = losses.settled(run, group)
    return whole.of, whole.amount


def targets_of(run: Run, group: str | None) -> list[int]:
    """The outputs of a class set; under groups None is all of theirs together."""
    sets = run.classes.sets()
    return sets[group] if group in sets else run.classes.every()


def exported(run: Run, group: str | None) -> Made:
    """What the prune stage exported for a class set, read from its folder."""
    model = opening.load(run.folder.root / (group or ""), run.device)
    return Made(model, exported_mask(run, group, targets_of(run, group)))


def make(run: Run, contender: Contender, plan: Plan | None = None) -> Made:
    """The contender's model: pruned by `plan` (None: by its criterion's scores at its budget) and repaired."""
    if contender.is_dense:
        return Made(run.loaded.model, None)
    name, group, targets = contender.criterion, contender.group, targets_of(run, contender.group)
    if plan is None:
        plan = _plan(run, contender, targets)
    dense = score.model_of(run, name, group)
    return Made(slimmed(run, plan, contender.repair, group, targets, dense), plan)


def _plan(run: Run, contender: Contender, targets: list[int]) -> Plan:
    """What the contender's criterion keeps at its budget. Under one of the whole model a criterion that knows FFN units alone
    chooses as many of them as the run's own criterion leaves, beside the attention that this leaves."""
    name, group, budget = contender.criterion, contender.group, contender.budget
    t, own = lengths.of(run, name, contender.keep), run.recipe.criterion
    scores = score.scores_of(run, name, contender.seed, group, t)
    if budget is None:
        return mask_of(run, scores, targets, contender.keep)
    curves = attention.curves_of(run, name, contender.seed, group)
    if name == own.name or (curves and scores.curves is not None):
        return whole_plan(run, scores, curves, targets, budget)
    if budget == budget_of(run, group) and run.folder.record("prune"):
        return same_sizes(exported_mask(run, group, targets), scores, curves, targets)
    sizes = score.scores_of(run, own.name, own.seed, group), attention.of_file(run, group)
    return same_sizes(whole_plan(run, *sizes, targets, budget), scores, curves, targets)


def dense_logits(run: Run, targets: list[int]) -> np.ndarray:
    """The dense model's logits [N, C] on the test images of a class set; those of the last one are kept."""
    key = tuple(targets)
    if run.dense_logits is None or run.dense_logits[0] != key:
        run.dense_logits = (key, _logits(run, run.loaded.model, targets)[0])
    return run.dense_logits[1]


def _logits(run: Run, model: nn.Module, targets: list[int]) -> tuple[np.ndarray, np.ndarray]:
    return test_logits(predictor(model), run.images, run.split, run.batching.batch, np.array(targets))


def examine(run: Run, contender: Contender, made: Made | None = None) -> Examined:
    """The contender's rows on the test images of its class set; `made` is its model where it is there already."""
    made = make(run, contender) if made is None else made
    targets, outputs = targets_of(run, contender.group), run.loaded.outputs
    if made.logits is None:
        logits, labels = _logits(run, made.model, targets)
    else:
        logits, labels = made.logits, run.images.labels[test_indices(run.images, run.split, np.array(targets))]
    if contender.is_dense:
        run.dense_logits = (tuple(targets), logits)
    heads: tuple[Head, ...] = ("all", "masked") if len(targets) < outputs else ("all",)
    if logits.shape[1] < outputs:
        heads = ("masked",)  # the other outputs are gone: there is no head that has them all
    logits = classifier.widen(logits, targets, outputs)
    costs = made.costs(run)
    rows = tuple(row(run, contender, made.kept, costs, logits, labels, head) for head in heads)
    return Examined(rows, logits, labels)


def row(
    run: Run,
    contender: Contender,
    kept: float,
    costs: tuple[int, int, int],
    logits: np.ndarray,
    labels: np.ndarray,
    head: Head = "all",
) -> Row:
    """The row of logits [N, C]; `kept` is the share of units, `costs` are those of `Made`."""
    targets = targets_of(run, contender.group)
    open_outputs = targets if head == "masked" else None
    m = _finite_metrics(logits, labels, open_outputs, contender.criterion)
    kinds: Sequence[str] = ["ffn"] if contender.budget is None else run.recipe.prune or ["ffn", "attention"]
    return Row(
        criterion=contender.criterion,
        keep=contender.keep,
        kept=kept,
        allocation=WHOLE if contender.keep is None else allocation_of(contender.criterion, run.recipe.allocation),
        recovery=contender.repair,
        group=contender.group,
        classes=tuple(run.classes.name(i) for i in targets),
        head=head,
        seed=contender.seed,
        top1=m.top1,
        top1_ci95=m.top1_ci95,
        mean_true_probability=m.mean_true_probability,
        per_class_top1={run.classes.name(i): number(m.per_class[i]) for i in targets},
        params=costs[0],
        macs=costs[1],
        n=m.n,
        sites=() if contender.is_dense else tuple(kind for kind in kinds if kind != "depth"),
        budget=None if contender.budget is None else dict([contender.budget]),
        macs_ratio=costs[2] / run.dense_macs,
        macs_ratio_checkpoint=costs[1] / run.dense_macs,
        kl=0.0 if contender.is_dense else metrics.kl(dense_logits(run, targets), logits, open_outputs),
        hits=metrics.hits(logits, labels, open_outputs),
    )


def _finite_metrics(logits: np.ndarray, labels: np.ndarray, head: Sequence[int] | None, name: str) -> Metrics:
    try:
        return metrics.metrics(logits, labels, head)
    except ValueError as error:
        raise UserError(f"evaluate, {name}: {error}; check the model's weights and the images") from error


def number(value: float) -> float | None:
    """The value, or None where it is NaN: JSON has none."""
    return None if math.isnan(value) else value


@dataclass(frozen=True, slots=True)
class Cell:
    """A contender's rows in a comparison. `chosen` is the criterion that `auto` took, None for all others."""

    whole: Row
    masked: Row | None = None
    chosen: str | None = None

    @classmethod
    def of(cls, run: Run, contender: Contender) -> Cell:
        """The contender made and examined; its logits are not kept."""
        rows = examine(run, contender).rows
        if lengths.needs_t(contender.criterion):
            rows = tuple(replace(row, t=lengths.of(run, contender.criterion, contender.keep)) for row in rows)
        return cls(rows[0], rows[1] if len(rows) > 1 else None)

    @property
    def hits(self) -> np.ndarray:
        """Which test images the whole head gets right, bool [n]."""
        assert self.whole.hits is not None
        return self.whole.hits

    def as_json(self) -> dict[str, Any]:
        """The cell as its file keeps it: a row as in report.json, the images it got right as hexadecimal bits."""
        made = self.whole.as_json() | {"hits": np.packbits(self.hits).tobytes().hex()}
        return made | ({"masked": self.masked.as_json()} if self.masked else {})

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Cell:
        """The cell that `as_json` gave."""
        masked = content.get("masked")
        return cls(Row.from_json(content, hits_of(content)), Row.from_json(masked) if masked else None)


def hits_of(content: dict[str, Any]) -> np.ndarray:
    """Which test images a cell's file says the model got right, bool [n]."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(content["hits"]), np.uint8))[: content["n"]].astype(bool)
