"""From a model and images to a smaller model in one call."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from vitprune.api.scoring import discover
from vitprune.api.slimming import prune
from vitprune.core.device import device_of
from vitprune.core.errors import UserError
from vitprune.exam.logits import predictor
from vitprune.model import door


def compress(
    model: nn.Module,
    images: Tensor | Iterable[Tensor],
    *,
    budget: Mapping[str, float] | None = None,
    classes: Sequence[int] | None = None,
    batch: int = 64,
) -> nn.Module:
    """A slim, repaired copy of `model` by the tool's default: `budget` (None: half of the multiply-adds) of the whole model.

    `images` [N, C, H, W], or batches of them, as the model takes them (already normalised); no labels. A few hundred are
    needed, a few thousand are better. The same as `discover` and `prune` one after the other. Raises UserError as these do.
    """
    bare = door.bare("compress", model)
    with door.Inside(bare):
        given = door.batches_of("compress", bare, images, batch)
        if not given:
            raise UserError("compress: no images were given")
        predict, device = predictor(bare), device_of(bare)
        labels = torch.cat(
            [predict(part.to(device)).argmax(1).cpu() for part in given]
        )  # no criterion of costs reads them
    scores = discover(bare, torch.cat(given), labels, batch=batch)
    return prune(bare, scores, budget=budget or {"macs": 0.5}, images=given, classes=classes, batch=batch)
