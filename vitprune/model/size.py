"""How large a model is: weights and multiply-adds."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vitprune.model import families, tokens
from vitprune.model.inside import first_token


def parameters(model: nn.Module) -> int:
    """Number of weights."""
    return sum(p.numel() for p in model.parameters())


def macs(model: nn.Module, shortcut: bool = False) -> int:
    """Multiply-adds of one image: half of torch's FLOP count (linear, convolution and attention products).

    `shortcut`: with the last block for the class token alone.

    Attention is written out as products: which fused kernels torch counts differs between its releases and devices.
    """
    example = next(model.parameters()).new_zeros(1, *families.input_shape(model))
    model = first_token.of(model) if shortcut else model
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        model(example)
    return counter.get_total_flops() // 2


def size(model: nn.Module, shortcut: bool = False) -> dict[str, Any]:
    """What `vitprune bench` needs to know of a model: multiply-adds of an image, those of the FFNs, and their widths.

    `shortcut`: with the last block for the class token alone.
    """
    sites = families.ffn_sites(model)
    counts = tokens.tokens_per_site(model, sites)
    if shortcut:
        counts[-1] = 1
    ffns = sum(n * site.cost(model, site.size).macs for n, site in zip(counts, sites, strict=True))
    return {"macs": {"total": macs(model, shortcut), "ffn": ffns}, "widths": [site.size for site in sites]}
