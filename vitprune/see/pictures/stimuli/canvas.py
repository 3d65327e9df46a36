"""What is changed to make an image: numbers that stand for it, and the way from them to the model's input.

`fourier`: a spectrum whose low frequencies count more, then mixed colours, then 0…1 by a sigmoid (Lucid's). `pixel`: the
pixels themselves, before the sigmoid. `maco`: the phases alone, under the magnitude spectrum of the probe images in the
model's own input space; nothing is squashed, so that the spectrum stays what it is until the image is quantised.

Legend: B images, C channels, H x W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from vitprune.see.pictures.stimuli.space import Space

Method = Literal["fourier", "maco", "pixel"]
SPREAD = 0.01  # of the first numbers
MAGIC = 4.0  # Lucid's divisor of an image from a spectrum


def start(method: Method, space: Space, generators: Sequence[torch.Generator]) -> Tensor:
    """The first numbers of every image, [B, …], each from its own generator."""
    channels, height, width = space.shape
    half = (channels, height, width // 2 + 1)
    if method == "fourier":
        made = [SPREAD * torch.randn(*half, 2, generator=g) for g in generators]
    elif method == "pixel":
        made = [SPREAD * torch.randn(channels, height, width, generator=g) for g in generators]
    else:
        made = [math.pi * (2 * torch.rand(*half, generator=g) - 1) for g in generators]
    return torch.stack(made).to(space.mean.device)


def image(method: Method, space: Space, numbers: Tensor) -> Tensor:
    """The images that the numbers stand for, as the model is given them, [B, C, H, W]."""
    size = space.shape[1:]
    if method == "maco":
        phase = antisymmetric(numbers, size[1])
        return torch.fft.irfft2(torch.polar(space.spectrum.expand_as(phase), phase), s=size)
    if method == "pixel":
        return space.normalised(numbers.sigmoid())
    scaled = torch.view_as_complex(numbers * frequency_scale(*size).to(numbers)[..., None])
    raw = torch.fft.irfft2(scaled, s=size, norm="ortho") / MAGIC
    return space.normalised(torch.einsum("dc,bchw->bdhw", space.colour, raw).sigmoid())


def frequency_scale(height: int, width: int) -> Tensor:
    """1 / max(f, 1 / max(H, W)), [H, W // 2 + 1]: low frequencies count more."""
    fy, fx = torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None]
    return 1.0 / (fy**2 + fx**2).sqrt().clamp(min=1.0 / max(height, width))


def antisymmetric(phase: Tensor, width: int) -> Tensor:
    """Phases of a real image: where a column is its own mirror image (the first, and the last of an even width), those of
    opposite frequencies cancel; a frequency that is its own opposite has none, the mean among them."""
    rows = phase.shape[-2]
    mirrored = (-torch.arange(rows, device=phase.device)) % rows
    odd = (phase - phase[..., mirrored, :]) / 2
    own = torch.zeros(phase.shape[-1], dtype=torch.bool, device=phase.device)
    own[0] = True
    if width % 2 == 0:
        own[-1] = True
    return torch.where(own, odd, phase)
