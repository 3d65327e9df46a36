"""Statistics of the dense model's hidden units that the repair needs; labels play no part but to pick a class set's images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from vitprune.core.files import replacing, write_columns
from vitprune.core.least_squares import Moments
from vitprune.criteria.settings import Nothing
from vitprune.images.split import first_per_class
from vitprune.model.inside import moments as inside_moments
from vitprune.pruning.repair import names
from vitprune.runs.stages import sums
from vitprune.runs.stages.sums import FFN, Asked
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
    found = sums.totals(run, Asked("moments", "obs", Nothing(), index, run.batching.batch), label)
    small: dict[str, np.ndarray] = {}

    def column(name: str) -> np.ndarray:
        """A column of the file; the covariance of one site at a time is in memory."""
        if name in small:
            return small[name]
        i = int(name.rpartition(".")[2])
        (stat,) = inside_moments.of_sums(found.of(FFN, i), run.sites[i : i + 1])
        small.update({f"mean.{i}": stat.mean.numpy(), f"tokens.{i}": np.array(stat.tokens, np.int64)})
        return small[name] if name in small else stat.covariance.numpy()

    shapes: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {}
    for i, site in enumerate(run.sites):
        shapes[f"mean.{i}"] = (np.dtype(np.float64), (site.size,))
        shapes[f"covariance.{i}"] = (np.dtype(np.float64), (site.size, site.size))
        shapes[f"tokens.{i}"] = (np.dtype(np.int64), ())
    path = _moments_file(run, group)
    with replacing(path) as temporary, temporary.open("wb") as file:
        write_columns(file, shapes, column)
    return path


@dataclass(frozen=True, slots=True)
class Kept(Sequence[Moments]):
    """The moments of every FFN in a file; one is read when it is asked for, and not kept."""

    path: Path
    sites: int

    def __len__(self) -> int:
        return self.sites

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(self.sites))]
        if not -self.sites <= place < self.sites:
            raise IndexError(place)
        i = place % self.sites
        with safe_open(str(self.path), "pt") as f:
            mean, covariance, tokens = (f.get_tensor(f"{what}.{i}") for what in ("mean", "covariance", "tokens"))
        return Moments(mean, covariance, int(tokens))


def from_file(run: Run, group: str | None) -> Kept:
    """What `moments` wrote for a class set."""
    return Kept(_moments_file(run, group), len(run.sites))
