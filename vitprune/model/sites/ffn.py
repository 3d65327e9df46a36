"""FFN hidden units as sites: which rows and columns belong to a unit.

Unit j of n is row j of fc1, in a packed gate row n + j as well, row j of a gate layer, entry j of a norm between the
hidden units and fc2, and column j of fc2.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vitprune.model.sites.base import Cost, Size, Slice


@dataclass(frozen=True, slots=True)
class FfnSite:
    """One FFN: block index, module paths of its layers inside the model, number of hidden units.

    A gated FFN's hidden unit is the product of value and gate: `gate` is the layer beside `fc1` that makes the gate, or
    `parts` is 2 and fc1 holds both (rows j and n + j are unit j). Rows of fc1 after those belong to something else (`split`
    is then the block that cuts them apart). `norm` stands between the hidden units and fc2.
    """

    block: int
    fc1: str
    act: str
    fc2: str
    size: int
    gate: str | None = None
    parts: int = 1
    norm: str | None = None
    split: str | None = None

    @property
    def kind(self) -> str:
        """Hidden units of an FFN."""
        return "ffn"

    @property
    def name(self) -> str:
        """The FFN's path, or its last layer's where it is no module of its own."""
        return self.fc2.removesuffix(".fc2")

    @property
    def least(self) -> int:
        """An FFN keeps a unit."""
        return 1

    @property
    def multiple(self) -> int:
        """Any number of units will do."""
        return 1

    @property
    def reads(self) -> str:
        """The hidden units are what fc2 reads."""
        return self.fc2

    @property
    def layers(self) -> tuple[str, ...]:
        """Every module that holds weights of hidden units."""
        return tuple(path for path in (self.fc1, self.gate, self.norm, self.fc2) if path is not None)

    def slices(self, model: nn.Module) -> list[Slice]:
        """Every entry of every parameter that belongs to a hidden unit."""
        fc1 = linear(model, self.fc1)
        rest = fc1.weight.shape[0] - self.parts * self.size if self.split is not None else 0
        starts = tuple(part * self.size for part in range(self.parts))
        made = [Slice(f"{self.fc1}.{name}", 0, starts, rest=rest) for name in _weights(fc1)]
        for path in (self.gate, self.norm):
            if path is not None:
                made += [Slice(f"{path}.{name}", 0) for name in _weights(model.get_submodule(path))]
        if self.split is not None and model.get_submodule(self.split).mlp_bias is not None:
            made.append(Slice(f"{self.split}.mlp_bias", 0))
        return [*made, Slice(f"{self.fc2}.weight", 1)]

    def sizes(self, model: nn.Module) -> list[Size]:
        """Every attribute that follows the number of hidden units."""
        rest = linear(model, self.fc1).out_features - self.parts * self.size if self.split is not None else 0
        made = [Size(self.fc1, "out_features", self.parts, rest), Size(self.fc2, "in_features")]
        if self.gate is not None:
            made.append(Size(self.gate, "out_features"))
        if self.norm is not None:
            made.append(Size(self.norm, "normalized_shape", form="tuple"))
        if self.split is not None:
            made.append(Size(self.split, "in_split", form="first"))
        return made

    def cost(self, model: nn.Module, units: int) -> Cost:
        """What `units` hidden units cost."""
        fc1, fc2 = linear(model, self.fc1), linear(model, self.fc2)
        made = self.parts + (self.gate is not None)
        products = made * fc1.in_features + fc2.out_features
        return Cost(units * products, units * (products + (made if fc1.bias is not None else 0)))


ADDED = "added_by_vitprune"  # an attribute of a layer whose bias the architecture does not have


def linear(model: nn.Module, path: str) -> nn.Linear:
    """The linear layer at `path`."""
    layer = model.get_submodule(path)
    assert isinstance(layer, nn.Linear), path
    return layer


def _weights(layer: nn.Module) -> list[str]:
    return [name for name, _ in layer.named_parameters(recurse=False)]


@torch.no_grad()
def norm_of(norm: nn.Module, units: Tensor) -> nn.Module:
    """A copy of a norm over hidden units (LayerNorm, RmsNorm) that sees only `units` [k]."""
    small: Any = copy.deepcopy(norm)
    small.normalized_shape = (len(units),)
    for name, weight in norm.named_parameters(recurse=False):
        setattr(small, name, nn.Parameter(weight[units].detach().clone(), requires_grad=weight.requires_grad))
    return small


def norm_over(small: nn.Module, units: Tensor, hidden_BTN: Tensor) -> Tensor:
    """What `norm_of(…, units)` gives, in the places of `units`; 0 in the others'."""
    result = torch.zeros_like(hidden_BTN)
    result[..., units] = small(hidden_BTN[..., units])
    return result


@torch.no_grad()
def add_biases(model: nn.Module, sites: Sequence[FfnSite]) -> None:
    """Give every fc2 that has no bias one of zeros, for what a repair has to add; nothing else changes."""
    for site in sites:
        fc2 = linear(model, site.fc2)
        if fc2.bias is None:
            fc2.bias = nn.Parameter(fc2.weight.new_zeros(fc2.out_features), requires_grad=fc2.weight.requires_grad)
            setattr(fc2, ADDED, True)


def has_added_biases(model: nn.Module, sites: Sequence[FfnSite]) -> bool:
    """Whether `add_biases` gave the model some that its architecture does not have."""
    return any(getattr(linear(model, site.fc2), ADDED, False) for site in sites)


def bias_of(layer: nn.Linear) -> Tensor:
    """The layer's bias [D], zeros where it has none."""
    return layer.weight.new_zeros(layer.out_features) if layer.bias is None else layer.bias
