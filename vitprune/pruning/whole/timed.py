"""A plan that takes the asked share of the dense model's time, measured: a sum of parts is not the time of the whole.

The prices give a plan; its model, exported, is timed beside the dense one; what that says of the prices moves the aim of
the next plan. Everything that was measured is kept in one file, so that the same curves give the same plan again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from torch import nn

from vitprune.core.errors import UserError
from vitprune.core.files import write_sealed
from vitprune.core.reading import Json, digest, read_sealed
from vitprune.criteria.scores import Scores
from vitprune.criteria.statistics.attention_curve import AttentionCurve
from vitprune.deploy.onnx import exporting
from vitprune.deploy.stopwatch import Stopwatch
from vitprune.model.inside import first_token
from vitprune.pruning import surgery
from vitprune.pruning.plan import Plan
from vitprune.pruning.whole import allocation, latency
from vitprune.pruning.whole.latency import Latency, Table, Timer

NEAR, AIM = 0.94, 0.97  # of the share that is asked for: near enough from there on, and what the next plan aims at
ROUNDS = 8  # plans that are measured at most


class Clock(Timer, Protocol):
    """Who measures models too: `Files`, or a test."""

    def facts(self) -> Json:
        """What the times depend on beside the models."""
        ...

    def dense(self, model: nn.Module) -> float:
        """Milliseconds of the dense model."""
        ...

    def ratio(self, dense: nn.Module, slim: nn.Module) -> float:
        """The slim model's time over the dense one's."""
        ...

    @property
    def shortcut(self) -> bool:
        """Whether the last block is timed for the class token alone, where the model allows it."""
        ...


class Files:
    """Models as ONNX files in a folder for temporary ones, timed by a stopwatch. `shortcut`: the last block of the slim ones
    is there for the class token alone, where the model allows it; the dense one is written without."""

    def __init__(self, watch: Stopwatch, folder: Path, shortcut: bool = False) -> None:
        self.watch, self.folder, self.shortcut = watch, folder, shortcut
        self.facts, self.pieces = watch.facts, watch.pieces

    def dense(self, model: nn.Module) -> float:
        """Least milliseconds of the dense model's file."""
        return self.watch.whole(self._dense(model))

    def ratio(self, dense: nn.Module, slim: nn.Module) -> float:
        """The slim file's time over the dense one's, in turn."""
        path = self.folder / "slim.onnx"
        exporting.export(first_token.of(slim) if self.shortcut else slim, path, {})
        return self.watch.ratio(self._dense(dense), path)

    def _dense(self, model: nn.Module) -> Path:
        path = self.folder / "dense.onnx"
        if not path.is_file():
            exporting.export(model, path, {})
        return path


class Timed:
    """What was measured of a model: the table of shapes, and whole models by their sizes. It is in the file `path`; what
    that does not have of this model on this machine is measured by the `clock` when it is asked for."""

    def __init__(self, model: nn.Module, clock: Clock, path: Path, say: Callable[[str], None]) -> None:
        self.model, self.clock, self.path, self.say = model, clock, path, say
        self.shortcut = clock.shortcut and first_token.why_not(model) is None
        plain, kinds = latency.kinds(model), latency.kinds(model, self.shortcut)
        self.of = clock.facts() | {"sites": digest({site: latency.name_of(kind) for site, kind in kinds.items()})}
        read = read_sealed(path) or {}
        self.ratios: dict[str, float] = dict(read["ratios"]) if read.get("of") == self.of else {}
        if read.get("of") == self.of:
            self.table = Table.of(read)
        else:
            say("latency: measuring what every size of attention and FFN takes here")
            self.table = latency.measured({*plain.values(), *kinds.values()}, clock.dense(model), clock)
            self._keep()
        self.prices = Latency(kinds, plain, self.table)

    def ratio(self, plan: Plan) -> float:
        """The time of the plan's model over the dense one's."""
        if plan.whole and not self.shortcut:
            return 1.0
        name = ", ".join(sizes_of(plan))
        if name not in self.ratios:
            self.ratios[name] = self.clock.ratio(self.model, surgery.slim(self.model, plan))
            self._keep()
        return self.ratios[name]

    def _keep(self) -> None:
        write_sealed(self.path, {"of": self.of, **self.table.as_json(), "ratios": self.ratios})


def sizes_of(plan: Plan) -> list[str]:
    """What a plan's time depends on, site by site."""
    cuts = [f"{name} {cut.heads} x {cut.dim}" for name, cut in plan.attention.items()]
    return [*cuts, *(f"{name} {units}" for name, units in plan.widths.items())]


def plan(
    timed: Timed, scores: Scores, curves: Sequence[AttentionCurve], amount: float,
    classes: Sequence[int] = (), round_to: int | None = None, floor: int = 1,
) -> Plan:  # fmt: skip
    """What FFNs and attentions keep, so that the model takes at most the share `amount` of the dense one's time, measured.

    Of the plans that were measured to be within it, the slowest. Raises UserError where none is.
    """
    model, prices = timed.model, timed.prices
    _, least = allocation.ends(allocation.options_of(model, scores, curves, prices, round_to, floor), prices)
    target = prices.room(AIM * amount if amount < 1 else 1)
    points, found = [(prices.room(1), 1.0)], list[tuple[float, Plan]]()
    for _ in range(ROUNDS):
        price = max(target, least * (1 + 1e-9))
        made = allocation.plan(model, scores, curves, prices.amount(price), prices, classes, round_to, floor)
        ratio = timed.ratio(made)
        timed.say(f"latency: x {prices.amount(price):.3f} by its parts is x {ratio:.3f} of the dense model's time")
        points.append((price, ratio))
        found += [(ratio, made)] if ratio <= amount else []
        ends = target < least and ratio > amount, made.whole and ratio <= amount
        if NEAR * amount <= ratio <= amount or any(ends):
            break
        target = _aim(points, AIM * amount)
    if not found:
        best = math.ceil(1000 * min(ratio for _, ratio in points)) / 1000
        raise UserError(
            f"budget: latency: {amount:g} is below what any model measured here takes of the dense one's time, {best:g}; "
            "raise it, or try again while nothing else is at work here"
        )
    return max(found, key=lambda one: one[0])[1]


def _aim(points: Sequence[tuple[float, float]], aim: float) -> float:
    """The price at which the measured share is `aim`: by straight lines between what was measured, and below that by the
    one to the dense model's."""
    by_price = sorted(points)
    at = np.array([price for price, _ in by_price])
    shares = np.maximum.accumulate([share for _, share in by_price])
    if aim >= shares[0]:
        return float(np.interp(aim, shares, at))
    return float(at[0] - (at[-1] - at[0]) / max(shares[-1] - shares[0], 1e-9) * (shares[0] - aim))
