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
from vitprune.model import door, families
from vitprune.model.families import Reads


def compress(
    model: nn.Module,
    images: Tensor | Iterable[Tensor],
    *,
    budget: Mapping[str, float] | None = None,
    classes: Sequence[int] | None = None,
    features: Reads | None = None,
    batch: int = 64,
) -> nn.Module:
    """A slim, repaired copy of `model` by the tool's default: `budget` (None: half of the multiply-adds) of the whole model.

    `images` [N, C, H, W], or batches of them, as the model takes them (already normalised); no labels. A few hundred are
    needed, a few thousand are better. A model without a head is compressed for its features: `features` "tokens" (the
    default) for all of them, "pooled" for the pooled vector alone. The same as `discover` and `prune` one after the other.
    Raises UserError as these do.
    """
    bare = door.bare("compress", model)
    with door.Inside(bare):
        given = door.batches_of("compress", bare, images, batch)
        if not given:
            raise UserError("compress: no images were given")
        labels = None
        if families.reads(bare) is None:
            predict, device = predictor(bare), device_of(bare)
            labels = torch.cat(
                [predict(part.to(device)).argmax(1).cpu() for part in given]
            )  # no criterion of costs reads them
    scores = discover(bare, torch.cat(given), labels, features=features, batch=batch)
    asked = budget or {"macs": 0.5}
    return prune(bare, scores, budget=asked, images=given, classes=classes, features=features, batch=batch)
