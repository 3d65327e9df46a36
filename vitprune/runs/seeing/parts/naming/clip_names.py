"""Names from a list of concepts by a local CLIP: what a unit's strongest images share beyond its layer's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image

from vitprune.core.errors import UserError
from vitprune.core.reading import Json
from vitprune.runs.seeing.looking import Looking
from vitprune.runs.seeing.parts.naming.collect import Activations
from vitprune.runs.seeing.parts.naming.namers import Named
from vitprune.see.naming import concepts, wpmi
from vitprune.see.naming.clip import Clip

NEAR = 3  # concepts that are told of a unit
MOST = 1 << 27  # images times concepts


@dataclass
class ClipNames:
    """Cosines [N, C] of images and concepts, and how probable each concept is for each image."""

    found: Activations
    clip: Clip
    words: list[str]
    cosines: np.ndarray
    soft: np.ndarray
    chosen: dict[int, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)

    @classmethod
    def of(cls, looking: Looking, found: Activations) -> ClipNames:
        """Every image and every concept, looked at once. Raises UserError for a folder that is no CLIP's."""
        how = looking.see.names
        assert how.folder is not None and how.concepts is not None
        words = concepts.listed(how.concepts)
        if len(words) * len(found.index) > MOST:
            raise UserError(
                f"see.names.concepts: {len(words):,} concepts and {len(found.index):,} images are more than is held; fewer "
                "of see.images.per_class, or a shorter list"
            )
        clip = Clip.open(how.folder, looking.run.device)
        texts = clip.texts(words)
        cosines = (clip.images(_pictures(looking, found.index.tolist())) @ texts.T).numpy()
        return cls(found, clip, words, cosines, wpmi.soft(cosines[found.fit]))

    def block(self, i: int) -> list[Named | None]:
        """The concept of the highest score, those that came near beside it."""
        names, values = self._best(i)
        made: list[Named | None] = []
        for row, value in zip(names.tolist(), values.tolist(), strict=True):
            parts = [(self.words[c], float(v)) for c, v in zip(row, value, strict=True)]
            made.append(Named((parts[0],), tuple(parts[1:])))
        return made

    def predicted(self, i: int) -> np.ndarray:
        """The cosine of an image and the unit's name."""
        made: np.ndarray = self.cosines[self.found.held][:, self._best(i)[0][:, 0]]
        return made

    def _best(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        if i not in self.chosen:
            values = self.found.values[i][self.found.fit]
            images = np.argsort(-values, axis=0, kind="stable")[: wpmi.IMAGES].T
            self.chosen[i] = wpmi.best(self.soft, images, NEAR)
        return self.chosen[i]

    def about(self) -> Json:
        """How many concepts there were, and images of a unit."""
        return {"concepts": len(self.words), "images_of_a_unit": min(wpmi.IMAGES, int(self.found.fit.sum()))}

    def patches(self, cells: Sequence[Sequence[np.ndarray]], texts: Sequence[str]) -> np.ndarray:
        """How much each cell shows each text, 0 to 1, [M, cells, texts]: σ of the cosines of crops, standardised per text."""
        crops = self.clip.images(Image.fromarray(cell) for image in cells for cell in image)
        cosines = (crops @ self.clip.texts(list(texts)).T).double()
        spread = cosines.std(0, correction=0)
        scaled = torch.where(spread > 0, (cosines - cosines.mean(0)) / spread.clamp(min=1e-12), 0)
        made: np.ndarray = scaled.sigmoid().reshape(len(cells), -1, len(texts)).numpy()
        return made


def _pictures(looking: Looking, positions: list[int]) -> Iterator[Image.Image]:
    track = looking.run.reporter.track(positions, "see clip", len(positions))
    return (looking.run.source.image(position) for position in track)
