"""A site: one place of a model from which units can be removed, whatever its kind.

A kind says which entries of which parameters belong to a unit (`Slice`), and which attributes of modules follow the number
of units (`Size`). Removing, zeroing, resizing and checking are loops over these; nothing here knows a kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class TokenLayout:
    """Which tokens of the stream [B, T, D] are what: how many are no patches, whether the first is a class token that the
    head reads, and which of them the head reads at all (`start`, `stop`). `plain`: one stream for all blocks."""

    prefix: int
    class_token: bool
    start: int = 0
    stop: int | None = None
    plain: bool = True


@dataclass(frozen=True, slots=True)
class Slice:
    """Entries of one parameter along one axis: those of unit j are start + j·span … start + (j+1)·span − 1 of every start.
    `rest` entries belong to no unit."""

    parameter: str
    axis: int
    starts: tuple[int, ...] = (0,)
    span: int = 1
    rest: int = 0

    def entries(self, units: Tensor) -> Tensor:
        """Positions along the axis that belong to `units` [k]."""
        own = (units[:, None] * self.span + torch.arange(self.span, device=units.device)).flatten()
        return torch.cat([start + own for start in self.starts])


@dataclass(frozen=True, slots=True)
class Size:
    """An attribute of a module that says how many there are: units · factor + plus; as a number, as a tuple of one number,
    or as the first number of a list."""

    module: str
    attribute: str
    factor: int = 1
    plus: int = 0
    form: Literal["number", "tuple", "first"] = "number"

    def read(self, model: nn.Module) -> int:
        """The number that stands there."""
        value: Any = getattr(model.get_submodule(self.module), self.attribute)
        return int(value if self.form == "number" else value[0])

    def write(self, model: nn.Module, units: int) -> None:
        """Put the number for `units` there."""
        module, value = model.get_submodule(self.module), units * self.factor + self.plus
        if self.form == "first":
            setattr(module, self.attribute, [value, *getattr(module, self.attribute)[1:]])  # type: ignore[misc]
        else:
            setattr(module, self.attribute, value if self.form == "number" else (value,))


@dataclass(frozen=True, slots=True)
class Cost:
    """What units cost: multiply-adds per token, and parameters."""

    macs: int
    parameters: int


class Site(Protocol):
    """A place with `size` units. `name` is unique in the model and survives a save; at least `least` units stay, and their
    number is a multiple of `multiple` where it is not the whole. `reads` is the module at whose input the units are seen."""

    @property
    def kind(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def block(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def least(self) -> int: ...
    @property
    def multiple(self) -> int: ...
    @property
    def reads(self) -> str: ...

    def slices(self, model: nn.Module) -> list[Slice]:
        """Every entry of every parameter that belongs to a unit."""
        ...

    def sizes(self, model: nn.Module) -> list[Size]:
        """Every attribute that follows the number of units."""
        ...

    def cost(self, model: nn.Module, units: int) -> Cost:
        """What `units` of this site cost."""
        ...


@torch.no_grad()
def keep_units(model: nn.Module, site: Site, units: Tensor) -> None:
    """Leave only `units` [k] (indices, ascending) of the site, in the model itself: weights and metadata together."""
    sizes = site.sizes(model)
    for part in site.slices(model):
        module, name, old = _parameter(model, part.parameter)
        rest = torch.ones(old.shape[part.axis], dtype=torch.bool, device="cpu")
        rest[part.entries(torch.arange(site.size, device="cpu"))] = False
        kept = torch.cat([part.entries(units.cpu()), rest.nonzero().flatten()]).sort().values
        setattr(module, name, _like(old, old.index_select(part.axis, kept.to(old.device))))
    for size in sizes:
        size.write(model, len(units))


@torch.no_grad()
def zero_units(model: nn.Module, site: Site, units: Tensor) -> None:
    """Set every entry of `units` [k] to zero, in the model itself."""
    for part in site.slices(model):
        weight = model.get_parameter(part.parameter)
        weight.index_fill_(part.axis, part.entries(units.to(weight.device)), 0)


def resize(model: nn.Module, site: Site, size: int) -> None:
    """Give the site another number of units, smaller or larger, with weights that have no meaning yet."""
    if size != site.size:
        keep_units(model, site, torch.arange(size, device="cpu") % site.size)


def check_size(model: nn.Module, site: Site, size: int) -> None:
    """The site has this many units, in the weights and in the metadata."""
    assert site.size == size, site.name
    for part in site.slices(model):
        length = model.get_parameter(part.parameter).shape[part.axis]
        assert length == size * part.span * len(part.starts) + part.rest, part.parameter
    for told in site.sizes(model):
        assert told.read(model) == size * told.factor + told.plus, f"{told.module}.{told.attribute}"


def names(sites: Sequence[Site]) -> list[str]:
    """The sites' names, in order."""
    return [site.name for site in sites]


def _parameter(model: nn.Module, path: str) -> tuple[nn.Module, str, nn.Parameter]:
    parent, _, name = path.rpartition(".")
    return model.get_submodule(parent), name, model.get_parameter(path)


def _like(old: Tensor, value: Tensor) -> nn.Parameter:
    return nn.Parameter(value.detach().clone(), requires_grad=old.requires_grad)
