"""The paper's protocol: class token only, the mask of the image's true label."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from vitprune.core.device import device_of
from vitprune.exam.logits import _fitting
from vitprune.images.batches import Images
from vitprune.model.inside import hooks
from vitprune.model.sites.ffn import FfnSite


def oracle_logits(
    model: nn.Module,
    sites: Sequence[FfnSite],
    keep_CN: Sequence[Tensor],
    images: Images,
    index: np.ndarray,
    batch: int,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> tuple[np.ndarray, np.ndarray]:
    """The paper's protocol: class token only, the mask of the image's TRUE label; logits and labels of `index`.

    An oracle-routed figure: nobody knows the true label at deployment. `keep_CN` is per block bool [C, n].
    """
    device = device_of(model)

    def predict(x: Tensor, y: Tensor) -> Tensor:
        rows = [keep[y].to(device) for keep in keep_CN]
        with torch.inference_mode(), hooks.masked_class_token(model, sites, rows):
            return model(x.to(device)).float().cpu()

    outputs = []
    starts = progress(range(0, len(index), batch))
    for _, (x, y) in zip(starts, images.batches(index, batch), strict=True):
        outputs.append(_fitting(predict, x, y))
    return np.concatenate(outputs), images.labels[index]
