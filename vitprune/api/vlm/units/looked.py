"""The shown units on the probe pairs: their strengths, which pairs explain and which try the explanation, and pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from vitprune.api.vlm.recipe import See
from vitprune.images import decode
from vitprune.model.vlm.opening import Vlm
from vitprune.model.vlm.pairs import Pair
from vitprune.model.vlm.tokens import Sample
from vitprune.see.naming import marked
from vitprune.see.pictures import drawing
from vitprune.see.types import asking
from vitprune.see.types.shown import Unit
from vitprune.see.types.watching import Watched


@dataclass
class Looked:
    """Units with their strengths on every sample, in the order of the pairs."""

    vlm: Vlm
    see: See
    pairs: Sequence[Pair]
    samples: Sequence[Sample]
    units: list[Unit]
    found: list[Watched]

    @cached_property
    def fit(self) -> np.ndarray:
        """Which pairs [N] are for explanations; the others are for scores, and pairs of one image are on one side."""
        images = [str(pair.image) for pair in self.pairs]
        every = sorted(set(images))
        order = np.random.default_rng([self.see.units.seed, 7]).permutation(len(every))
        chosen = {every[i] for i in order[::2]}
        return np.array([image in chosen for image in images], bool)

    @cached_property
    def grid(self) -> tuple[int, int] | None:
        """The grid that most images' tokens make; of several equally frequent ones the first."""
        known = Counter(one.grid for one in self.found if one.grid is not None)
        return known.most_common(1)[0][0] if known else None

    def placed(self, fit: bool) -> list[int]:
        """Pairs of one side whose images have that grid."""
        side = np.flatnonzero(self.fit == fit).tolist()
        return [n for n in side if self.grid is not None and self.found[n].grid == self.grid]

    def side(self, fit: bool) -> list[int]:
        """Pairs of one side."""
        found: list[int] = np.flatnonzero(self.fit == fit).tolist()
        return found

    def most(self, u: int, n: int) -> float:
        """A unit's greatest strength on a pair, where it answers."""
        unit, one = self.units[u], self.found[n]
        parts = [*([one.map(u)] if unit.sees else []), *([one.line(u)] if unit.reads else [])]
        return max((float(part.max()) for part in parts if len(part)), default=0.0)

    def exemplars(self, u: int) -> tuple[list[int], list[int]]:
        """The pairs that move a unit most, the strongest first, and a seeded draw of the rest; of those for explanations."""
        how, unit = self.see.names, self.units[u]
        side = self.side(fit=True)
        order = sorted(side, key=lambda n: -self.most(u, n))
        rest = np.array(order[how.k :], np.int64)
        drawn = np.random.default_rng([self.see.units.seed, unit.block, unit.number]).permutation(rest)[: how.random]
        return order[: how.k], drawn.tolist()

    def threshold(self, u: int) -> float:
        """Above what a unit counts as firing on an image: its quantile over the images' tokens."""
        values = np.concatenate([self.found[n].map(u) for n in self.side(fit=True)])
        return float(np.quantile(values, self.see.types.quantile))

    def outlined(self, u: int, n: int) -> bytes:
        """A pair's image as PNG, a contour where the unit fires; without one where the tokens' places are not known."""
        one = self.found[n]
        if one.grid is None:
            return marked.plain(self.picture(n))
        return marked.outlined(self.picture(n), one.map(u).reshape(one.grid), self.threshold(u))

    def picture(self, n: int) -> np.ndarray:
        """A pair's image as the model is given it, uint8 [H, W, 3]; the file's own where the model takes patches or tiles."""
        pixels = self.samples[n].extras.get("pixel_values")
        how = getattr(self.vlm.processor, "image_processor", None)
        mean, std = (_three(getattr(how, name, None)) for name in ("image_mean", "image_std"))
        if pixels is not None and pixels.dim() >= 4 and pixels[..., 0, 0].numel() == 3 and mean and std:
            return drawing.pixels(pixels.reshape(pixels.shape[-3:]), mean, std)
        return np.asarray(decode.read(self.pairs[n].image).convert("RGB"))

    def words(self, n: int) -> list[str]:
        """A pair's text, token by token, as it can be printed."""
        return [self.word(int(i)) for i in self.found[n].ids[self.found[n].text]]

    def word(self, token: int) -> str:
        """A token as it can be printed; one that is no text of its own (some bytes of a letter) as the vocabulary has it, so
        that two of them differ."""
        words = self.vlm.processor.tokenizer
        shown = asking.printable(str(words.decode([token])))
        return asking.printable(str(words.convert_ids_to_tokens(token))) if asking.UNSEEN in shown else shown


def _three(values: object) -> list[float]:
    """Three numbers, or nothing."""
    known = [float(v) for v in values] if isinstance(values, list | tuple) else []
    return known if len(known) == 3 else []
