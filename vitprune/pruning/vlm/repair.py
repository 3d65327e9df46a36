"""The last layer of every cut FFN fitted anew over image and text tokens, towards what the dense model writes there.

    affine      from the dense model's own hidden units: one pass, every FFN by itself
    layerwise   the language model block by block, from the slim model's hidden units towards the dense model's stream, so that
                what earlier blocks got wrong is seen; the vision tower as in `affine`, before it

A last layer without a bias gets none, so that transformers loads the result: W = W0 + (Σ t hᵀ − W0 Σ h hᵀ)(Σ h hᵀ + λI)⁻¹ over
hidden units h [k] and targets t [D], with the old weights W0 of the units that stay. λ is a share of the diagonal's median,
that of `RIDGES` which leaves the least error on every fifth sample; first tokens, which are huge, have no say in that choice.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from vitprune.core.device import widened
from vitprune.core.least_squares import RIDGES, SecondMoments, fit
from vitprune.model.inside import hooks
from vitprune.model.sites import ffn
from vitprune.model.sites.ffn import FfnSite
from vitprune.model.vlm import sites as places
from vitprune.model.vlm.tokens import Batch, call
from vitprune.pruning.plan import Plan

How = Literal["none", "affine", "layerwise"]
HELD = 5


class Products:
    """Sums of h hᵀ, t hᵀ and t² in float64, through the origin."""

    def __init__(self) -> None:
        self.gram = self.cross = self.square = torch.zeros((), dtype=torch.float64)

    def add(self, h: Tensor, t: Tensor) -> None:
        """Rows h [R, k] and t [R, D]."""
        self.gram = self.gram.to(h.device) + widened(h.T @ h)
        self.cross = self.cross.to(h.device) + widened(t.T @ h)
        self.square = self.square.to(h.device) + widened(t).square().sum()

    def solve(self, old: Tensor, ridge: float) -> Tensor:
        """The weight [D, k], float64."""
        diagonal = self.gram.diagonal()
        strength = (ridge * diagonal.median()).clamp_min(1e-12 * diagonal.max().clamp_min(1e-30))
        penalised = self.gram + strength * torch.eye(len(diagonal)).to(diagonal)
        return old + torch.linalg.solve(penalised, (self.cross - old @ self.gram).T).T

    def error(self, weight: Tensor) -> float:
        """Σ ‖t − W h‖² over the rows."""
        return float(self.square - 2 * (weight * self.cross).sum() + ((weight @ self.gram) * weight).sum())


@dataclass(slots=True)
class Fit:
    """One last layer's sums: of the samples to fit, of those held out, and of first tokens."""

    train: Products
    held: Products
    first: Products

    @classmethod
    def empty(cls) -> Fit:
        """Nothing summed."""
        return cls(Products(), Products(), Products())

    def add(self, h_BTk: Tensor, t_BTD: Tensor, batch: Batch, start: int) -> None:
        """A batch whose samples have the places from `start` on."""
        held = ((torch.arange(len(h_BTk)) + start) % HELD == HELD - 1).to(h_BTk.device)[:, None]
        real, sink = batch.kinds.real, batch.kinds.sink
        parts = ((self.train, real & ~sink & ~held), (self.held, real & ~sink & held), (self.first, sink))
        for sums, rows in parts:
            sums.add(h_BTk[rows], t_BTD[rows])

    def weight(self, old: Tensor) -> Tensor:
        """The weight that the held-out samples like best, fitted to all."""
        old, every = widened(old), Products()
        known = Products()
        for one in (self.train, self.first):
            known.gram, known.cross = known.gram + one.gram, known.cross + one.cross
        every.gram, every.cross = known.gram + self.held.gram, known.cross + self.held.cross
        ridge = min(RIDGES, key=lambda r: self.held.error(known.solve(old, r))) if self.held.gram.any() else RIDGES[2]
        return every.solve(old, ridge)


def repair(
    dense: nn.Module, slim: nn.Module, plan: Plan, batches: Sequence[Batch], how: How = "layerwise"
) -> list[str]:
    """Mend `slim` (cut from `dense` by `plan`) in place; the names of the FFNs whose last layer was fitted."""
    if how == "none":
        return []
    cut = [name for name, keep in plan.keep.items() if not bool(keep.all())]
    vision = [site for site in places.ffns(dense, "vision") if site.name in cut]
    language = [site for site in places.ffns(dense, "language") if site.name in cut]
    if vision:
        _vision(dense, slim, vision, plan, batches)
    if language and how == "affine":
        _affine(dense, slim, language, plan, batches)
    elif language:
        _layerwise(dense, slim, {site.name for site in language}, batches)
    return [site.name for site in (*vision, *language)]


