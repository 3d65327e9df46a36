"""How well a specialist tells its own classes' images from others."""

from __future__ import annotations

import numpy as np

SURE = 0.95  # share of the group's own images that are let in


def open_set(inside: np.ndarray, outside: np.ndarray) -> tuple[float | None, float | None]:
    """P(an image of the classes scores above one of other classes), ties half; and the share of others let in at the
    threshold that lets in 95 % of the classes' own. None without either kind."""
    if not len(inside) or not len(outside):
        return None, None
    from scipy.stats import rankdata  # large, and not before it is wanted

    ranks = rankdata(np.concatenate([inside, outside]))[: len(inside)]
    auroc = (ranks.sum() - len(inside) * (len(inside) + 1) / 2) / (len(inside) * len(outside))
    threshold = np.sort(inside)[int(np.floor((1 - SURE) * len(inside)))]
    return float(auroc), float((outside >= threshold).mean())
