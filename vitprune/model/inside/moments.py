"""Moments of the hidden units over batches of images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from vitprune.core.device import device_of
from vitprune.core.least_squares import SAME, Moments, Stream, Sums
from vitprune.model import families, tokens
from vitprune.model.inside import hooks, pieces
from vitprune.model.inside.pieces import STATISTICS
from vitprune.model.sites.ffn import FfnSite


def moments(model: nn.Module, sites: Sequence[FfnSite], batches: Iterable[Tensor]) -> list[Moments]:
    """Hidden-unit moments of every block over batches of images [B, C, H, W]; memory does not grow with their number."""
    return of_sums(sums(model, sites, batches), sites)


def of_sums(found: Sums, sites: Sequence[FfnSite]) -> list[Moments]:
    """Every block's moments from what `sums` gave, or from that of several parts added up."""
    return [Stream.of(found, f"hidden.{i}").finish() for i in range(len(sites))]


@torch.no_grad()
def sums(model: nn.Module, sites: Sequence[FfnSite], batches: Iterable[Tensor], first: Sums | None = None) -> Sums:
    """Sums of every block's hidden units over batches of images. `first`: those of the part with the first batch."""
    streams = streams_of(sites, first)
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
    return sums_of(streams)


def streams_of(sites: Sequence[FfnSite], first: Sums | None) -> list[Stream]:
    """A stream for every block, around the same values as those of the first part."""
    return [Stream(first[f"{SAME}hidden.{i}.origin"] if first else None) for i in range(len(sites))]


def sums_of(streams: Sequence[Stream]) -> Sums:
    """What every block's stream has summed."""
    found: Sums = {}
    for i, stream in enumerate(streams):
        found |= stream.sums(f"hidden.{i}")
    return found