@torch.no_grad()
def _put(model: nn.Module, path: str, weight: Tensor, bias: Tensor | None = None) -> None:
    layer = ffn.linear(model, path)
    layer.weight.copy_(weight.to(layer.weight))
    if bias is not None:
        layer.bias.copy_(bias.to(layer.bias))


@torch.no_grad()
def _dense_pass(
    dense: nn.Module, sites: Sequence[FfnSite], batches: Iterable[Batch]
) -> Iterable[tuple[Batch, int, dict[int, Tensor]]]:
    """Every batch, the place of its first sample, and the hidden units of every site."""
    start = 0
    for batch in batches:
        hidden: dict[int, Tensor] = {}

        def keep(position: int, x: Tensor, into: dict[int, Tensor] = hidden) -> None:
            into[position] = x

        with hooks.layers(dense, [site.fc2 for site in sites], read=keep):
            call(dense, batch)
        yield batch, start, hidden
        start += len(batch.kinds.real)


def _vision(dense: nn.Module, slim: nn.Module, sites: Sequence[FfnSite], plan: Plan, batches: Sequence[Batch]) -> None:
    """With a bias, so around the means; every fifth batch is held out."""
    sums = [(SecondMoments(), SecondMoments()) for _ in sites]
    for n, (_, _, hidden) in enumerate(_dense_pass(dense, sites, batches)):
        for i, site in enumerate(sites):
            keep = plan.keep[site.name].to(hidden[i].device)
            train, held = sums[i]
            one, origin = (held, train.origin) if n % HELD == HELD - 1 else (train, None)
            one.add(hidden[i][..., keep], ffn.linear(dense, site.fc2)(hidden[i]), origin)
    for site, (train, held) in zip(sites, sums, strict=True):
        _put(slim, site.fc2, *fit(train, held, widened(ffn.linear(slim, site.fc2).weight), None))


def _affine(dense: nn.Module, slim: nn.Module, sites: Sequence[FfnSite], plan: Plan, batches: Sequence[Batch]) -> None:
    fits = [Fit.empty() for _ in sites]
    for batch, start, hidden in _dense_pass(dense, sites, batches):
        for i, site in enumerate(sites):
            keep = plan.keep[site.name].to(hidden[i].device)
            fits[i].add(hidden[i][..., keep], ffn.linear(dense, site.fc2)(hidden[i]), batch, start)
    for site, one in zip(sites, fits, strict=True):
        _put(slim, site.fc2, one.weight(ffn.linear(slim, site.fc2).weight))


@torch.no_grad()
def _layerwise(dense: nn.Module, slim: nn.Module, cut: set[str], batches: Sequence[Batch]) -> None:
    """Streams of both models, block by block. A block writes residual + its FFN's output, so that output's target is the dense
    stream less the slim model's residual."""
    sites = places.ffns(dense, "language")
    blocks = [site.fc2.rsplit(".", 2)[0] for site in sites]
    told, whole, small = [], [], []
    for batch in batches:
        with hooks.keywords_of([dense.get_submodule(path) for path in blocks]) as given:
            whole.append(_first_input(dense, blocks[0], batch))
            call(dense, batch)
        told.append(given)
        small.append(_first_input(slim, blocks[0], batch))
    for n, site in enumerate(sites):
        one, start, kept = Fit.empty(), 0, []
        for b, batch in enumerate(batches):
            whole[b] = dense.get_submodule(blocks[n])(whole[b], **told[b][n])
            seen: list[Tensor] = []

            def look(_: int, x: Tensor, into: list[Tensor] = seen) -> None:
                into.append(x)

            with hooks.layers(slim, [site.fc2], look, look):
                out = slim.get_submodule(blocks[n])(small[b], **told[b][n])
            residual = out - seen[1]
            one.add(seen[0], whole[b] - residual, batch, start)
            kept.append((residual, seen[0], out))
            start += len(out)
        layer = ffn.linear(slim, site.fc2)
        if site.name in cut:
            _put(slim, site.fc2, one.weight(layer.weight))
        small = [r + layer(h) if site.name in cut else out for r, h, out in kept]


def _first_input(model: nn.Module, block: str, batch: Batch) -> Tensor:
    """What a batch's first block of the language model is given."""
    return hooks.input_of(model.get_submodule(block), lambda: call(model, batch))
