"""How well the classes can be read off the stream from block to block, and whether keys and values of units agree.

After Vilas et al. (NeurIPS 2023), who read every token of every block through the model's own last norm and head. Nothing of
the model is changed for it. Legend: B images, T tokens, C classes, H units of a block, D width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

TOP = 5  # keys of a token, and values of a class, that are held against each other


def identifiability(logits_BTC: Tensor, labels_B: Tensor) -> Tensor:
    """1 − rank/C of the image's own class at every token, the rank from 0 and of equal logits their mean one; [B, T] in
    (0, 1], 1 where the class is first."""
    own = _own(logits_BTC, labels_B)
    rank = (logits_BTC > own).sum(2) + ((logits_BTC == own).sum(2) - 1) / 2
    return 1 - rank.double() / logits_BTC.shape[2]


def identifiability_by_chance(classes: int) -> float:
    """Its mean where the classes are in a random order, (C + 1)/2C."""
    return (classes + 1) / (2 * classes)


def rises(before_BTC: Tensor, after_BTC: Tensor, labels_B: Tensor) -> Tensor:
    """At which tokens the probability of the image's own class is higher after a block than before it, bool [B, T]; the
    share of such tokens is the authors' change rate."""
    before, after = (_own(one.log_softmax(2), labels_B)[..., 0] for one in (before_BTC, after_BTC))
    return after > before


def top_values(values_HD: Tensor, head_CD: Tensor) -> Tensor:
    """Per class the units whose values speak most for it, [C, min(TOP, H)]; of equal ones the lower unit."""
    return _first(head_CD @ values_HD.T)


def agrees(keys_BTH: Tensor, top_CK: Tensor, labels_B: Tensor) -> Tensor:
    """At which tokens one of the strongest keys (before the activation) is of a unit that speaks most for the image's own
    class, bool [B, T]."""
    spoken = torch.zeros(len(labels_B), keys_BTH.shape[2], dtype=torch.bool, device=keys_BTH.device)
    spoken.scatter_(1, top_CK.to(keys_BTH.device)[labels_B], True)
    strongest = keys_BTH.topk(min(TOP, keys_BTH.shape[2]), dim=2).indices
    return spoken[:, None].expand(-1, keys_BTH.shape[1], -1).gather(2, strongest).any(2)


def agrees_by_chance(units: int) -> float:
    """The share of tokens that agree where keys and values have nothing to do with each other,
    1 − ∏ᵢ (H − 5 − i)/(H − i) over i = 0…4."""
    k = min(TOP, units)
    return 1 - math.prod(max(units - k - i, 0) / (units - i) for i in range(k))


@dataclass(frozen=True, slots=True)
class ClassValue:
    """A block's class-value agreement: the mean over classes of the largest cosine between the class's row of the head and a
    unit's value, that of a block and head drawn anew, and Wilcoxon's one-sided p over the classes (None of fewer than two)."""

    found: float
    random: float
    p: float | None


@torch.no_grad()
def class_value(values_HD: Tensor, head_CD: Tensor, seed: int) -> ClassValue:
    """Against one seeded draw as a new model has it: its weights are normal, so that values and rows are drawn as they are,
    without a model around them."""
    from scipy.stats import wilcoxon  # large, and not before it is wanted

    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randn(one.shape, generator=generator).to(one) for one in (values_HD, head_CD)]
    found, random = (_largest_cosine(*pair).double().cpu().numpy() for pair in ((values_HD, head_CD), drawn))
    p = float(wilcoxon(found, random, alternative="greater").pvalue) if len(found) > 1 else None
    return ClassValue(float(found.mean()), float(random.mean()), p if p is None or np.isfinite(p) else None)


def _largest_cosine(values_HD: Tensor, head_CD: Tensor) -> Tensor:
    """Per class, [C]."""
    return (F.normalize(head_CD, dim=1) @ F.normalize(values_HD, dim=1).T).amax(1)


def _own(values_BTC: Tensor, labels_B: Tensor) -> Tensor:
    """Of the image's own class, [B, T, 1]."""
    return values_BTC.gather(2, labels_B.to(values_BTC.device)[:, None, None].expand(-1, values_BTC.shape[1], 1))


def _first(values_CH: Tensor) -> Tensor:
    return torch.sort(values_CH, dim=1, descending=True, stable=True).indices[:, :TOP]
