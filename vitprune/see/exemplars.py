"""The images that move each unit most: a running list per unit, the same whatever parts it is made from.

After the first half of MILAN (Hernandez et al., ICLR 2022), of hidden units in place of what fc2 writes, and never with all
activations in memory. Legend: B images, T tokens, P patches, H units, K images of a list.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

NONE = -1  # in the place of an image that is not there


@dataclass(frozen=True, slots=True)
class Top:
    """Per unit its strongest images: values [H, K] float32, images and tokens [H, K] int32, the strongest first."""

    values: np.ndarray
    images: np.ndarray
    tokens: np.ndarray

    @classmethod
    def empty(cls, units: int, k: int) -> Top:
        """A list with nothing in it: minus infinity, of no image."""
        none = np.full((units, k), NONE, np.int32)
        return cls(np.full((units, k), -np.inf, np.float32), none, none.copy())

    def joined(self, other: Top) -> Top:
        """The strongest of both lists; of equal ones those of the lower image."""
        k = self.values.shape[1]
        values, images, tokens = (
            np.concatenate(pair, 1)
            for pair in ((self.values, other.values), (self.images, other.images), (self.tokens, other.tokens))
        )
        order = np.lexsort((images, -values), axis=1)[:, :k]
        return Top(*(np.take_along_axis(column, order, 1) for column in (values, images, tokens)))


def pooled(hidden_BTH: Tensor, prefix: int) -> tuple[np.ndarray, np.ndarray]:
    """Each unit's largest activation over an image's patches, and the token where it is (the first of equal ones): [B, H]
    both. The `prefix` tokens, which are no patches, are left out; tokens are counted with them."""
    patches = hidden_BTH[:, prefix:]
    at = patches.argmax(1, keepdim=True)
    return patches.gather(1, at)[:, 0].float().cpu().numpy(), at[:, 0].cpu().numpy().astype(np.int32) + prefix


def top_of(values_BH: np.ndarray, tokens_BH: np.ndarray, images: np.ndarray, k: int) -> Top:
    """The list of one batch's images, whose ids are `images` [B]."""
    ids = np.broadcast_to(images.astype(np.int32), values_BH.T.shape)
    return Top.empty(values_BH.shape[1], k).joined(Top(values_BH.T, ids, tokens_BH.T))


def draws(count: int, units: int, most: int, seed: list[int]) -> np.ndarray:
    """Positions [units, min(most, count)] among `count` images, for each unit a draw of its own without repeats."""
    order = np.random.default_rng(seed).random((units, count), np.float32).argsort(1)
    return order[:, : min(most, count)].astype(np.int32)


def beside(top: Top, drawn: Top, count: int) -> Top:
    """The first `count` of the drawn images that are not among a unit's strongest, in the order of the draw; NONE and NaN
    where there are not as many."""
    known = (drawn.images[:, :, None] == top.images[:, None, :]).any(2)
    order = np.argsort(known, axis=1, kind="stable")[:, :count]
    values, images, tokens, taken = (
        np.take_along_axis(column, order, 1) for column in (drawn.values, drawn.images, drawn.tokens, known)
    )
    return Top(
        np.where(taken, np.float32(np.nan), values), np.where(taken, NONE, images), np.where(taken, NONE, tokens)
    )
