"""Small random moves of an image, so that what is made does not hang on single pixels: a shift, a size, a turn.

Lucent's, in fractions of the image: a border of 12/128 in grey, shifts of 8/128 and 4/128, sizes 0.9 to 1.1, turns of ±10°.
One affine map does them all. Legend: B images, C channels, H x W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

BORDER, SHIFTS, SIZES, DEGREES = 12 / 128, (8 / 128, 4 / 128), (0.9, 1.1), 10.0


def draw(generators: Sequence[torch.Generator]) -> Tensor:
    """Per image its move [B, 4]: shift across and down in fractions of the image, size, turn; each of its own generator."""
    made = []
    for generator in generators:
        u = torch.rand(6, generator=generator, dtype=torch.float64)
        across = sum(s * (float(v) - 0.5) for s, v in zip(SHIFTS, u[:2], strict=True))
        down = sum(s * (float(v) - 0.5) for s, v in zip(SHIFTS, u[2:4], strict=True))
        size = SIZES[0] + (SIZES[1] - SIZES[0]) * float(u[4])
        made.append([across, down, size, math.radians(DEGREES * (2 * float(u[5]) - 1))])
    return torch.tensor(made, dtype=torch.float64)


def moved(images_BCHW: Tensor, moves_B4: Tensor, fill_C: Tensor) -> Tensor:
    """The images after their moves, of the same size; what comes from outside them is `fill_C`."""
    height, width = images_BCHW.shape[2:]
    across, down, size, turn = moves_B4.unbind(1)
    zoom = (1 + 2 * BORDER - sum(SHIFTS)) / size
    cos, sin = zoom * turn.cos(), zoom * turn.sin()
    theta = torch.stack(
        [cos, -sin * height / width, 2 * across, sin * width / height, cos, 2 * down], 1
    ).view(-1, 2, 3)  # fmt: skip
    grid = F.affine_grid(theta.to(images_BCHW), list(images_BCHW.shape), align_corners=False)
    ground = fill_C[:, None, None]
    return F.grid_sample(images_BCHW - ground, grid, padding_mode="zeros", align_corners=False) + ground
