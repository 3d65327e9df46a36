"""What is drawn for an image, the same for the same image and seed: a label from the model's own prediction; for a model
without a head, directions in the space of its features.

Legend: B images, C outputs, D width of a feature.
"""

from __future__ import annotations

import zlib

import numpy as np
import torch
from torch import Tensor, nn

from vitprune.core.device import widened
from vitprune.model.inside import backbone


@torch.no_grad()
def sampled_labels(model: nn.Module, images: Tensor, seed: int) -> Tensor:
    """One label per image [B], drawn from the model's prediction; the draw hangs on the image, not on its batch."""
    return draw(widened(model(images)).softmax(-1), images, seed)


def objective(model: nn.Module, images: Tensor, among: Tensor, seed: int) -> Tensor:
    """What costs are made of the gradient of, summed over images [B, C, H, W]: log p(ŷ), ŷ drawn `among` some outputs; of a
    backbone u·f, with independent u ~ N(0, I) for its image vector and every token (see `backbone.Output`)."""
    found = backbone.of(model)
    if found is None:
        log_p = model(images)[:, among].log_softmax(-1)
        drawn = draw(widened(log_p.detach()).softmax(-1), images, seed)
        return log_p.gather(1, drawn[:, None]).sum()
    out = found.output(found.features(images), found.drawn)
    of_vector, of_rows = out.vector.shape[1], out.rows.shape[1:]
    u = directions(images, of_vector + of_rows.numel(), seed).to(out.vector)
    along = out.weight**0.5 * (u[:, :of_vector] * out.vector).sum()
    return along + (u[:, of_vector:].unflatten(1, of_rows) * out.rows).sum()


def directions(images: Tensor, count: int, seed: int) -> Tensor:
    """Standard normal numbers [B, count] float32, on the processor: they hang on the image and the seed alone, and are the
    same on every machine."""
    keys = [zlib.crc32(image.numpy().tobytes(), seed) for image in images.cpu().contiguous()]
    drawn = [np.random.Generator(np.random.Philox(key)).standard_normal(count, np.float32) for key in keys]
    return torch.from_numpy(np.stack(drawn))


def draw(probability_BC: Tensor, images: Tensor, seed: int) -> Tensor:
    """One index per row [B], on the images' device, drawn from the row's probabilities by a number that the image gives."""
    cumulative = widened(probability_BC).cumsum(-1)
    draws = [zlib.crc32(image.numpy().tobytes(), seed) / 2**32 for image in images.cpu().contiguous()]
    u = torch.tensor(draws, dtype=torch.float64, device=cumulative.device)[:, None]
    return (u >= cumulative).sum(1).clamp_max(cumulative.shape[1] - 1).to(images.device)
