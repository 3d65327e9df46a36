"""How large a model is: weights and multiply-adds."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vitprune.model import families, tokens
from vitprune.model.inside import first_token


def parameters(model: nn.Module) -> int:
    """Number of weights."""
    return sum(p.numel() for p in model.parameters())


_DTYPES = {
    torch.float32: "F32", torch.float64: "F64", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.bool: "BOOL",
}  # fmt: skip


def file_bytes(model: nn.Module, bound: bool = False) -> int:
    """Bytes of a model's safetensors file: its numbers, and the header that names them. `bound`: a few more at most, and no
    less than for any order of the tensors: where in the file one lies is written with the digits of where the file ends."""
    state = {name: value for name, value in sorted(model.state_dict().items()) if isinstance(value, Tensor)}
    content = sum(value.numel() * value.element_size() for value in state.values())
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, value in state.items():
        start, end = end, end + value.numel() * value.element_size()
        places = [content, content] if bound else [start, end]
        kind = _DTYPES.get(value.dtype, "F8_E4M3")
        header[name] = {"dtype": kind, "shape": list(value.shape), "data_offsets": places}
    told = len(json.dumps(header, separators=(",", ":")).encode())
    return 8 + told + -told % 8 + content


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
