"""A model's input space as its probe images have it: sizes, normalisation, colours, magnitude spectrum.

Legend: B images, C channels, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Space:
    """`mean` and `std` [C] of the normalisation; `colour` [C, C] mixes independent channels into those of the probe images;
    `spectrum` [C, H, W // 2 + 1] is the mean of |rfft2| of the probe images as the model is given them."""

    shape: tuple[int, int, int]
    mean: Tensor
    std: Tensor
    colour: Tensor
    spectrum: Tensor

    @classmethod
    def of(cls, mean: Sequence[float], std: Sequence[float], batches: Iterable[Tensor]) -> Space:
        """Of probe images [B, C, H, W], normalised; at least one."""
        means, stds = torch.tensor(list(mean)).float(), torch.tensor(list(std)).float()
        count, magnitude, first, second = 0, torch.zeros(()), torch.zeros(()), torch.zeros(())
        shape = (0, 0, 0)
        for batch in batches:
            images = batch.detach().cpu().double()
            colours = (images * stds[:, None, None] + means[:, None, None]).transpose(0, 1).flatten(1)
            count, shape = count + len(images), (images.shape[1], images.shape[2], images.shape[3])
            magnitude = magnitude + torch.fft.rfft2(images).abs().sum(0)
            first, second = first + colours.sum(1), second + colours @ colours.T
        assert count, "no probe image"
        pixels = count * shape[1] * shape[2]
        covariance = second / pixels - torch.outer(first, first) / pixels**2
        return cls(shape, means, stds, _root(covariance).float(), (magnitude / count).float())

    def to(self, device: torch.device) -> Space:
        """The same on a device."""
        return Space(self.shape, *(x.to(device) for x in (self.mean, self.std, self.colour, self.spectrum)))

    def normalised(self, pixels_BCHW: Tensor) -> Tensor:
        """Pixels 0 to 1 as the model is given them."""
        return (pixels_BCHW - self.mean[:, None, None]) / self.std[:, None, None]

    def quantised(self, images_BCHW: Tensor) -> np.ndarray:
        """The model's input as 8-bit pixels, uint8 [B, H, W, C]: what is shown, and all that is ever judged."""
        pixels = (images_BCHW.detach() * self.std[:, None, None] + self.mean[:, None, None]).clamp(0, 1)
        return (255 * pixels).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()

    def seen(self, pixels_BHWC: np.ndarray) -> Tensor:
        """8-bit pixels as the model is given them, [B, C, H, W]."""
        whole = torch.from_numpy(np.ascontiguousarray(pixels_BHWC)).to(self.mean.device)
        return self.normalised(whole.permute(0, 3, 1, 2).float() / 255)

    @property
    def grey(self) -> Tensor:
        """What a pixel of half brightness is to the model, [C]."""
        return (0.5 - self.mean) / self.std


def _root(covariance: Tensor) -> Tensor:
    """A root of the covariance, its longest column of length 1; the identity where there is one channel or no colour."""
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors * values.clamp(min=0).sqrt()
    longest = root.norm(dim=0).max()
    if len(covariance) == 1 or not longest > 1e-6:
        return torch.eye(len(covariance), dtype=covariance.dtype)
    return root / longest
