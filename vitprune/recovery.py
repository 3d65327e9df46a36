"""Repair of a model whose units are gone, from images of the probe split; labels play no part.

`sequential` and `layerwise` go block by block (vitprune/sequential.py); `+distill` adds a short training by the dense
model (vitprune/distill.py). `mean` and `affine` need only the hidden units of the dense model: with S the kept and P the
pruned units, μ and C the mean and centred covariance of a block's hidden units over all tokens of all probe images (in
the last block over the tokens that the head reads: what its FFN does to the others is never seen; on a fold of the probe
split leaving them out was worth 0 to 0.9 points), W2 = fc2.weight and b2 = fc2.bias:

    mean     b2 += W2_P μ_P
    affine   B = C_PS (C_SS + λI)⁻¹;   W2_S += W2_P B;   b2 += W2_P (μ_P − B μ_S)      λ = ridge · mean diag C_SS

Affine is the ridge regression of the pruned units on the kept ones; the centring is what makes it work.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from vitprune import distill, ffn, hooks, models, pieces, sequential
from vitprune.errors import UserError
from vitprune.least_squares import SecondMoments
from vitprune.types import FfnSite, Mask, Recovery

RECOVERIES: tuple[Recovery, ...] = get_args(Recovery)
RIDGE = 1e-3
DISTILL_EPOCHS = 3
ADVICE = "statistics: not enough memory for a single image; free some, or take a device with more"


def chosen(asked: Recovery | Literal["auto"], model: nn.Module) -> Recovery:
    """The repair; `auto` is layerwise where the blocks come in halves, affine elsewhere."""
    if asked != "auto":
        return asked
    return "affine" if models.halves(model) is None else "layerwise"


def closed_form(recovery: str) -> str:
    """The part that is solved: none, mean, affine, sequential or layerwise."""
    return "none" if recovery == "distill" else recovery.removesuffix("+distill")


def needs_moments(recovery: str) -> bool:
    """Whether it is computed from the dense model's moments."""
    return closed_form(recovery) in ("mean", "affine")


def needs_images(recovery: str) -> bool:
    """Whether it runs images through the pruned model."""
    return recovery != "none" and (recovery.endswith("distill") or not needs_moments(recovery))


@dataclass(frozen=True, slots=True)
class Moments:
    """Mean [n] and centred covariance [n, n] of one block's hidden units, float64; `tokens` is how many were seen."""

    mean: Tensor
    covariance: Tensor
    tokens: int


class Stream:
    """Sums of a block's hidden units around the first batch's mean, so that float32 products lose nothing that counts."""

    def __init__(self) -> None:
        self.origin: Tensor | None = None
        self.total: Tensor | None = None
        self.gram: Tensor | None = None
        self.tokens = 0

    def add(self, hidden_BTN: Tensor) -> None:
        rows = hidden_BTN.reshape(-1, hidden_BTN.shape[-1])
        if self.origin is None or self.total is None or self.gram is None:
            self.origin = rows.double().mean(0).to(rows)
            self.total = torch.zeros_like(self.origin, dtype=torch.float64)
            self.gram = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64, device=rows.device)
        rows = rows - self.origin
        self.total += rows.sum(0, dtype=torch.float64)
        for chunk in rows.split(8192):
            self.gram += chunk.T @ chunk
        self.tokens += len(rows)

    def finish(self) -> Moments:
        if self.origin is None or self.total is None or self.gram is None:
            raise ValueError("no images were given")
        shift = self.total / self.tokens
        covariance = self.gram / self.tokens - shift[:, None] * shift
        return Moments((self.origin.double() + shift).cpu(), covariance.cpu(), self.tokens)


@torch.no_grad()
def moments(model: nn.Module, sites: Sequence[FfnSite], batches: Iterable[Tensor]) -> list[Moments]:
    """Hidden-unit moments of every block over batches of images [B, C, H, W]; memory does not grow with their number."""
    streams = [Stream() for _ in sites]
    read, last = models.tokens_read(model), models.ffn_sites(model)[-1].block
    device, footprint = models.device_of(model), pieces.footprint(model, sites)

    def hidden_of(images: Tensor) -> list[Tensor]:
        seen: dict[int, Tensor] = {}

        def collect(position: int, hidden_BTN: Tensor) -> None:
            seen[position] = hidden_BTN[:, read] if sites[position].block == last else hidden_BTN

        with hooks.hidden_units(model, sites, collect):
            model(images.to(device))
        return [seen[position] for position in range(len(sites))]

    for images in batches:
        fits = pieces.room(footprint, device)
        found = pieces.taken(len(images), lambda rows, x=images: hidden_of(x[rows]), ADVICE, fits, device)  # type: ignore[misc]
        for stream in streams:
            stream.add(pieces.first_of(found))
    return [stream.finish() for stream in streams]


