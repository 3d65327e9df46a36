"""What the steps of a road will take, from a few passes that are timed and the arithmetic of the rest."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from vitprune.api.vlm.recipe import VlmRecipe
from vitprune.core.device import device_of
from vitprune.core.least_squares import RIDGES
from vitprune.core.reading import Json
from vitprune.model.sites.ffn import FfnSite, linear
from vitprune.model.vlm import sites, tokens
from vitprune.model.vlm.tokens import Batch, Sample
from vitprune.runs.costs import formulas, telling
from vitprune.see.types import typing

TIMED = 4  # samples of a pass that is timed
BACKWARD = 3.0  # passes that a gradient comes to with its own
ALONG = 3.0  # passes of a repair block by block: dense, dense again, slim
WAYS = 2.6  # passes of a pair's exam: right, shuffled, and two without an image's tokens
PRODUCT = 768  # rows of the product whose pace is measured


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds of a sample's pass, of the types of one unit by one sample, of a multiplication in float64; tokens of a
    sample."""

    forward: float
    typed: float
    multiply: float
    tokens: float


def pace(model: nn.Module, samples: Sequence[Sample]) -> Pace:
    """Measured now, on the model's device."""
    some, config, device = list(samples[:TIMED]), getattr(model, "config", None), device_of(model)
    batches = [batch.to(device) for _, batch in tokens.batches(some, config, TIMED)]
    with torch.no_grad():
        tokens.call(model, batches[0])
        forward = _timed(lambda: [tokens.call(model, batch) for batch in batches], device) / len(some)
    typed = _typed(model, some, batches, forward, device)
    a = torch.rand(PRODUCT, PRODUCT, dtype=torch.float64, device="cpu")
    product = _timed(lambda: a @ a, torch.device("cpu"))
    length = sum(float(batch.kinds.real.sum()) for batch in batches) / len(some)
    return Pace(forward, typed, product / PRODUCT**3, length)


def _typed(model: nn.Module, some: list[Sample], batches: list[Batch], forward: float, device: torch.device) -> float:
    site = sites.ffns(model, "language")[0]
    four = (some * typing.LEAST)[: typing.LEAST]
    took = _timed(lambda: typing.types_of(model, [site], four, batch=len(four)), device)
    return max(0.0, took - 2 * forward * len(four)) / (len(four) * site.size)


def _timed(work: Callable[[], object], device: torch.device) -> float:
    began = time.monotonic()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.monotonic() - began


def types(at: Pace, every: Sequence[FfnSite], samples: int, memory: int) -> float:
    """Two passes for as many sites as fit, and what every unit's types take."""
    return 2 * len(typing.portions(every, memory)) * samples * at.forward + samples * at.typed * sum(
        s.size for s in every
    )


def costs(model: nn.Module, at: Pace, every: Sequence[FfnSite], samples: int) -> float:
    """A pass and back, sums of what units do together, and the order of their removal."""
    total = samples * at.forward * BACKWARD
    for site in every:
        width = linear(model, site.fc2).out_features
        sums = samples * at.tokens * (site.size**2 + width**2)
        total += at.multiply * (sums + formulas.elimination(site.size, width) / 2 + formulas.EIGEN * width**3 / 2)
    return total


def repair(model: nn.Module, at: Pace, cut: Sequence[FfnSite], samples: int, share: float, how: str) -> float:
    """Passes of both models, sums, and a solution for each ridge."""
    if how == "none":
        return 0.0
    total = samples * at.forward * (ALONG if how == "layerwise" else 1.0)
    for site in cut:
        width, left = linear(model, site.fc2).out_features, share * site.size
        sums = samples * at.tokens * left * (left + width)
        total += at.multiply * (sums + (len(RIDGES) + 1) * (left**3 / 3 + 2 * left**2 * width))
    return total


def exam(at: Pace, pairs: int) -> float:
    """Every pair in each of the ways."""
    return pairs * at.forward * WAYS


def line(left: dict[str, float]) -> str:
    """The estimate in words, the longest step first."""
    total = sum(left.values())
    if not left:
        return "cost: every step is done"
    named = sorted(left.items(), key=lambda one: -one[1])
    some = ", ".join(f"{name} {telling.duration(took)}" for name, took in named if took >= 0.05 * total)
    return f"cost: about {telling.duration(total)} on this machine ({some})"


def told(left: dict[str, float]) -> Json:
    """The estimate for JSON."""
    return {"seconds": round(sum(left.values()), 1), "steps": {name: round(took, 1) for name, took in left.items()}}


def estimate(
    model: nn.Module, at: Pace, recipe: VlmRecipe, pruned: Sequence[FfnSite], pairs: Sequence[int]
) -> dict[str, float]:
    """Seconds of every step that the recipe may have; `pruned`: the sites that are cut, `pairs`: to choose with, and of the
    exam. What a server is waited for is not in it."""
    samples, language = pairs[0], sites.ffns(model, "language")
    kept = recipe.keep_types or {}
    share = recipe.keep if recipe.keep is not None else sum(kept.values()) / max(1, len(kept))
    mended = repair(model, at, pruned, samples, share, recipe.recovery) + exam(at, pairs[1])
    found = {
        "types": types(at, language, samples, typing.MEMORY), "units": samples * at.forward, "exam-dense": exam(at, pairs[1]),
        "costs": costs(model, at, pruned, samples), "pruned": mended,
    }  # fmt: skip
    return found | {f"control-{n}": mended for n in range(recipe.controls)}
