"""Maps of the shown units on the grid of their patches, and the images as they look."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from vitprune.core.errors import UserError
from vitprune.images.preprocess import Preprocessing
from vitprune.model import families
from vitprune.model.tokens import tokens_per_site
from vitprune.runs.seeing.looking import Looking
from vitprune.runs.seeing.parts.naming.collect import Activations
from vitprune.see.pictures import drawing
from vitprune.see.pictures.grid import grid_of


def laid(looking: Looking, found: Activations) -> dict[int, np.ndarray] | str:
    """Per block the shown units' maps [N, k, g, g'], or why the model's patches are on no known grid."""
    size = families.input_shape(looking.model)[1:]
    tokens = tokens_per_site(looking.model, looking.sites)
    made = {}
    try:
        for i, maps in found.maps.items():
            grid = dataclasses.replace(grid_of(looking.model, looking.sites[i], tokens[i], size), prefix=0)
            made[i] = grid.arrange(torch.from_numpy(maps)).numpy()
    except UserError as error:
        return str(error).removeprefix("see: maps: ")
    return made


def picture(looking: Looking, position: int) -> np.ndarray:
    """An image as the model is given it, uint8 [H, W, 3]."""
    prepared = Preprocessing.of(looking.run.loaded.data_config)
    return drawing.pixels(looking.run.images.tensor(position), prepared.mean, prepared.std)
