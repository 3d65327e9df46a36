"""Mask → slim model: a copy in which the dropped hidden units no longer exist."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from vitprune import hooks, models, tp_bridge
from vitprune.types import Mask


def slim(model: nn.Module, mask: Mask) -> nn.Module:
    """A pruned copy of `model` in eval mode; the model itself is left as it was.

    The copy computes what the model computes with the masked hidden units set to zero at every token.
    """
    sites = models.ffn_sites(model)
    if len(sites) != len(mask.blocks):
        raise ValueError(f"the mask has {len(mask.blocks)} blocks, the model {len(sites)}")
    for site, keep in zip(sites, mask.blocks, strict=True):
        if keep.numel() != site.width:
            raise ValueError(f"{site.fc1}: the mask has {keep.numel()} units, the layer {site.width}")
    result = copy.deepcopy(model).eval()
    example = next(result.parameters()).new_zeros(1, *models.input_shape(result))
    drop = [torch.nonzero(~keep).flatten().tolist() for keep in mask.blocks]
    tp_bridge.remove(result, sites, drop, example)
    for parameter in result.parameters():
        parameter.requires_grad_(False)
        parameter.grad = None
    check_widths(result, mask.widths)
    return result


def check_widths(model: nn.Module, widths: list[int]) -> None:
    """Every FFN of `model` has the width asked for, in its weights and in its metadata."""
    for site, expected in zip(models.ffn_sites(model), widths, strict=True):
        fc1, fc2 = model.get_submodule(site.fc1), model.get_submodule(site.fc2)
        assert isinstance(fc1, nn.Linear) and isinstance(fc2, nn.Linear)
        assert fc1.weight.shape == (expected, fc1.in_features), site.fc1
        assert fc1.bias is None or fc1.bias.shape == (expected,), site.fc1
        assert fc2.weight.shape == (fc2.out_features, expected), site.fc2
        assert fc1.out_features == fc2.in_features == expected, site.fc1


@torch.no_grad()
def masked_vs_sliced(model: nn.Module, mask: Mask, images: Tensor) -> float:
    """Largest |logit difference| between the masked model and its slim copy, as a share of the largest |logit|."""
    with hooks.masked(model, models.ffn_sites(model), [keep.to(images.device) for keep in mask.blocks]):
        expected = model(images)
    return float((slim(model, mask)(images) - expected).abs().max() / expected.abs().max())
