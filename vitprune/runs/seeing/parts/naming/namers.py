"""Who names units: one interface, and the namer that needs no other model, `labels`.

Names are made from the images for names alone (`Activations.fit`), in the dense model, once: a name is relative to its layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from vitprune.core.reading import Json
from vitprune.runs.seeing.looking import Looking
from vitprune.runs.seeing.parts.naming.collect import Activations
from vitprune.see.naming import concepts, sparse
from vitprune.see.naming.concepts import Concepts
from vitprune.see.naming.sparse import Sparse


@dataclass(frozen=True, slots=True)
class Named:
    """What a unit is called: concepts with their weights, the first one first; `other` ones that came near."""

    parts: tuple[tuple[str, float], ...]
    other: tuple[tuple[str, float], ...] = ()

    @property
    def text(self) -> str:
        """The name in a line."""
        return ", ".join(text for text, _ in self.parts)


class Namer(Protocol):
    """`block` names the units of a block, None for one of which nothing is said; `predicted` is what the names say of the
    images for scores, [n, H], the same everywhere for a unit without a name, or None where a namer says nothing of whole
    images; `about` is for see.json."""

    def block(self, i: int) -> list[Named | None]: ...

    def predicted(self, i: int) -> np.ndarray | None: ...

    def about(self) -> Json: ...


@dataclass
class Labels:
    """Names from concepts of the images: their classes, and attributes where the recipe gives some."""

    found: Activations
    concepts: Concepts

    @classmethod
    def of(cls, looking: Looking, found: Activations) -> Labels:
        """The classes, and `data.attributes` beside them."""
        own = classes_of(looking, found)
        more = attributes_of(looking, found)
        return cls(found, own if more is None else own.beside(more))

    def block(self, i: int) -> list[Named | None]:
        """At most three concepts of each unit."""
        made = self._fitted(i)
        return [self._named(made, j) for j in range(len(made.concepts))]

    def _named(self, made: Sparse, j: int) -> Named | None:
        pairs = zip(made.concepts[j].tolist(), made.weights[j].tolist(), strict=True)
        parts = tuple((self.concepts.names[c], weight) for c, weight in pairs if c >= 0)
        return Named(parts) if parts else None

    def predicted(self, i: int) -> np.ndarray:
        """Sums of the concepts' weights."""
        return self._fitted(i).predicted(self.concepts.table[self.found.held])

    def _fitted(self, i: int) -> Sparse:
        return sparse.fit(self.concepts.table[self.found.fit], self.found.values[i][self.found.fit])

    def about(self) -> Json:
        """How many concepts there were."""
        return {"concepts": len(self.concepts.names)}


def classes_of(looking: Looking, found: Activations) -> Concepts:
    """Each class of the images, as a concept."""
    return concepts.of_classes(found.labels, {int(c): looking.name(int(c)) for c in np.unique(found.labels)})


def attributes_of(looking: Looking, found: Activations) -> Concepts | None:
    """The attributes of the images, where the recipe gives some."""
    path = looking.run.recipe.data.attributes
    if path is None:
        return None
    return concepts.attributes(path, [looking.run.source.names[position] for position in found.index.tolist()])
