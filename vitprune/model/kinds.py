"""The kinds of sites. A new one is a file in `sites/` and a row here."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

from torch import nn

from vitprune.core.errors import UserError
from vitprune.model import families
from vitprune.model.sites.base import Site

KINDS: dict[str, Callable[[nn.Module], Sequence[Site]]] = {
    "ffn": families.ffn_sites,
}


def sites_of(model: nn.Module, kinds: Sequence[str] = ("ffn",)) -> list[Site]:
    """The model's sites of these kinds, kind by kind, each in the order of the forward pass.

    Raises UserError for a kind that is not known, or naming the module that does not fit.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise UserError(f"sites: `{kind}` is not known; there are {', '.join(KINDS)}")
    return [site for kind in kinds for site in KINDS[kind](model)]


def sizes(model: nn.Module) -> dict[str, int]:
    """Units of every site by name, of every kind that the model has."""
    found: dict[str, int] = {}
    for kind in KINDS:
        with contextlib.suppress(UserError):
            found |= {site.name: site.size for site in KINDS[kind](model)}
    return found


def named(model: nn.Module, names: Sequence[str]) -> dict[str, Site]:
    """The sites of these names, of whatever kind. Raises UserError for a name that the model has no site of."""
    found: dict[str, Site] = {}
    for find in KINDS.values():
        if set(names) <= found.keys():
            break
        found |= {site.name: site for site in find(model)}
    for name in names:
        if name not in found:
            raise UserError(f"site `{name}`: this model has no such site")
    return {name: found[name] for name in names}
