"""The weights of one FFN: which rows and columns belong to its hidden units, and how to keep only some of them.

Unit j of n is row j of fc1, in a packed gate row n + j as well, row j of a gate layer, entry j of a norm between the
hidden units and fc2, and column j of fc2. Everything here changes weights and metadata together.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vitprune.model.sites.base import FfnSite

ADDED = "added_by_vitprune"  # an attribute of a layer whose bias the architecture does not have


def linear(model: nn.Module, path: str) -> nn.Linear:
    """The linear layer at `path`."""
    layer = model.get_submodule(path)
    assert isinstance(layer, nn.Linear), path
    return layer


def rows(model: nn.Module, site: FfnSite, units: Tensor) -> Tensor:
    """The rows of fc1 that stay when only `units` [k] do: theirs in every part, and those that are not hidden units."""
    first = [part * site.width + units for part in range(site.parts)]
    rest = torch.arange(site.parts * site.width, linear(model, site.fc1).out_features, device=units.device)
    return torch.cat([*first, rest])


@torch.no_grad()
def keep_units(model: nn.Module, site: FfnSite, units: Tensor) -> None:
    """Leave only hidden units `units` [k] (indices, ascending) of the FFN, in the model itself."""
    fc1 = linear(model, site.fc1)
    units = units.to(fc1.weight.device)
    _keep_rows(fc1, rows(model, site, units))
    if site.gate is not None:
        _keep_rows(linear(model, site.gate), units)
    if site.norm is not None:
        parent, _, name = site.norm.rpartition(".")
        setattr(model.get_submodule(parent), name, norm_of(model.get_submodule(site.norm), units))
    if site.split is not None:
        block: Any = model.get_submodule(site.split)
        block.in_split = [len(units), *block.in_split[1:]]
        if block.mlp_bias is not None:
            block.mlp_bias = _like(block.mlp_bias, block.mlp_bias[units])
    fc2 = linear(model, site.fc2)
    fc2.weight = _like(fc2.weight, fc2.weight[:, units])
    fc2.in_features = len(units)


def _keep_rows(layer: nn.Linear, kept: Tensor) -> None:
    layer.weight = _like(layer.weight, layer.weight[kept])
    if layer.bias is not None:
        layer.bias = _like(layer.bias, layer.bias[kept])
    layer.out_features = len(kept)


def _like(old: Tensor, value: Tensor) -> nn.Parameter:
    return nn.Parameter(value.detach().clone(), requires_grad=old.requires_grad)


@torch.no_grad()
def norm_of(norm: nn.Module, units: Tensor) -> nn.Module:
    """A copy of a norm over hidden units (LayerNorm, RmsNorm) that sees only `units` [k]."""
    small: Any = copy.deepcopy(norm)
    small.normalized_shape = (len(units),)
    for name, weight in norm.named_parameters(recurse=False):
        setattr(small, name, _like(weight, weight[units]))
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


def resize(model: nn.Module, site: FfnSite, width: int) -> None:
    """Give the FFN another width, smaller or larger, with weights that have no meaning yet."""
    if width != site.width:
        keep_units(model, site, torch.arange(width) % site.width)


def check_width(model: nn.Module, site: FfnSite, width: int) -> None:
    """The FFN has this width, in its weights and in its metadata."""
    fc1, fc2 = linear(model, site.fc1), linear(model, site.fc2)
    assert site.width == width, site.fc1
    made = len(rows(model, site, torch.arange(width)))
    for layer, count in ((fc1, made), *([(linear(model, site.gate), width)] if site.gate else [])):
        assert layer.weight.shape == (count, layer.in_features), site.fc1
        assert layer.bias is None or layer.bias.shape == (count,), site.fc1
        assert layer.out_features == count, site.fc1
    assert site.split is not None or made == site.parts * width, site.fc1
    assert fc2.weight.shape == (fc2.out_features, width), site.fc2
    assert fc2.in_features == width, site.fc2
    if site.norm is not None:
        norm = model.get_submodule(site.norm)
        assert tuple(norm.normalized_shape) == (width,), site.norm  # type: ignore[arg-type]


def cost_per_unit(model: nn.Module, site: FfnSite) -> tuple[int, int]:
    """Of one hidden unit: multiply-adds per token, and parameters."""
    fc1, fc2 = linear(model, site.fc1), linear(model, site.fc2)
    made = site.parts + (site.gate is not None)
    products = made * fc1.in_features + fc2.out_features
    return products, products + (made if fc1.bias is not None else 0)
