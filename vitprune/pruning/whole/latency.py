"""What a model's sites take of its time in ONNX Runtime here, from a table of shapes that were measured.

The table has every kind of attention and FFN that the model has (blocks are mostly alike) on a grid of sizes, timed as graphs
of their own, and the dense model. Between the grid's sizes times are interpolated; a smaller size never takes longer.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from typing import Protocol

import numpy as np
from torch import nn

from vitprune.core.errors import UserError
from vitprune.core.reading import Json
from vitprune.deploy.onnx import pieces
from vitprune.model import families
from vitprune.model.sites.attention import AttentionSite, attention_sites
from vitprune.model.sites.ffn import FfnSite, linear
from vitprune.model.tokens import tokens_per_site

GRID = 8, 8, 12  # at most so many numbers of heads, of dimensions, of hidden units
STEP = 16  # hidden units that a processor's kernels take at a time: others cost as much as the next multiple
REST = 0.02  # of the dense model's time at least is outside of the sites


class Timer(Protocol):
    """Who measures: `Stopwatch`, or a test."""

    def pieces(self, made: Sequence[Callable[[], bytes]]) -> list[float]:
        """Milliseconds of each graph."""
        ...


@dataclass(frozen=True, slots=True)
class AttentionKind:
    """Attentions that take the same time at the same size."""

    width: int
    tokens: int
    read: int
    heads: int
    dims: tuple[int, ...]

    @property
    def grid(self) -> list[tuple[int, ...]]:
        """The sizes that are measured, per axis: heads, dimensions."""
        return [spread(range(1, self.heads + 1), GRID[0]), spread(self.dims, GRID[1])]

    def graph(self, *size: int) -> bytes:
        """It at one size."""
        heads, dim = size
        return pieces.attention(self.width, self.tokens, self.read, heads, dim)


@dataclass(frozen=True, slots=True)
class FfnKind:
    """FFNs that take the same time at the same size."""

    width: int
    tokens: int
    read: int
    units: int
    parts: int
    norm: bool
    act: str

    @property
    def grid(self) -> list[tuple[int, ...]]:
        """The sizes that are measured."""
        return [spread((*range(STEP, self.units, STEP), self.units), GRID[2])]

    def graph(self, *size: int) -> bytes:
        """It at one size."""
        (units,) = size
        return pieces.ffn(self.width, self.tokens, self.read, units, self.parts, self.norm, self.act)


Kind = AttentionKind | FfnKind


@dataclass(frozen=True, slots=True)
class Table:
    """Measured times: of the dense model, and of every kind at the sizes of its grid, by `name_of` the kind; ms."""

    dense: float
    kinds: dict[str, np.ndarray]

    def as_json(self) -> Json:
        """For a file."""
        return {"dense_ms": self.dense, "pieces_ms": {name: times.tolist() for name, times in self.kinds.items()}}

    @classmethod
    def of(cls, read: Json) -> Table:
        """From such a file."""
        return cls(float(read["dense_ms"]), {name: np.array(t, float) for name, t in read["pieces_ms"].items()})


def kinds(model: nn.Module, shortcut: bool = False) -> dict[str, Kind]:
    """The kind of every site by its name. `shortcut`: of the last block one token alone is asked for in the ONNX file."""
    ffns, found = families.ffn_sites(model), dict[str, Kind]()
    tokens = dict(zip([site.name for site in ffns], tokens_per_site(model, ffns), strict=True))
    end = max(site.block for site in ffns)
    for site in ffns:
        seen, parts = tokens[site.name], site.parts + (site.gate is not None)
        read = 1 if shortcut and site.block == end else seen
        act = "gelu" if isinstance(model.get_submodule(site.act), nn.GELU) else "silu"
        width = linear(model, site.fc2).out_features
        found[site.name] = FfnKind(width, seen, read, site.size, parts, site.norm is not None, act)
    try:
        attentions = attention_sites(model)
    except UserError:  # of this family it stays whole, and is a part of the rest
        attentions = []
    for of in attentions:
        seen = tokens[ffns[0].name]
        read = 1 if shortcut and of.block == end else seen
        found[of.name] = AttentionKind(linear(model, of.qkv).in_features, seen, read, of.heads, of.dims)
    return found


def name_of(kind: Kind) -> str:
    """A kind in words, for the table's file."""
    return f"{type(kind).__name__} " + " ".join(f"{key}={value}" for key, value in asdict(kind).items())


def measured(found: Collection[Kind], dense: float, timer: Timer) -> Table:
    """The table of a model's kinds, all measured in turn."""
    every = sorted(set(found), key=name_of)
    sizes = [(kind, size) for kind in every for size in product(*kind.grid)]
    times = timer.pieces([partial(kind.graph, *size) for kind, size in sizes])
    made, at = {}, 0
    for kind in every:
        shape = [len(axis) for axis in kind.grid]
        block = np.array(times[at : at + int(np.prod(shape))], float).reshape(shape)
        at += block.size
        made[name_of(kind)] = _monotone(block)
    return Table(dense, made)


def _monotone(times: np.ndarray) -> np.ndarray:
    """No size takes longer than a larger one: what disturbs a measurement only ever adds to it, so the shorter is right."""
    for axis in range(times.ndim):
        times = np.flip(np.minimum.accumulate(np.flip(times, axis), axis), axis)
    return times


class Latency:
    """Milliseconds of a batch, of which a budget is a share: of the dense model's. What is not of a site is what remains of
    that model's time; its sites are of the kinds `plain`, those of the files that are priced of the kinds `found`."""

    name = "latency"

    def __init__(self, found: dict[str, Kind], plain: dict[str, Kind], table: Table) -> None:
        self.kinds, self.table = found, table
        sites, written = (sum(float(table.kinds[name_of(k)].flat[-1]) for k in of.values()) for of in (plain, found))
        rest = max(table.dense - sites, REST * table.dense)
        self.dense, self.total = sites + rest, written + rest

    def room(self, amount: float) -> float:
        """That share of the dense model's."""
        return amount * self.dense

    def amount(self, price: float) -> float:
        """The price over the dense model's."""
        return price / self.dense

    def attention(self, site: AttentionSite, heads: int, dim: int, queries: int | None = None) -> float:
        """The attention's, between the sizes measured, queries and values of one size."""
        assert queries is None, "time is measured for one size of both"
        kind = self.kinds[site.name]
        by_dim = [float(np.interp(dim, kind.grid[1], row)) for row in self.table.kinds[name_of(kind)]]
        return float(np.interp(heads, kind.grid[0], by_dim))

    def ffn(self, site: FfnSite, sizes: np.ndarray) -> np.ndarray:
        """The FFN's, of as many hidden units as its kernels take at once."""
        kind = self.kinds[site.name]
        rounded = np.minimum(-(-np.asarray(sizes) // STEP) * STEP, site.size)
        return np.interp(rounded, kind.grid[0], self.table.kinds[name_of(kind)])


def spread(sizes: Sequence[int], most: int) -> tuple[int, ...]:
    """At most `most` of ascending sizes, evenly spread, the ends among them."""
    at = np.linspace(0, len(sizes) - 1, min(most, len(sizes))).round().astype(int)
    return tuple(int(sizes[i]) for i in dict.fromkeys(at.tolist()))
