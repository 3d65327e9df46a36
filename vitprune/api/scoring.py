"""Scores of hidden units, and of the paths they make.

Legend: N images [N, C, H, W] as the model takes them (already normalised), labels [N] output indices.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from vitprune.core.device import device_of
from vitprune.core.errors import UserError
from vitprune.criteria import paths
from vitprune.criteria.attribution.path_scores import PathScores
from vitprune.criteria.attribution.path_scores import path_scores as path_scores_of
from vitprune.criteria.catalog import CRITERIA, applies
from vitprune.criteria.paths import Gathered
from vitprune.criteria.scores import Scores, to_scores
from vitprune.criteria.signatures import WholeScore
from vitprune.criteria.statistics.random import random
from vitprune.model import classifier, door, families
from vitprune.model.families import Reads
from vitprune.model.inside import backbone
from vitprune.model.sites.base import names
from vitprune.model.sites.ffn import FfnSite
from vitprune.pruning import masks
from vitprune.recipe.check import OF_BACKBONES
from vitprune.recipe.criterion import section


def discover(
    model: nn.Module,
    images: Tensor,
    labels: Tensor | None = None,
    *,
    criterion: str = "fisher-obs",
    t: int = 50,
    batch: int = 8,
    seed: int = 0,
    features: Reads | None = None,
    **settings: Any,
) -> Scores:
    """Score every hidden unit of every FFN, for every class where the criterion tells them apart.

    Returns, per block [C, n], class frequencies of the `t` best units per image (`jas` and its like), ties decided by the
    mean summed scores, or for a criterion that ranks by it the mean score itself; [1, n] for one that looks at all images
    together, like the default. A model without a head needs no labels; `features` says which of its features count, "tokens"
    (the default) or "pooled". `settings` are those of a recipe's `criterion`: `formula`, `nodes`,
    `quadrature`, `tokens`, … Raises UserError for an unknown criterion or setting, labels out of range, or a model
    that is not supported.
    """
    model = door.bare("discover", model)
    door.check_batch("discover", batch)
    with door.Inside(model), backbone.reading(model, features):
        sites = families.ffn_sites(model)
        if criterion == "random":
            return random(sites, seed=seed)
        if criterion not in CRITERIA:
            raise UserError(f"criterion `{criterion}`: not known; there are {', '.join([*CRITERIA, 'random'])}")
        row = CRITERIA[criterion]
        if not row.whole:
            masks.check_t(t, sites)
        how = _how(criterion, t, seed, settings)
        applies(criterion, getattr(how, "tokens", "cls"), model)
        images, labels = _given(model, images, labels, criterion)
        if row.whole:
            return _whole(row.whole, criterion, model, sites, images, labels, batch, how)
        return _per_image(criterion, model, sites, images, labels, batch, t, how)


def _given(model: nn.Module, images: Any, labels: Any, criterion: str) -> tuple[Tensor, Tensor]:
    """Images and labels, checked; of a backbone, which needs none, all are 0. Raises UserError for what needs a classifier."""
    if families.reads(model) is None:
        outputs = classifier.outputs(model)
        images = door.images_of("discover", model, images)
        return images, door.labels_of("discover", images, labels, outputs)
    if criterion not in OF_BACKBONES:
        raise UserError(f"criterion `{criterion}`: needs a classifier; of a backbone take {', '.join(OF_BACKBONES)}")
    images = door.images_of("discover", model, images)
    return images, torch.zeros(len(images), dtype=torch.int64)


def _per_image(
    criterion: str,
    model: nn.Module,
    sites: Sequence[FfnSite],
    images: Tensor,
    labels: Tensor,
    batch: int,
    t: int,
    how: Any,
) -> Scores:
    """The scores of a criterion that looks at one image at a time."""
    row, device, parts = CRITERIA[criterion], device_of(model), []
    assert row.score is not None
    kept = t if row.ranks_by == "frequency" else 0
    for start in range(0, len(images), batch):
        x, y = images[start : start + batch].to(device), labels[start : start + batch].to(device)
        scores = row.score(model, sites, x, y, ts=[t], how=how)[t]
        parts.append(Gathered.of(scores, y, np.arange(start, start + len(x)), kept))
    return to_scores(paths.merge(parts), criterion, names(sites), classifier.outputs(model), row.ranks_by)


def _whole(
    score: WholeScore,
    criterion: str,
    model: nn.Module,
    sites: Sequence[FfnSite],
    images: Tensor,
    labels: Tensor,
    batch: int,
    how: Any,
) -> Scores:
    device = device_of(model)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for x, y in zip(images.split(batch), labels.split(batch), strict=True):
            yield x.to(device), y.to(device)

    return Scores.whole(criterion, names(sites), score(model, sites, batches, how=how), len(images))


def path_scores(model: nn.Module, images: Tensor, labels: Tensor, units: Tensor, **settings: Any) -> PathScores:
    """JAS, joint integrated gradients and their completeness gap of given paths `units` [N, L, t], per image [N]."""
    model = door.bare("path_scores", model)
    with door.Inside(model):
        sites = families.ffn_sites(model)
        images = door.images_of("path_scores", model, images)
        labels = door.labels_of("path_scores", images, labels, classifier.outputs(model))
        if not isinstance(units, Tensor) or units.is_floating_point() or units.dtype == torch.bool:
            raise UserError("path_scores: units are a tensor of integers [images, blocks, t]")
        if units.ndim != 3 or len(units) != len(images) or not 1 <= units.shape[1] <= len(sites) or not units.shape[2]:
            raise UserError(f"path_scores: units are {tuple(units.shape)}; [images, blocks, t] is needed")
        if int(units.min()) < 0 or any(int(units[:, i].max()) >= sites[i].size for i in range(units.shape[1])):
            raise UserError("path_scores: a unit's index lies outside its block")
        how = _how("jas", units.shape[2], 0, settings)
        device = device_of(model)
        units = units.clone() if units.is_inference() else units
        return path_scores_of(model, sites, images.to(device), labels.to(device), units, how)


def _how(criterion: str, t: int, seed: int, settings: dict[str, Any]) -> Any:
    """The settings as a recipe would check them; a row that was added at run time has its own among them."""
    try:
        return section().model_validate(dict(name=criterion, t=t, seed=seed, **settings)).how(criterion)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"discover: `{'.'.join(map(str, first['loc'])) or 'settings'}`: {first['msg']}") from error
