"""Classes grouped by the units they share."""

from __future__ import annotations

import numpy as np

from vitprune.see import usage


def groups(similarity_CC: np.ndarray, k: int) -> list[list[int]]:
    """Positions of the classes in each of at most k clusters, the clusters in the order of their first class."""
    from scipy.cluster.hierarchy import fcluster  # large, and not before it is wanted

    of_class = fcluster(usage.tree(similarity_CC), k, "maxclust")
    found = [np.flatnonzero(of_class == c).tolist() for c in np.unique(of_class)]
    return sorted(found, key=lambda members: members[0])
