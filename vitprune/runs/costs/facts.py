"""What the formulas know of a run: sizes of its model, numbers of its images, and what its recipe asks of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vitprune.core.errors import UserError
from vitprune.images.batches import CACHE_BYTES
from vitprune.images.sources.pair import ProbeAndTest
from vitprune.images.split import beyond_limit
from vitprune.model import families, size, tokens
from vitprune.model.inside import pieces
from vitprune.model.sites.attention import attention_sites
from vitprune.recipe.parts import Whole
from vitprune.recipe.recipe import Recipe
from vitprune.runs.state.run import Run

USUAL = 0.5  # what is left of a model whose budget no share is known of beforehand


@dataclass(frozen=True, slots=True)
class Layer:
    """An FFN: tokens of an image, hidden units and stream width. An attention: heads of `dim` dimensions, and how many
    smaller numbers of dimensions they may have."""

    tokens: int
    units: int
    width: int
    heads: int = 0
    dim: int = 0
    smaller: int = 0


@dataclass(frozen=True, slots=True)
class Shape:
    """The dense model: its layers, outputs and weights, bytes of an image as it takes it and of what a pass keeps of one;
    `of_ffns` is the share of its multiply-adds that its FFNs have."""

    ffns: tuple[Layer, ...]
    attentions: tuple[Layer, ...]
    outputs: int
    parameters: int
    image_bytes: int
    pass_bytes: int
    of_ffns: float

    @classmethod
    def of(cls, run: Run) -> Shape:
        """The run's model."""
        model, sites = run.loaded.model, run.sites
        seen, facts = tokens.tokens_per_site(model, sites), size.size(model)
        widths = [tokens.stream_width(model, site) for site in sites]
        ffns = tuple(Layer(t, site.size, w) for t, site, w in zip(seen, sites, widths, strict=True))
        try:
            found = attention_sites(model)
        except UserError:  # attention of another kind, which stays as it is
            found = []
        attentions = tuple(
            Layer(max(seen), a.heads * a.dim, max(widths), a.heads, a.dim, len(a.dims) if a.query_keys else 0)
            for a in found
        )
        pixels = math.prod(families.input_shape(model))
        share = facts["macs"]["ffn"] / max(facts["macs"]["total"], 1)
        kept = pieces.footprint(model, sites)
        return cls(ffns, attentions, run.loaded.outputs, size.parameters(model), 4 * pixels, kept, share)


@dataclass(frozen=True, slots=True)
class Set:
    """A class set: its classes, and its images of the two parts of the split; `per_class`: the probe images of each class."""

    name: str | None
    per_class: tuple[int, ...]
    test: int

    @property
    def probe(self) -> int:
        """All of its probe images."""
        return sum(self.per_class)

    def first(self, most: int) -> int:
        """Probe images where a class gives `most` at most."""
        return sum(min(n, most) for n in self.per_class)

    def refit(self, most: int) -> int:
        """Probe images that a repair sees, which takes as many of every class and `most` at most."""
        return min(most, self.first(-(-most // max(1, len(self.per_class)))))


@dataclass(frozen=True, slots=True)
class Images:
    """The images of a run: all that are read, those of the test split, whether they stay in memory once they are decoded,
    the class sets that get a model, and the union of those."""

    count: int
    test: int
    kept: bool
    sets: tuple[Set, ...]
    union: Set

    @property
    def sets_and_union(self) -> tuple[Set, ...]:
        """The class sets that are scored."""
        return (*self.sets, self.union) if self.union not in self.sets else self.sets

    @classmethod
    def of(cls, run: Run, image_bytes: int) -> Images:
        """The run's images, split as they are or will be."""
        probe, test = _parts(run)
        output = run.images.labels

        def of_set(name: str | None, targets: Sequence[int]) -> Set:
            counts = [np.bincount(output[part], minlength=run.classes.count)[list(targets)] for part in (probe, test)]
            return Set(name, tuple(int(n) for n in counts[0]), int(counts[1].sum()))

        sets, count = run.classes.sets(), len(run.source.names)
        every, k = of_set(None, run.classes.every()), run.recipe.clusters
        made = tuple(every if name is None else of_set(name, targets) for name, targets in sets.items())
        if k:  # classes of which nothing is known yet, in groups of one size
            made = tuple(Set(f"group-{i + 1}", every.per_class[i::k], every.test // k) for i in range(k))
        return cls(count, len(test), count * image_bytes <= CACHE_BYTES, made, every)


def _parts(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """Probe and test images: those of the split where it is there, else as many of each class as it will have."""
    source, recipe = run.source, run.recipe
    if run.folder.record("split"):
        return run.split.probe, run.split.test
    out = beyond_limit(source, recipe.data.limit_per_class)
    index = np.array([i for i in range(len(source.names)) if i not in out], np.int64)
    if isinstance(source, ProbeAndTest):
        return index[index < source.probes], index[index >= source.probes]
    found = []
    for c in range(len(source.classes)):
        own = index[source.class_of[index] == c]
        found.append(own[: min(max(round(recipe.split.probe * len(own)), 1), max(len(own) - 1, 1))])
    probe = np.concatenate(found)
    return probe, np.setdiff1d(index, probe)


def left(recipe: Recipe, shape: Shape, whole: Whole | None, keep: int | float | None) -> float:
    """The share of a dense model's multiply-adds that the pruned one has, about; USUAL where no share is asked for."""
    if whole is None:
        kept = recipe.share if keep is None else keep
        share = kept / max(layer.units for layer in shape.ffns) if isinstance(kept, int) else kept
        return 1 - shape.of_ffns * (1 - min(1.0, share))
    if whole.of == "size_mb":
        return min(1.0, whole.amount * 1e6 / (4 * shape.parameters))
    return USUAL if whole.of == "loss_points" else min(1.0, whole.amount)
