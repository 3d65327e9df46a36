"""What a model's files weigh, so that a budget in megabytes is met by every one of them."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from vitprune.model import families, size
from vitprune.model.sites import ffn
from vitprune.model.sites.attention import AttentionSite
from vitprune.model.sites.ffn import FfnSite

MEGABYTE = 1e6  # bytes
PER_SITE = 256  # bytes of a graph: constants that blocks share while they are of one shape


class Megabytes:
    """Bytes of the model's largest file. What its sites save is 4 bytes a parameter; the rest is that of the dense model."""

    name = "size_mb"

    def __init__(self, model: nn.Module, onnx: Callable[[nn.Module], int] | None = None) -> None:
        """`model` as it is written, with the outputs that it keeps; `onnx` gives the bytes of a model's ONNX file, and
        is None where none is written."""
        largest = _largest(model)
        self.model, self.each = model, next(model.parameters()).element_size()
        graph = 0 if onnx is None else onnx(largest) + PER_SITE * 2 * len(families.ffn_sites(model))
        self.total = float(max(size.file_bytes(largest, bound=True), graph))

    def room(self, amount: float) -> float:
        """That many megabytes."""
        return amount * MEGABYTE

    def amount(self, price: float) -> float:
        """The bytes in megabytes."""
        return price / MEGABYTE

    def attention(self, site: AttentionSite, heads: int, dim: int, queries: int | None = None) -> float:
        """Bytes of its layers."""
        return float(self.each * site.parameters(self.model, heads, dim, queries))

    def ffn(self, site: FfnSite, sizes: np.ndarray) -> np.ndarray:
        """Bytes of its layers."""
        return self.each * (sizes.astype(float) * site.cost(self.model, 1).parameters)


@torch.no_grad()
def _largest(model: nn.Module) -> nn.Module:
    """The model with every bias that a repair may add, and no two weights alike: an exporter writes those once."""
    made = copy.deepcopy(model)
    ffn.add_biases(made, families.ffn_sites(made))
    draw = torch.Generator().manual_seed(0)
    for weight in made.parameters():
        weight.copy_(torch.randn(weight.shape, generator=draw))
    return made
