"""The paper's own pruning protocol (App. E.2), which Table 2, Table 3 and Figure 6 share, and what its code does beside.

Class sets of t units per block from the probe split; at test time the set of the image's TRUE label is kept at the class
token and everything else zeroed: oracle-routed, no deployable accuracy, and nothing gets smaller. Two class sets: the
units most `frequent` among the pooled 40·t (the paper), or the most frequent one of every rank, `mode-per-rank` (the
authors' code, where a unit can take two ranks). What the code calls accuracy is the mean probability of the true class,
over test images of which one per class was also a probe image: that figure stands beside the others under its own name.
Legend: C classes, L blocks, n hidden units of a block, K classes examined.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from vitprune.criteria import paths
from vitprune.exam import metrics
from vitprune.exam.logits import logits_of, predictor, test_indices
from vitprune.exam.oracle import oracle_logits
from vitprune.images import split
from vitprune.pruning import masks
from vitprune.recipe.experiments import Paper
from vitprune.runs.stages import score
from vitprune.runs.state.run import Run

Rule = Literal["image", "frequency", "mode-per-rank"]
COLUMNS = "top-1 % | mean probability | the same, one probe image per class among them"
ALIGN = "---:|---:|---:"


@dataclass(frozen=True, slots=True)
class Source:
    """One finished discovery, and how class sets are made of it."""

    criterion: str
    t: int
    how: Any
    per_class: int
    rule: Rule = "frequency"


def class_masks(run: Run, source: Source) -> list[Tensor]:
    """Which units are in each class's set: per block bool [C, n], at most t in a row."""
    if source.rule == "frequency":
        return masks.per_class(_scores(run, source), source.t)
    units_CLt, made = _modes(run, source), []
    for i, site in enumerate(run.sites):
        keep = torch.zeros(len(units_CLt), site.size, dtype=torch.bool)
        met = units_CLt[:, i, 0] >= 0
        keep[met] = keep[met].scatter(1, units_CLt[met, i], True)
        made.append(keep)
    return made


def class_paths(run: Run, source: Source) -> Tensor:
    """The first unit of every block in each class's set, int64 [C, L]; -1 for a class without images under the modes."""
    if source.rule == "mode-per-rank":
        return _modes(run, source)[:, :, 0]
    return torch.stack([keep.int().argmax(1) for keep in masks.per_class(_scores(run, source), 1)], 1)


def _scores(run: Run, source: Source) -> Any:
    return score.load(run, source.criterion, source.t, source.how, source.per_class)


def _modes(run: Run, source: Source) -> Tensor:
    columns = score.columns(run, source.criterion, source.t, source.how, source.per_class)
    widths = [site.size for site in run.sites]
    return torch.from_numpy(paths.mode_per_rank(columns, range(run.loaded.outputs), widths))


def tested(run: Run, spec: Paper) -> np.ndarray:
    """The test images of the recipe's classes, the first `images_per_class` of each."""
    index = test_indices(run.images, run.split, np.array(run.classes.every()))
    return split.first_per_class(index, run.source.class_of, spec.images_per_class or len(index))


@dataclass(frozen=True, slots=True)
class Exam:
    """Images [N + K] in the source: N test images, then K probe images. `theirs`: positions of the authors' test images,
    where the last probe image of each class that discovery used takes the place of its last test image."""

    index: np.ndarray
    tests: int
    theirs: np.ndarray

    @classmethod
    def open(cls, run: Run, spec: Paper, per_class: int) -> Exam:
        """The exam of a recipe whose discoveries looked at `per_class` probe images of each class."""
        tests, class_of = tested(run, spec), run.source.class_of
        probe = split.first_per_class(run.split.probe, class_of, per_class)
        classes = np.unique(class_of[tests])
        last_test = [np.flatnonzero(class_of[tests] == c)[-1] for c in classes]
        last_probe = np.array([probe[class_of[probe] == c][-1] for c in classes], np.int64)
        index = np.concatenate([tests, last_probe])
        return cls(index, len(tests), np.setdiff1d(np.arange(len(index)), last_test))

    def of_model(self, run: Run, model: nn.Module) -> dict[str, Any]:
        """One model for every image."""
        return self.measured(*logits_of(predictor(model), run.images, self.index, run.batching.batch))

    def oracle(self, run: Run, keep_CN: list[Tensor]) -> dict[str, Any]:
        """The dense model under the class token's masks, each image's by its true label."""
        model, sites = run.loaded.model, run.sites
        return self.measured(*oracle_logits(model, sites, keep_CN, run.images, self.index, run.batching.batch))

    def measured(self, logits: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
        """Top-1 and mean probability on the test images, and the latter on the authors'; logits of `index`."""
        own = metrics.metrics(logits[: self.tests], labels[: self.tests])
        theirs = metrics.metrics(logits[self.theirs], labels[self.theirs])
        return {
            "top1": own.top1,
            "top1_ci95": list(own.top1_ci95),
            "mean_true_probability": own.mean_true_probability,
            "mean_true_probability_overlapping": theirs.mean_true_probability,
        }


def shown(row: dict[str, Any]) -> str:
    """The cells of COLUMNS."""
    p = (row["mean_true_probability"], row["mean_true_probability_overlapping"])
    return f"{100 * row['top1']:.2f} | {p[0]:.3f} | {p[1]:.3f}"
