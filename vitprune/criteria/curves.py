"""A site's order of removal as scores that can be cut at any width."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def curve(order_N: Tensor, costs_N: Tensor) -> Tensor:
    """The score of every unit [N] float32: the running maximum of the costs up to its removal, made strictly increasing
    by the least steps that float32 has, so that no order is lost where the maximum stands still."""
    rising = np.maximum.accumulate(costs_N.numpy()).astype(np.float32).clip(np.finfo(np.float32).tiny)
    steps = np.arange(len(rising))
    bits = rising.view(np.int32).astype(np.int64)  # of positive floats: in the order of the floats
    rising = (np.maximum.accumulate(bits - steps) + steps).astype(np.int32).view(np.float32)
    scores = torch.empty(len(rising))
    scores[order_N] = torch.from_numpy(rising)
    return scores
