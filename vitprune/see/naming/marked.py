"""Pictures for a namer: a contour around where a unit fires, a grid of cells to number, and crops of the cells."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch

from vitprune.see.pictures import drawing
from vitprune.see.pictures.maps import upsample

YELLOW, GREY = (255, 220, 0), (128, 128, 128)
EDGE = 224  # pixels of a picture's longer side, about
CELLS = 7  # of a grid, each way at most


def outlined(picture_HW3: np.ndarray, map_gg: np.ndarray, threshold: float) -> bytes:
    """A picture as PNG with a contour where the map, made as large, is above the threshold; none where nowhere is."""
    large = drawing.at_most(picture_HW3, EDGE).copy()
    mask = upsample(torch.from_numpy(map_gg)[None, None].double(), large.shape[:2])[0, 0].numpy() > threshold
    inner = np.pad(mask, 1)
    inner = inner[1:-1, 1:-1] & inner[:-2, 1:-1] & inner[2:, 1:-1] & inner[1:-1, :-2] & inner[1:-1, 2:]
    large[mask & ~inner] = YELLOW
    return drawing.png(large)


def plain(picture_HW3: np.ndarray) -> bytes:
    """A picture as PNG."""
    return drawing.png(drawing.at_most(picture_HW3, EDGE))


def gridded(picture_HW3: np.ndarray, rows: int, columns: int) -> bytes:
    """A picture as PNG with lines between its cells."""
    large = drawing.at_most(picture_HW3, EDGE).copy()
    for at in _edges(large.shape[0], rows)[1:-1]:
        large[at] = GREY
    for at in _edges(large.shape[1], columns)[1:-1]:
        large[:, at] = GREY
    return drawing.png(large)


def crops(picture_HW3: np.ndarray, rows: int, columns: int) -> list[np.ndarray]:
    """The cells of a picture, row by row; of a pixel each, at least."""
    down, across = (_edges(n, cells) for n, cells in zip(picture_HW3.shape[:2], (rows, columns), strict=True))
    spans = [[slice(min(at, end - 1), end) for at, end in _pairs(edges)] for edges in (down, across)]
    return [picture_HW3[row, column] for row in spans[0] for column in spans[1]]


def _pairs(edges: list[int]) -> list[tuple[int, int]]:
    return [(at, max(end, 1)) for at, end in pairwise(edges)]


def _edges(pixels: int, cells: int) -> list[int]:
    return [round(k * pixels / cells) for k in range(cells + 1)]


def celled(maps_Nkgg: np.ndarray) -> np.ndarray:
    """Maps averaged into cells, at most 7 each way: [N, k, rows, columns]."""
    size = tuple(min(CELLS, n) for n in maps_Nkgg.shape[2:])
    made: np.ndarray = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(maps_Nkgg).double(), size).numpy()
    return made
