"""The making of stimulus images: gradient ascent on a unit, step by step, each image by itself.

Every image has a generator of its own, and passes always have the same number of images in them (`at_once`, the rest of the
last one filled up), so that an image is the same alone or among others. Only where `diversity` keeps the images of one
target apart do these hang together. A pass ends at the last block that is asked for. What becomes non-finite marks its own
target as failed; the others go on.

Legend: B images of a pass, T tokens, H hidden units.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from vitprune.model.sites.ffn import FfnSite
from vitprune.see.pictures import reading
from vitprune.see.pictures.stimuli import canvas, transforms
from vitprune.see.pictures.stimuli.objective import Target, likeness, value
from vitprune.see.pictures.stimuli.space import Space

FAILED = "became non-finite"


@dataclass(frozen=True, slots=True)
class Settings:
    """How images are made. `diversity` weighs the likeness of the images of one target (1e-3 is the authors')."""

    method: canvas.Method = "fourier"
    steps: int = 250
    activation: reading.Side = "pre"
    tokens: reading.Tokens = "auto"
    diversity: float = 0.0
    rate: float = 0.05
    at_once: int = 1


@dataclass(frozen=True, slots=True)
class Stimulus:
    """One image: 8-bit pixels [H, W, C] and what the target is on them; None and why where it failed."""

    target: Target
    seed: int
    pixels: np.ndarray | None
    value: float | None
    failed: str | None = None


def make(
    model: nn.Module, sites: Sequence[FfnSite], wanted: Sequence[tuple[Target, int]], space: Space, how: Settings
) -> Iterator[Stimulus]:
    """A stimulus for every (target, seed), in their order."""
    groups: list[list[tuple[Target, int]]] = []
    if how.diversity:
        for one in wanted:
            if groups and groups[-1][0][0] == one[0]:
                groups[-1].append(one)
            else:
                groups.append([one])
    else:
        groups = [list(wanted[i : i + how.at_once]) for i in range(0, len(wanted), how.at_once)]
    with _at_rest(model):
        for group in groups:
            filled = group if how.diversity else group + [group[-1]] * (how.at_once - len(group))
            yield from _Ascent(model, sites, filled, space, how).run()[: len(group)]


class _Ascent:
    """One pass's images on their way."""

    def __init__(
        self,
        model: nn.Module,
        sites: Sequence[FfnSite],
        wanted: Sequence[tuple[Target, int]],
        space: Space,
        how: Settings,
    ) -> None:
        self.model, self.wanted, self.space, self.how = model, wanted, space, how
        self.places = sorted({site for target, _ in wanted for site, _ in target.units})
        self.sites = [sites[i] for i in self.places]
        self.tokens = {i: reading.tokens_of(model, sites[i], sites, how.tokens) for i in self.places}
        self.generators = [torch.Generator().manual_seed(_number(target, seed)) for target, seed in wanted]
        self.numbers = canvas.start(how.method, space, self.generators).requires_grad_(True)

    def run(self) -> list[Stimulus]:
        """All steps, then the images as they are shown, with the target's value on those."""
        adam = torch.optim.Adam([self.numbers], self.how.rate)
        for _ in range(self.how.steps):
            moves = transforms.draw(self.generators)
            with torch.enable_grad():
                shown = transforms.moved(self._images(), moves, self.space.grey)
                loss = -self._values(shown, diverse=True).sum()
                adam.zero_grad()
                (self.numbers.grad,) = torch.autograd.grad(loss, self.numbers, allow_unused=False)
            adam.step()
        with torch.no_grad():
            images = self._images()
            pixels = self.space.quantised(images.nan_to_num(0.0))
            values = self._values(self.space.seen(pixels), diverse=False)
        fine = images.isfinite().flatten(1).all(1) & values.isfinite()
        return [
            Stimulus(target, seed, pixels[i], float(values[i]))
            if fine[i]
            else Stimulus(target, seed, None, None, FAILED)
            for i, (target, seed) in enumerate(self.wanted)
        ]

    def _images(self) -> Tensor:
        return canvas.image(self.how.method, self.space, self.numbers)

    def _values(self, images: Tensor, diverse: bool) -> Tensor:
        """The target's value on every image, [B]; `diverse`: less their share of the images' likeness."""
        hidden = reading.hidden(self.model, self.sites, images, self.how.activation)
        found = dict(zip(self.places, hidden, strict=True))
        values = torch.stack([value(target, i, found, self.tokens) for i, (target, _) in enumerate(self.wanted)])
        if not (diverse and self.how.diversity):
            return values
        alike = torch.stack([likeness(found[site][:, self.tokens[site]]) for site in self.places]).sum()
        return values - self.how.diversity * alike / len(values)


def _number(target: Target, seed: int) -> int:
    """The generator's seed: of the target and its seed, whatever else is made."""
    return int.from_bytes(hashlib.sha256(f"{target.name} {seed}".encode()).digest()[:7], "big")


@contextmanager
def _at_rest(model: nn.Module) -> Iterator[None]:
    """The model in eval mode with weights that ask for no gradient; as it was afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    asked = [weight for weight in model.parameters() if weight.requires_grad]
    try:
        model.eval().requires_grad_(False)
        yield
    finally:
        for module, training in modes:
            module.training = training
        for weight in asked:
            weight.requires_grad_(True)
