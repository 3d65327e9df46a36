"""Two passes over the samples for the types of some sites' units, in memory that does not grow with the samples' tokens.

First pass: every unit's greatest value, its strongest samples, and counts of its values among visual and text tokens. Second
pass: hits of the strongest samples, and every sample's rates. Both halves of the samples are kept apart, so that each gives
types of its own; the whole is their sum. Legend: S samples, T tokens, H units.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from vitprune.model.vlm.tokens import Kinds
from vitprune.see.types import rules
from vitprune.see.types.rules import Evidence, Settings


@dataclass(slots=True)
class First:
    """What the first pass leaves of one site."""

    most: Tensor  # [H], greatest value outside sinks
    sunk: Tensor  # [H], greatest value at sinks
    values: Tensor  # [top, H], of the strongest samples, strongest first
    places: Tensor  # [top, H], which they are
    visual: Tensor  # [H, BINS], counts
    text: Tensor

    @classmethod
    def empty(cls, units: int, device: torch.device) -> First:
        """Of no sample."""
        zero = torch.zeros(units, device=device)
        none = torch.empty(0, units, device=device)
        counts = [torch.zeros(units, rules.BINS, dtype=torch.int32, device=device) for _ in range(2)]
        return cls(zero, zero.clone(), none, none.long(), *counts)

    def add(self, strength_BTH: Tensor, kinds: Kinds, places_B: Tensor, top: int) -> None:
        """A batch of samples, which are at these places; later ones have larger places."""
        if not len(places_B):
            return
        of = lambda tokens: strength_BTH.masked_fill(~tokens[..., None], 0).amax(1)  # noqa: E731
        self.most = torch.maximum(self.most, of(kinds.real & ~kinds.sink).amax(0))
        self.sunk = torch.maximum(self.sunk, of(kinds.sink).amax(0))
        strongest = of(kinds.visual | kinds.text)
        self._rank(torch.cat([self.values, strongest]), places_B, top)
        binned = rules.bins(strength_BTH)
        start = torch.arange(binned.shape[-1], device=binned.device) * rules.BINS
        for counts, tokens in ((self.visual, kinds.visual), (self.text, kinds.text)):
            at = (binned[tokens] + start).flatten()
            counts.view(-1).scatter_add_(0, at, torch.ones_like(at, dtype=torch.int32))

    def _rank(self, values: Tensor, places_B: Tensor, top: int) -> None:
        places = torch.cat([self.places, places_B[:, None].expand(-1, values.shape[1])])
        ordered = values.sort(dim=0, descending=True, stable=True)
        self.values, self.places = ordered.values[:top], places.gather(0, ordered.indices[:top])

    def __add__(self, other: First) -> First:
        """Of both halves, all their strongest samples; where values are equal the lower place comes first."""
        places, values = torch.cat([self.places, other.places]), torch.cat([self.values, other.values])
        by_place = places.sort(0)
        ordered = values.gather(0, by_place.indices).sort(dim=0, descending=True, stable=True)
        return First(
            torch.maximum(self.most, other.most), torch.maximum(self.sunk, other.sunk), ordered.values,
            by_place.values.gather(0, ordered.indices), self.visual + other.visual, self.text + other.text,
        )  # fmt: skip


@dataclass(slots=True)
class Second:
    """What the second pass gathers of one site: types of the strongest samples by two rules, and rates of every sample."""

    first: First
    how: Settings
    cut: Tensor
    counts: Tensor  # [4, H], how many of the strongest samples are of each type
    rates: Tensor
    visual: list[Tensor] = field(default_factory=list)  # [B, H] each
    text: list[Tensor] = field(default_factory=list)
    places: list[Tensor] = field(default_factory=list)

    @classmethod
    def after(cls, first: First, how: Settings) -> Second:
        """Nothing gathered yet."""
        none = torch.zeros(4, len(first.most), device=first.most.device)
        return cls(first, how, rules.cut(first.visual, first.text, how.quantile), none, none.clone())

    def add(self, strength_BTH: Tensor, kinds: Kinds, places_B: Tensor) -> None:
        """A batch of samples."""
        if not len(places_B):
            return
        how, scaled = self.how, rules.scaled(strength_BTH, self.first.most)
        hits = rules.hits(scaled, kinds.visual, how.t_visual), rules.hits(scaled, kinds.text, how.t_text)
        chosen = torch.stack([(self.first.places == place).any(0) for place in places_B])
        tokens = kinds.visual.sum(1), kinds.text.sum(1)
        found = rules.by_counts(*hits, how), rules.by_rates(*hits, tokens, how)
        for total, of_samples in zip((self.counts, self.rates), found, strict=True):
            for kind in range(4):
                total[kind] += ((of_samples == kind) & chosen).sum(0)
        binned = rules.bins(strength_BTH)
        self.places.append(places_B)
        self.visual.append(rules.rate(binned, kinds.visual, self.cut).float())
        self.text.append(rules.rate(binned, kinds.text, self.cut).float())

    def verdict(self, images_S: Tensor) -> Verdict:
        """What the three rules need, without the samples; `images_S`: of every place the number of its image."""
        fires, samples = self.first.most > 0, max(len(self.first.places), 1)
        places = torch.cat(self.places)
        order = places.argsort()  # signs are drawn by place, whatever the batches were
        images = images_S.to(places.device)[places[order]]
        rates = [rules.by_image(torch.cat(one)[order].double(), images) for one in (self.visual, self.text)]
        evidence = Evidence.of(rates[0], rates[1], self.how)
        counted, rated = self.counts.double() / samples, self.rates.double() / samples
        labels = {"counts": rules.prone(counted, fires), "rates": rules.prone(rated, fires)}
        return Verdict(counted, evidence, labels, fires, self.first.sunk > self.first.most)


@dataclass(slots=True)
class Verdict:
    """Of one site's units: shares of types among the strongest samples (counts), the test's evidence, the types by rule, which
    units fire at all, and which have their greatest value at a sink."""

    shares: Tensor
    evidence: Evidence
    labels: dict[str, Tensor]
    fires: Tensor
    at_sink: Tensor
