"""Accuracy, probabilities, parameters and MACs; the only reader of the test split.

Legend: N test images, C outputs, n hidden units of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from vitprune.core.device import device_of, products
from vitprune.core.errors import UserError
from vitprune.images.batches import Images
from vitprune.images.split import Split
from vitprune.model.inside import pieces

ADVICE = "evaluate: not enough memory for a single image; free some, or take a device with more"
Predictor = Callable[..., Tensor]


def predictor(model: nn.Module) -> Predictor:
    """Images [B, C, H, W] on the CPU → logits [B, C] on the CPU, float32; the same bits where a batch needs several passes."""
    device = device_of(model)

    @torch.inference_mode()
    def predict(images: Tensor) -> Tensor:
        with products("float32", device):
            return pieces.joined(lambda x: model(x.to(device)).float().cpu(), images, advice=ADVICE)

    return predict


def test_logits(
    predict: Predictor, images: Images, split: Split, batch: int, only: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Logits [N, C] float32 and labels [N] on the test split, or on those of its images whose label is in `only`.

    Raises UserError for logits that are not finite.
    """
    return logits_of(predict, images, test_indices(images, split, only), batch)


def logits_of(predict: Predictor, images: Images, index: np.ndarray, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits [N, C] float32 and labels [N] of the images at N positions. Raises UserError for logits that are not finite."""
    (logits,) = logits_side_by_side([predict], images, index, batch)
    return logits, images.labels[index]


def logits_side_by_side(
    predicts: Sequence[Predictor], images: Images, index: np.ndarray, batch: int
) -> list[np.ndarray]:
    """Logits [N, C] float32 of several models, from images that are read once. Raises UserError as `logits_of` does."""
    found: list[list[np.ndarray]] = [[] for _ in predicts]
    for x, _ in images.batches(index, batch):
        for one, predict in zip(found, predicts, strict=True):
            one.append(_fitting(predict, x))
    made = [np.concatenate(one) for one in found]
    for logits in made:
        if not np.isfinite(logits).all():
            first = images.source.names[int(index[np.flatnonzero(~np.isfinite(logits).all(1))[0]])]
            raise UserError(
                f"evaluate: the model gave logits that are not finite, first for {first}; check its weights"
            )
    return made


def _fitting(predict: Predictor, x: Tensor, *more: Tensor) -> np.ndarray:
    """Logits [B, C] of a batch, in pieces where it does not fit; `more` [B, …] goes along row by row."""
    return pieces.joined(predict, x, *more, advice=ADVICE).numpy()


def test_indices(images: Images, split: Split, only: np.ndarray | None = None) -> np.ndarray:
    """Test images whose label is in `only` (None: all of them)."""
    return split.test if only is None else split.test[np.isin(images.labels[split.test], only)]