@torch.no_grad()
def repair(
    slim: nn.Module,
    dense: nn.Module,
    mask: Mask,
    recovery: Recovery,
    *,
    stats: Sequence[Moments] = (),
    batches: Callable[[], Iterable[Tensor]] | None = None,
    ridge: float | None = None,
    epochs: int = DISTILL_EPOCHS,
    track: sequential.Track = iter,
    kept: sequential.Kept | None = None,
    scratch: Path | None = None,
) -> None:
    """Repair `slim` in place. `stats` are the dense model's moments (mean, affine), `batches` gives images [B, C, H, W]
    (the others). `ridge` None: 1e-3 for affine, chosen per layer on a fifth of the images by those that go block by block.
    `kept`: the dense streams of an earlier repair from the same batches, or to be filled. `scratch`: a folder for what does
    not fit into memory, that of temporary files if None; nothing is left there, however this process ends.

    Raises UserError where the recovery needs images and there are none.
    """
    if needs_images(recovery) and batches is None:
        raise UserError(f"recovery `{recovery}`: needs images; pass some or take recovery: none")
    if all(bool(keep.all()) for keep in mask.blocks):
        return  # nothing is gone, so nothing is repaired: every weight stays to the bit
    solved = closed_form(recovery)
    if solved != "none":
        ffn.add_biases(slim, models.ffn_sites(slim))
    if solved in ("mean", "affine"):
        strength = RIDGE if ridge is None else ridge
        _refit_all(slim, dense, mask, stats, solved, strength)
        normed = [site for site in models.ffn_sites(dense) if site.norm is not None]
        if normed and batches is None:
            raise UserError(f"recovery `{recovery}`: {normed[0].norm} sees the kept units only; images are needed")
        if batches is not None:
            _refit_normed(slim, dense, mask, batches(), solved, strength)
    elif solved != "none":
        assert batches is not None
        layers = solved == "layerwise"
        sequential.repair(
            slim, dense, batches(), attention=layers, ridge=ridge, track=track, kept=kept, scratch=scratch
        )
    if recovery.endswith("distill"):
        assert batches is not None
        distill.distill(slim, dense, batches, epochs=epochs)


def _refit_all(
    slim: nn.Module, dense: nn.Module, mask: Mask, stats: Sequence[Moments], recovery: str, ridge: float
) -> None:
    for site, keep, stat in zip(models.ffn_sites(dense), mask.blocks, stats, strict=True):
        if bool(keep.all()) or site.norm is not None:
            continue
        fc2, original = slim.get_submodule(site.fc2), dense.get_submodule(site.fc2)
        assert isinstance(fc2, nn.Linear) and isinstance(original, nn.Linear)
        before = original.weight.double().cpu(), ffn.bias_of(original).double().cpu()
        weight, bias = refit(*before, keep, stat, recovery, ridge)
        fc2.weight.copy_(weight)
        fc2.bias.copy_(bias)


def _refit_normed(
    slim: nn.Module, dense: nn.Module, mask: Mask, batches: Iterable[Tensor], recovery: str, ridge: float
) -> None:
    """Where a norm stands in front of fc2, the kept units are not what they were once the others are gone: the same
    regression, of W2·h of the dense model on the kept units h_S as their own norm gives them."""
    sites = models.ffn_sites(dense)
    chosen = [i for i, site in enumerate(sites) if site.norm is not None and not bool(mask.blocks[i].all())]
    if not chosen:
        return
    read, last, device = models.tokens_read(dense), sites[-1].block, models.device_of(dense)
    moments = {i: SecondMoments() for i in chosen}
    with contextlib.ExitStack() as stack:
        products = {i: stack.enter_context(hooks.inputs_of(dense.get_submodule(str(sites[i].norm)))) for i in chosen}
        written = {i: stack.enter_context(hooks.outputs_of(dense.get_submodule(sites[i].fc2))) for i in chosen}
        for images in batches:
            dense(images.to(device))
            for i in chosen:
                tokens = read if sites[i].block == last else slice(None)
                product, target = products[i].pop()[:, tokens], written[i].pop()[:, tokens]
                norm = slim.get_submodule(str(sites[i].norm))
                moments[i].add(norm(product[..., mask.blocks[i].to(device)]), target)
    for i in chosen:
        fc2 = ffn.linear(slim, sites[i].fc2)
        if recovery == "mean":
            weight, bias = fc2.weight.double(), moments[i].shift(fc2.weight.double())
        else:
            weight, bias = moments[i].solve(fc2.weight.double(), ridge)
        fc2.weight.copy_(weight)
        fc2.bias.copy_(bias)


def refit(
    weight: Tensor, bias: Tensor, keep: Tensor, stat: Moments, recovery: str, ridge: float
) -> tuple[Tensor, Tensor]:
    """New fc2 weight [D, kept] and bias [D], float64, from the dense ones [D, n] and [D]."""
    kept, gone = keep.nonzero().flatten(), (~keep).nonzero().flatten()
    weight_S, weight_P = weight[:, kept], weight[:, gone]
    if recovery == "none":
        return weight_S, bias
    if recovery == "mean":
        return weight_S, bias + weight_P @ stat.mean[gone]
    C_SS, C_SP = stat.covariance[kept][:, kept], stat.covariance[kept][:, gone]
    strength = ridge * C_SS.diagonal().mean().clamp_min(1e-30)
    B = torch.linalg.solve(C_SS + strength * torch.eye(len(kept), dtype=C_SS.dtype), C_SP).T
    return weight_S + weight_P @ B, bias + weight_P @ (stat.mean[gone] - B @ stat.mean[kept])
