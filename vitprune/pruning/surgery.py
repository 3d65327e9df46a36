"""Mask → slim model: a copy in which the dropped hidden units no longer exist."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from vitprune.model import families
from vitprune.model.inside import hooks
from vitprune.model.sites import ffn
from vitprune.pruning.masks import Mask


def slim(model: nn.Module, mask: Mask) -> nn.Module:
    """A pruned copy of `model` in eval mode; the model itself is left as it was.

    The copy computes what the model computes with the masked hidden units gone at every token: set to zero, and left out
    of a norm that stands between the hidden units and fc2.
    """
    sites = families.ffn_sites(model)
    if len(sites) != len(mask.blocks):
        raise ValueError(f"the mask has {len(mask.blocks)} blocks, the model {len(sites)}")
    for site, keep in zip(sites, mask.blocks, strict=True):
        if keep.numel() != site.width:
            raise ValueError(f"{site.fc1}: the mask has {keep.numel()} units, the layer {site.width}")
    result = copy.deepcopy(model).eval()
    for site, keep in zip(sites, mask.blocks, strict=True):
        if not bool(keep.all()):
            ffn.keep_units(result, site, keep.nonzero().flatten())
    for parameter in result.parameters():
        parameter.requires_grad_(False)
        parameter.grad = None
    check_widths(result, mask.widths)
    return result


def check_widths(model: nn.Module, widths: list[int]) -> None:
    """Every FFN of `model` has the width asked for, in its weights and in its metadata."""
    for site, expected in zip(families.ffn_sites(model), widths, strict=True):
        ffn.check_width(model, site, expected)


@torch.no_grad()
def masked_vs_sliced(model: nn.Module, mask: Mask, images: Tensor) -> float:
    """Largest |logit difference| between the masked model and its slim copy, as a share of the largest |logit|."""
    with hooks.masked(model, families.ffn_sites(model), [keep.to(images.device) for keep in mask.blocks]):
        expected = model(images)
    return float((slim(model, mask)(images) - expected).abs().max() / expected.abs().max())
