"""Statistics of the dense model's hidden units that the repair needs; labels play no part but to pick a class set's images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor

from vitprune.core.files import replacing
from vitprune.core.least_squares import Moments
from vitprune.criteria.settings import Nothing
from vitprune.images.split import first_per_class
from vitprune.model.inside import moments as inside_moments
from vitprune.pruning.repair import names
from vitprune.runs.stages import sums
from vitprune.runs.stages.sums import Asked
from vitprune.runs.state.run import Run
from vitprune.runs.state.workspace import PARTS


def moments(run: Run) -> list[Path]:
    """Mean and covariance of the dense model's hidden units on the images that each class set is repaired with."""
    if not names.needs_moments(run.recovery):
        return []
    files = [_moments_of(run, group, targets) for group, targets in run.classes.sets_and_union().items()]
    run.folder.clear(run.folder.stage_folder("moments") / PARTS, set())
    return files


def refit_index(run: Run, targets: list[int]) -> np.ndarray:
    """Probe images of the class set, as many of each class, mixed; `refit_images` at most. Only their classes are used."""
    probe, most = run.split.probe, run.recipe.refit_images
    probe = probe[np.isin(run.images.labels[probe], targets)]
    index = first_per_class(probe, run.source.class_of, -(-most // max(1, len(targets))))
    return np.random.default_rng(run.split.seed).permutation(index)[:most]


def _moments_file(run: Run, group: str | None) -> Path:
    return run.folder.stage_folder("moments") / f"{group or 'all'}.moments.safetensors"


def _moments_of(run: Run, group: str | None, targets: list[int]) -> Path:
    probe = run.split.probe
    index = probe[np.isin(probe, refit_index(run, targets))]  # in the split's order
    label = "statistics" + (f" {group}" if group else "")
    found = sums.total(run, Asked("moments", "obs", Nothing(), index, run.batching.batch), label)
    stats = inside_moments.of_sums(found, run.sites)
    columns: dict[str, Tensor] = {}
    for i, stat in enumerate(stats):
        tokens = torch.tensor(stat.tokens)
        columns |= {f"mean.{i}": stat.mean, f"covariance.{i}": stat.covariance, f"tokens.{i}": tokens}
    path = _moments_file(run, group)
    with replacing(path) as temporary:
        temporary.write_bytes(to_bytes(columns))
    return path


def from_file(run: Run, group: str | None) -> list[Moments]:
    """What `moments` wrote for a class set."""
    c = load_file(_moments_file(run, group))
    return [Moments(c[f"mean.{i}"], c[f"covariance.{i}"], int(c[f"tokens.{i}"])) for i in range(len(run.sites))]
