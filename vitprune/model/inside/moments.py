"""Moments of the hidden units over batches of images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from vitprune.core.device import device_of
from vitprune.core.least_squares import Moments, Stream
from vitprune.model import families, tokens
from vitprune.model.inside import hooks, pieces
from vitprune.model.inside.pieces import STATISTICS
from vitprune.model.sites.ffn import FfnSite


@torch.no_grad()
def moments(model: nn.Module, sites: Sequence[FfnSite], batches: Iterable[Tensor]) -> list[Moments]:
    """Hidden-unit moments of every block over batches of images [B, C, H, W]; memory does not grow with their number."""
    streams = [Stream() for _ in sites]
    read, last = tokens.tokens_read(model), families.ffn_sites(model)[-1].block
    device, footprint = device_of(model), pieces.footprint(model, sites)

    def hidden_of(images: Tensor) -> list[Tensor]:
        seen: dict[int, Tensor] = {}

        def collect(position: int, hidden_BTN: Tensor) -> None:
            seen[position] = hidden_BTN[:, read] if sites[position].block == last else hidden_BTN

        with hooks.hidden_units(model, sites, collect):
            model(images.to(device))
        return [seen[position] for position in range(len(sites))]

    for images in batches:
        fits = pieces.room(footprint, device)
        found = pieces.taken(len(images), pieces.on(hidden_of, images), STATISTICS, fits, device)
        for stream in streams:
            stream.add(pieces.first_of(found))
    return [stream.finish() for stream in streams]
