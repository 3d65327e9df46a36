"""Explanations that need no other model: words of the pairs' own texts for what a unit sees, tokens for what it reads.

A visual unit is explained by up to three words whose presence in a pair's text goes with the unit's mean strength over the
image (`see/naming/sparse.py`), a text unit by the mean of its strengths at each token of the texts. What an explanation says
of another sample follows from the samples that it was made from. Legend: N samples, K words, P places, U units.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from vitprune.see.naming import sparse

WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
MOST = 500  # words, the most frequent ones
LISTED = 10  # tokens of a list
SCALE = 10


def words_of(text: str) -> set[str]:
    """The words of a text, small."""
    return {word.lower() for word in WORD.findall(text)}


def vocabulary(texts: Sequence[str]) -> list[str]:
    """Words that at least two texts have and two have not, the most frequent first; of one frequency by the alphabet."""
    counts = Counter(word for text in texts for word in words_of(text))
    useful = [word for word, n in counts.items() if 2 <= n <= len(texts) - 2]
    return sorted(useful, key=lambda word: (-counts[word], word))[:MOST]


def table(texts: Sequence[str], words: Sequence[str]) -> np.ndarray:
    """Whether each text has each word, [N, K] as 0 and 1."""
    own = [words_of(text) for text in texts]
    return np.array([[float(word in some) for word in words] for some in own]).reshape(len(texts), len(words))


def explained(table_NK: np.ndarray, values_NU: np.ndarray, words: Sequence[str]) -> list[list[tuple[str, float]]]:
    """Of every unit up to three words and their weights, the heaviest first; none where no word explains anything."""
    found = sparse.fit(table_NK, values_NU)
    rows = zip(found.concepts.tolist(), found.weights.tolist(), strict=True)
    named = [[(words[k], w) for k, w in zip(*row, strict=True) if k >= 0] for row in rows]
    return [sorted(own, key=lambda one: -one[1]) for own in named]


def predicted(words_NK: np.ndarray, maps_NP: np.ndarray, asked_MK: np.ndarray) -> np.ndarray:
    """Maps [M, P] of other samples by least squares at each place from whether their texts have an explanation's words."""
    design, other = (np.column_stack([np.ones(len(one)), one]) for one in (words_NK, asked_MK))
    made: np.ndarray = other @ np.linalg.lstsq(design, maps_NP.astype(np.float64), rcond=None)[0]
    return made


@dataclass(frozen=True, slots=True)
class Reading:
    """What a unit does at each token, by id: mean strength and how often it was seen; `usual`: the mean over all tokens;
    `most`: the greatest strength."""

    means: dict[int, tuple[float, int]]
    usual: float
    most: float

    @classmethod
    def of(cls, ids: Sequence[np.ndarray], strengths: Sequence[np.ndarray]) -> Reading:
        """From texts' ids and strengths there."""
        every, values = np.concatenate(ids), np.concatenate(strengths).astype(np.float64)
        known, at, counts = np.unique(every, return_inverse=True, return_counts=True)
        means = np.bincount(at, values) / counts
        pairs = zip(known.tolist(), zip(means.tolist(), counts.tolist(), strict=True), strict=True)
        return cls(dict(pairs), float(values.mean()), float(values.max()))

    def predicted(self, ids: np.ndarray) -> np.ndarray:
        """Strengths at these tokens; the usual one at a token that was not seen."""
        return np.array([self.means.get(int(i), (self.usual, 0))[0] for i in ids])

    def listed(self, word: Callable[[int], str]) -> list[tuple[str, float, int]]:
        """The tokens that it fires for: word, mean in tenths of its greatest strength, how often seen; those seen once only
        where there are not enough others."""
        order = sorted(self.means.items(), key=lambda one: (one[1][1] < 2, -one[1][0], one[0]))
        loud = [(word(i), SCALE * mean / self.most, n) for i, (mean, n) in order if mean > 0 and self.most > 0]
        return sorted(loud[:LISTED], key=lambda one: -one[1])


def token_list(words: Sequence[str], strengths: np.ndarray, most: float) -> str:
    """A text as lines `token<TAB>0 to 10`, tenths of a unit's greatest strength rounded down; the silent ones are left out
    where more than a fifth speaks, as OpenAI's neuron explainer does."""
    tenths = (
        np.floor(np.clip(SCALE * strengths / most, 0, SCALE)).astype(int) if most > 0 else np.zeros(len(words), int)
    )
    loud = (tenths > 0).mean() > 0.2 if len(tenths) else False
    return "\n".join(f"{word}\t{n}" for word, n in zip(words, tenths.tolist(), strict=True) if n or not loud)
