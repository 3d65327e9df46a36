"""In what the passes of a run multiply: the recipe's `precision`, as far as the device knows it.

`bfloat16` is for what knows how to take it: criteria with a setting of that name (they are given it), sums, and repairs. Sums
are float64 whatever it is; exam and exported files are float32, and do not come here.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch

from vitprune.core.device import Precision, products
from vitprune.core.reading import Json
from vitprune.recipe.recipe import Recipe
from vitprune.runs.state.run import Run


def kind(recipe: Recipe, device: torch.device) -> Precision:
    """What products are made in on a device: tf32 is there on CUDA alone, and float32 elsewhere."""
    return "float32" if recipe.precision == "tf32" and device.type != "cuda" else recipe.precision


def told(recipe: Recipe, device: torch.device, *, half: bool = True) -> Json:
    """What digests have of the passes: nothing for float32, so that what was made before stays what it is."""
    found = _of_passes(recipe, device, half)
    return {} if found == "float32" else {"passes": found}


def passes(run: Run, *, half: bool = True) -> AbstractContextManager[None]:
    """Inside, passes are made in the recipe's precision; `half`: in bfloat16 too."""
    return products(_of_passes(run.recipe, run.device, half), run.device)


def _of_passes(recipe: Recipe, device: torch.device, half: bool) -> Precision:
    found = kind(recipe, device)
    return "float32" if found == "bfloat16" and not half else found
