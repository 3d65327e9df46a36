"""Labels drawn from the model's own prediction, the same draw for the same image and seed."""

from __future__ import annotations

import zlib

import torch
from torch import Tensor, nn

from vitprune.core.device import widened


@torch.no_grad()
def sampled_labels(model: nn.Module, images: Tensor, seed: int) -> Tensor:
    """One label per image [B], drawn from the model's prediction; the draw hangs on the image, not on its batch."""
    return draw(widened(model(images)).softmax(-1), images, seed)


def draw(probability_BC: Tensor, images: Tensor, seed: int) -> Tensor:
    """One index per row [B], on the images' device, drawn from the row's probabilities by a number that the image gives."""
    cumulative = widened(probability_BC).cumsum(-1)
    draws = [zlib.crc32(image.numpy().tobytes(), seed) / 2**32 for image in images.cpu().contiguous()]
    u = torch.tensor(draws, dtype=torch.float64, device=cumulative.device)[:, None]
    return (u >= cumulative).sum(1).clamp_max(cumulative.shape[1] - 1).to(images.device)
