"""Dissection masks: the pixels where a unit is above its threshold; how they meet pixel labels is in `dissection`.

The maps are those before the activation. `image`: the threshold is a percentile of this one map's pixels, so that every
mask is as large as any other; `unit`: of the unit's values over all probe images, so that masks can be compared between
images. Above is strictly above: a map without a shape has an empty mask. Legend: n images, k units, g x g' the grid,
H x W pixels.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vitprune.see.pictures.maps import upsample


def image_masks(maps_nkgg: Tensor, size: tuple[int, int], percentile: float) -> Tensor:
    """Pixels above the map's own percentile, bool [n, k, H, W]."""
    large = upsample(maps_nkgg.double(), size)
    threshold = np.quantile(large.flatten(2).cpu().numpy(), percentile / 100, axis=2)
    return large > torch.from_numpy(threshold).to(large.device)[..., None, None]


def unit_masks(maps_nkgg: Tensor, size: tuple[int, int], threshold_k: Tensor) -> Tensor:
    """Pixels above the unit's threshold, bool [n, k, H, W]; the threshold is `reading.Upper`'s of the probe images."""
    return upsample(maps_nkgg.double(), size) > threshold_k.to(maps_nkgg.device).double()[None, :, None, None]


def unit_scaled(maps_nkgg: Tensor) -> Tensor:
    """Every map from its own least to its own greatest value, 0 to 1; 0 where it has no shape."""
    low, high = maps_nkgg.amin((2, 3), keepdim=True), maps_nkgg.amax((2, 3), keepdim=True)
    return torch.where(high > low, (maps_nkgg - low) / (high - low).clamp(min=torch.finfo(maps_nkgg.dtype).tiny), 0)


def running_mean(maps_b: Tensor) -> Tensor:
    """Means over blocks 0…b for every b, along the first axis, each from the one before."""
    made = [maps_b[0]]
    for b in range(1, len(maps_b)):
        made.append(made[-1] + (maps_b[b] - made[-1]) / (b + 1))
    return torch.stack(made)
