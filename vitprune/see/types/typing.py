"""The types of every language unit of a vision-language model, by three rules, with what halves of the samples say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vitprune.core.device import device_of
from vitprune.core.errors import UserError
from vitprune.model.sites.ffn import FfnSite
from vitprune.model.vlm import tokens
from vitprune.model.vlm.tokens import Batch, Kinds, Sample
from vitprune.see.types import reading, rules
from vitprune.see.types.counting import First, Second, Verdict
from vitprune.see.types.reading import Of
from vitprune.see.types.rules import Settings

MEMORY = 1 << 30  # bytes of counts that are held at once
LEAST = 4  # images: two a half


@dataclass(frozen=True, slots=True)
class Types:
    """Of every site by name: what the samples say, and by rule the types of all samples and of each half.

    `stability` by rule: the share of units to which both halves give one type.
    """

    verdicts: dict[str, Verdict]
    labels: dict[str, dict[str, Tensor]]
    halves: tuple[dict[str, dict[str, Tensor]], dict[str, dict[str, Tensor]]]
    samples: int

    def stability(self, rule: str) -> float:
        """The share of all units to which both halves give the same type."""
        one, other = (torch.cat(list(half[rule].values())) for half in self.halves)
        return float((one == other).double().mean())

    def shares(self, rule: str) -> dict[str, list[float]]:
        """By site the shares of its units that are of each of TYPES."""
        return {
            name: [float((types == k).double().mean()) for k in range(4)] for name, types in self.labels[rule].items()
        }


def types_of(
    model: nn.Module,
    sites: Sequence[FfnSite],
    samples: Sequence[Sample],
    *,
    how: Settings | None = None,
    of: Of = "gate",
    batch: int = 16,
    memory: int = MEMORY,
    progress: Callable[[str], None] = lambda line: None,
    images: Sequence[int] | None = None,
) -> Types:
    """The types of the units of `sites`, in two passes over the samples for as many sites as `memory` bytes hold at once.

    `images`: of every sample the number of its image (each its own by default); the test counts images, and samples of one
    image are in one half. Raises UserError for samples of fewer than four images, and for ones without visual or without
    text tokens.
    """
    how = how or Settings()
    known, image_of = torch.tensor(list(images or range(len(samples)))).unique(return_inverse=True)
    if (count := len(known)) < LEAST:
        raise UserError(
            f"types: pairs of {count} images; at least {LEAST} are needed, and a hundred for types to mean something"
        )
    order = torch.randperm(count, generator=torch.Generator().manual_seed(how.seed))
    half_of = torch.zeros(count, dtype=torch.long)
    half_of[order[count // 2 :]] = 1
    sides = Sides(image_of, half_of[image_of])
    verdicts: list[dict[str, Verdict]] = [{}, {}, {}]  # of the whole, and of each half
    for some in portions(sites, memory):
        progress(f"types: {some[0].name} to {some[-1].name}")
        for views, found in zip(verdicts, _portion(model, some, samples, how, of, batch, sides), strict=True):
            views |= found
    every = [_labels(views, how) for views in verdicts]
    return Types(verdicts[0], every[0], (every[1], every[2]), len(samples))


@dataclass(frozen=True, slots=True)
class Sides:
    """Of every sample the number of its image, and the half (0, 1) that it is in."""

    image_of: Tensor
    half_of: Tensor


def portions(sites: Sequence[FfnSite], memory: int) -> list[list[FfnSite]]:
    """The sites in order, as many at once as their counts (two modalities, two halves and their sum) fit."""
    made: list[list[FfnSite]] = []
    room = 0
    for site in sites:
        need = site.size * rules.BINS * 4 * 6
        if not made or need > room:
            made.append([])
            room = memory
        made[-1].append(site)
        room -= need
    return made


def _portion(
    model: nn.Module,
    sites: list[FfnSite],
    samples: Sequence[Sample],
    how: Settings,
    of: Of,
    batch: int,
    sides: Sides,
) -> list[dict[str, Verdict]]:
    device, config = device_of(model), getattr(model, "config", None)

    def passes(use: Callable[[int, int, Tensor, Kinds, Tensor], None]) -> None:
        """`use(position, half, strengths, kinds, places)` for every site and half of every batch."""
        for places, made in tokens.batches(samples, config, batch):
            one = made.to(device)
            _both(one)
            read, at = reading.strength(model, sites, one, of), torch.arange(places.start, places.stop)
            for half in (0, 1):
                rows = (sides.half_of[at] == half).nonzero().flatten()
                chosen = rows.to(device)
                part = Kinds(*(getattr(one.kinds, name)[chosen] for name in ("visual", "text", "sink", "real")))
                for position, values in enumerate(read):
                    use(position, half, values[chosen], part, at[rows].to(device))

    firsts = [[First.empty(site.size, device) for site in sites] for _ in (0, 1)]
    passes(lambda i, half, values, kinds, at: firsts[half][i].add(values, kinds, at, how.top))
    whole = [_top(one + other, how.top) for one, other in zip(*firsts, strict=True)]
    views = [[Second.after(first, how) for first in every] for every in (whole, *firsts)]

    def second(i: int, half: int, values: Tensor, kinds: Kinds, at: Tensor) -> None:
        for view in (0, 1 + half):
            views[view][i].add(values, kinds, at)

    passes(second)
    return [
        {site.name: made.verdict(sides.image_of) for site, made in zip(sites, every, strict=True)} for every in views
    ]


def _top(first: First, top: int) -> First:
    first.values, first.places = first.values[:top], first.places[:top]
    return first


def _both(batch: Batch) -> None:
    for name in ("visual", "text"):
        if not bool(getattr(batch.kinds, name).any(1).all()):
            raise UserError(f"types: a pair has no {name} token, so its units cannot be told apart")


def _labels(verdicts: dict[str, Verdict], how: Settings) -> dict[str, dict[str, Tensor]]:
    """By rule and site the types; the test's preferences stand or fall among all units together."""
    stands = rules.significant(torch.cat([one.evidence.p for one in verdicts.values()]), how.q)
    parts = stands.split([len(one.fires) for one in verdicts.values()])
    tested = {
        name: one.evidence.labels(part, how).cpu() for (name, one), part in zip(verdicts.items(), parts, strict=True)
    }
    return {"test": tested} | {
        r: {name: one.labels[r].cpu() for name, one in verdicts.items()} for r in ("counts", "rates")
    }
