"""One line of figures: a model, pruned or dense, examined on test images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from vitprune.core.reading import Json
from vitprune.exam import metrics

Head = Literal["all", "masked"]


@dataclass(frozen=True, slots=True)
class Paired:
    """The exact McNemar test against another model, the exported or the dense one: its p, and how many images only the
    one and only the other got right; None for that model itself."""

    p: float | None
    only_right: tuple[int, int] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What was examined, how well it did and what it costs; accuracies are fractions, `kept` is of all units.

    `sites`: which kinds were pruned; `budget`: that of the whole model, as a mapping; `macs_ratio`: to the dense
    model, of the ONNX file where the budget is its, `macs_ratio_checkpoint` always of the checkpoint; `kl`:
    mean KL(dense ‖ row) in nats on the same images with the same head. These are None in rows of before they were written.
    `exported`, `paired` (against the exported model) and `of_dense` (against the dense one) stand in the rows of a run only.
    `hits` says which of the n images were right, bool [n].
    """

    criterion: str
    keep: int | float | None
    kept: float
    allocation: str
    recovery: str
    protocol: Literal["honest", "oracle"] = "honest"
    t: int | None = None
    group: str | None = None
    classes: tuple[str, ...]
    head: Head = "all"
    seed: int
    top1: float
    top1_ci95: tuple[float, float]
    mean_true_probability: float
    per_class_top1: dict[str, float | None]
    params: int
    macs: int
    n: int
    sites: tuple[str, ...] | None = None
    budget: dict[str, float] | None = None
    macs_ratio: float | None = None
    macs_ratio_checkpoint: float | None = None
    kl: float | None = None
    exported: bool | None = None
    paired: Paired | None = None
    of_dense: Paired | None = None
    hits: np.ndarray | None = field(default=None, compare=False, repr=False)

    def as_json(self) -> dict[str, Any]:
        """The row as report.json has it; `hits` is left out, and so is what stands in the rows of a run only."""
        made: dict[str, Any] = {name: getattr(self, name) for name in _PLAIN}
        made |= {name: list(made[name]) for name in _LISTS if made[name] is not None}
        if self.exported is not None:
            made["exported"] = self.exported
        if self.paired is not None:
            only = self.paired.only_right
            made |= {"mcnemar_p": self.paired.p, "only_right": None if only is None else list(only)}
        if self.of_dense is not None:
            only = self.of_dense.only_right
            made |= {"dense_p": self.of_dense.p, "dense_only_right": None if only is None else list(only)}
        return made

    @classmethod
    def from_json(cls, content: Mapping[str, Any], hits: np.ndarray | None = None) -> Row:
        """The row that `as_json` gave, with its hits; anything else in `content` is passed over."""
        given: Json = {name: content.get(name) if name in _LATER else content[name] for name in _PLAIN}
        return cls(**given | {name: tuple(given[name]) for name in _LISTS if given[name] is not None}, hits=hits)

    def against(self, ours: Row) -> Row:
        """This row with the test against `ours`, on the same images."""
        return replace(self, paired=self._test(ours, self is ours))

    def beside(self, dense: Row) -> Row:
        """This row with the test against the dense model, on the same images."""
        return replace(self, of_dense=self._test(dense, self.criterion == "dense"))

    def _test(self, other: Row, itself: bool) -> Paired:
        if itself:
            return Paired(None, None)
        mine, others = self.hits, other.hits
        assert mine is not None and others is not None
        only = int((mine & ~others).sum()), int((others & ~mine).sum())
        return Paired(metrics.mcnemar(mine, others), only)


_LISTS = ("classes", "top1_ci95", "sites")
_LATER = ("sites", "budget", "macs_ratio", "macs_ratio_checkpoint", "kl")  # not in the rows of 0.1.0
_PLAIN = tuple(name for name in Row.__dataclass_fields__ if name not in ("exported", "paired", "of_dense", "hits"))
