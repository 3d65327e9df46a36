"""Which of the model's outputs the images' classes are, what they are called, and the class sets that a recipe asks for.

A backbone has no outputs: its classes are those of the images, counted from 0, and the one class set is all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from vitprune.core.errors import UserError
from vitprune.images import class_names as labels
from vitprune.images.class_names import Match
from vitprune.images.mapping import Mapping
from vitprune.images.names import Spellings, called, some
from vitprune.images.sources.base import Source
from vitprune.model.load.loaded import Loaded
from vitprune.recipe.parts import BY_ORDER
from vitprune.recipe.recipe import Recipe


@dataclass
class ClassSets:
    """The classes of a run: those of its images, matched to the model's outputs, and the sets that models are made for."""

    recipe: Recipe
    source: Source
    loaded: Loaded

    @cached_property
    def mapping(self) -> Mapping | None:
        """The images' class names against the model's, where the recipe gives a file."""
        file = self.recipe.data.labels
        return Mapping(file) if isinstance(file, Path) else None

    @cached_property
    def match(self) -> Match:
        """The model's output of each of the images' classes."""
        given, source, loaded = self.recipe.data, self.source, self.loaded
        if not loaded.outputs:
            return Match(np.arange(len(source.classes), dtype=np.int64), "name")
        where, by_order = str(given.dataset or given.path or given.probe or "bundled images"), given.labels == BY_ORDER
        known = (source.classes, loaded.outputs, loaded.labels)
        return labels.match(*known, where, source.numbers, self.mapping, by_order=by_order)

    def targets(self, names: list[str] | None) -> list[int]:
        """Output indices of class names (None: every class of the images). Raises UserError for one that is not there."""
        if names is None:
            return sorted(int(i) for i in self.match.outputs)
        own = list(zip(self.source.classes, map(int, self.match.outputs), strict=True))
        theirs = [(name, i) for _, i in own if self.loaded.labels for name in self.loaded.labels[i].split("\t")]
        tiers = [Spellings(own), Spellings((self.name(i), i) for _, i in own), Spellings(theirs)]

        def known(name: str) -> set[int]:
            looks = [tier.exact for tier in tiers] + [tier.find for tier in tiers]
            return next((found for look in looks if (found := look(name))), set())

        made = set()
        for name in names:
            found = known(name)
            if not found and self.mapping and (entry := self.mapping.entry(name)):
                found = set().union(*map(known, entry.names))
            if len(found) > 1:
                raise UserError(f"classes: `{name}` is a name of more than one class; use another of its names")
            if not found:
                shown = some(self.source.classes)
                raise UserError(f"classes: `{name}` is not a class of these images; they are {shown}")
            made |= found
        return sorted(made)

    def sets(self) -> dict[str | None, list[int]]:
        """Group name (None without groups) → output indices."""
        return {group: self.targets(names) for group, names in self.recipe.class_sets().items()}

    def sets_and_union(self) -> dict[str | None, list[int]]:
        """The class sets, and under groups also all of their classes together (None): what a generic model is made for."""
        return {**self.sets(), None: self.every()}

    def keeps_head(self, targets: list[int]) -> bool:
        """Whether a slim model for these classes keeps the dense model's every output; one for a single class does."""
        return not self.recipe.own_head or len(targets) in (1, self.count)

    def every(self) -> list[int]:
        """Union of the class sets."""
        return sorted(set().union(*self.sets().values()))

    @property
    def count(self) -> int:
        """How many classes there are to tell apart: the model's outputs, of a backbone the images' classes."""
        return self.loaded.outputs or len(self.source.classes)

    @cached_property
    def names(self) -> list[str]:
        """What every output is called in reports, tables and exported files: as the model does, else as the images do."""
        images = {int(i): name for name, i in zip(self.source.classes, self.match.outputs, strict=True)}
        return called(self.count, None if self.by_order else self.loaded.labels, images)

    @property
    def by_order(self) -> bool:
        """Whether the names of the outputs are the images' in their order, and no word of the model's."""
        return self.match.how == "order"

    def name(self, output: int) -> str:
        """One of `names`."""
        return self.names[output]
