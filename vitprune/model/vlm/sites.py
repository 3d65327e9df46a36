"""Where a vision-language model has units that can go: the FFNs of both towers, and groups of heads of the language model.

Sites are found by what a module is made of, never by its path: transformers renames paths between versions. An FFN is a
module with the linear layers `gate_proj`, `up_proj`, `down_proj`, or `fc1` and `fc2`; which tower it is in follows from the
configuration that the module around it was built from. What stands between the towers (the projector) stays whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from torch import nn

from vitprune.core.errors import UserError
from vitprune.model import plain
from vitprune.model.sites.base import Cost, Site, Size, Slice
from vitprune.model.sites.ffn import FfnSite, linear

Tower = Literal["vision", "language"]
TOWERS: tuple[Tower, ...] = ("vision", "language")
ACTS = ("act_fn", "activation_fn", "act")


def tower(model: nn.Module, which: Tower) -> str:
    """The path of the vision tower or the language model: the outermost module built from that part of the configuration.

    Raises UserError where there is none.
    """
    config = getattr(model, "config", None)
    part = getattr(config, "vision_config" if which == "vision" else "text_config", None)
    for path, module in model.named_modules():
        own = getattr(module, "config", None) if path and hasattr(module, "post_init") else None
        if own is not None and type(own) is type(part) and type(own) is not type(config):
            return path
    raise UserError(f"model: {type(model).__name__} has no {which} tower that is known here")


def ffns(model: nn.Module, which: Tower) -> list[FfnSite]:
    """The FFNs of a tower in the order of its blocks, as sites. Raises UserError naming the module that does not fit."""
    root = tower(model, which)
    found = [
        _ffn(model, f"{root}.{path}") for path, module in model.get_submodule(root).named_modules() if _is_ffn(module)
    ]
    if not found:
        raise UserError(f"model: the {which} tower of {type(model).__name__} has no FFN that is known here")
    return [
        FfnSite(i, *paths, size=linear(model, paths[2]).in_features, gate=gate) for i, (paths, gate) in enumerate(found)
    ]


def every_ffn(model: nn.Module) -> list[FfnSite]:
    """The FFNs of both towers, the vision tower's first."""
    return [site for which in TOWERS for site in ffns(model, which)]


def _is_ffn(module: nn.Module) -> bool:
    parts = {name for name, _ in module.named_children()}
    return {"gate_proj", "up_proj", "down_proj"} <= parts or {"fc1", "fc2"} <= parts


def _ffn(model: nn.Module, path: str) -> tuple[tuple[str, str, str], str | None]:
    """(fc1, act, fc2) and the gate, each a plain layer that fits the others."""
    module = model.get_submodule(path)
    parts = dict(module.named_children())
    act = next((name for name in ACTS if name in parts), None)
    if act is None:
        raise UserError(f"{path}: {type(module).__name__} has no activation that is known here")
    first, last, gate = ("up_proj", "down_proj", "gate_proj") if "gate_proj" in parts else ("fc1", "fc2", None)
    for name in (first, last, *([gate] if gate else [])):
        plain.require(f"{path}.{name}", parts[name], plain.LINEAR)
    hidden = linear(model, f"{path}.{last}").in_features
    plain.require_per_unit(f"{path}.{act}", parts[act], hidden)
    for name in (first, *([gate] if gate else [])):
        made = linear(model, f"{path}.{name}").out_features
        if made != hidden:
            raise UserError(f"{path}.{last}: reads {hidden} hidden units, {name} makes {made}")
    return (f"{path}.{first}", f"{path}.{act}", f"{path}.{last}"), gate and f"{path}.{gate}"


@dataclass(frozen=True, slots=True)
class GroupSite:
    """Grouped-query attention of one block: a unit is a key and value head with all the query heads that read it."""

    block: int
    path: str
    size: int
    queries: int
    width: int

    @property
    def kind(self) -> str:
        """Groups of heads."""
        return "groups"

    @property
    def name(self) -> str:
        """The attention's path."""
        return self.path

    @property
    def least(self) -> int:
        """An attention keeps a group."""
        return 1

    @property
    def multiple(self) -> int:
        """Any number of groups will do."""
        return 1

    @property
    def reads(self) -> str:
        """The heads' outputs are what the last layer reads."""
        return f"{self.path}.o_proj"

    def slices(self, model: nn.Module) -> list[Slice]:
        """Rows of queries, keys and values, columns of the output."""
        made = []
        for name, span in (("q_proj", self.queries * self.width), ("k_proj", self.width), ("v_proj", self.width)):
            layer = linear(model, f"{self.path}.{name}")
            made += [Slice(f"{self.path}.{name}.{one}", 0, span=span) for one, _ in layer.named_parameters()]
        return [*made, Slice(f"{self.path}.o_proj.weight", 1, span=self.queries * self.width)]

    def sizes(self, model: nn.Module) -> list[Size]:
        """What follows the number of groups."""
        wide, one = self.queries * self.width, self.width
        spans = [
            ("q_proj", "out_features", wide), ("k_proj", "out_features", one), ("v_proj", "out_features", one),
            ("o_proj", "in_features", wide),
        ]  # fmt: skip
        return [Size(f"{self.path}.{name}", attribute, factor) for name, attribute, factor in spans]

    def cost(self, model: nn.Module, units: int) -> Cost:
        """What `units` groups cost, without the product of queries and keys, which the number of tokens decides."""
        width = linear(model, f"{self.path}.q_proj").in_features
        out = linear(model, f"{self.path}.o_proj").out_features
        products = self.width * ((self.queries + 2) * width + self.queries * out)
        biases = sum(
            units * span
            for name, span in (("q_proj", self.queries * self.width), ("k_proj", self.width), ("v_proj", self.width))
            if linear(model, f"{self.path}.{name}").bias is not None
        )
        return Cost(units * products, units * products + biases)


def groups(model: nn.Module) -> list[GroupSite]:
    """The language model's attentions as sites of whole groups, in the order of its blocks."""
    root = tower(model, "language")
    return [
        GroupSite(i, path, kv.out_features // width, q.out_features // kv.out_features, width)
        for i, (path, q, kv, width) in enumerate(_attentions(model, root))
    ]


def _attentions(model: nn.Module, root: str) -> Iterator[tuple[str, nn.Linear, nn.Linear, int]]:
    for path, module in model.get_submodule(root).named_modules():
        parts = {name for name, _ in module.named_children()}
        if {"q_proj", "k_proj", "v_proj", "o_proj"} <= parts:
            full = f"{root}.{path}"
            for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
                plain.require(f"{full}.{name}", model.get_submodule(f"{full}.{name}"), plain.LINEAR)
            width = getattr(module, "head_dim", None)
            if not isinstance(width, int) or linear(model, f"{full}.k_proj").out_features % width:
                raise UserError(f"{full}: {type(module).__name__} does not say how wide a head is")
            yield full, linear(model, f"{full}.q_proj"), linear(model, f"{full}.k_proj"), width


def named(model: nn.Module) -> dict[str, Site]:
    """Every site of the model, by name."""
    every: list[Site] = [*every_ffn(model), *groups(model)]
    return {site.name: site for site in every}
