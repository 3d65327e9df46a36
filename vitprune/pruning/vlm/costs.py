"""Fisher-weighted OBS curves of a vision-language model's FFNs, on the next token of the text; no labels.

As `criteria/statistics/fisher_obs.py`, with g = ∂ Σ_t log p(y_t | what stands before t) / ∂(the FFN's output), summed over the
text's tokens t of a sample and y_t drawn from the model's own prediction there. C and G are over every token that is there,
visual, text or prompt. Costs are in nats per sample, as if its rows were independent: one unit of account for both towers.

The first token of a text is often thousands of times larger than the others in a few units. C's ridge is therefore a share of
the median variance, not of the mean. Legend: B samples, T tokens, N hidden units, D width.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vitprune.core import least_squares
from vitprune.core.device import device_of, wide, widened
from vitprune.core.errors import UserError
from vitprune.core.least_squares import Stream
from vitprune.criteria.curves import Curve
from vitprune.criteria.statistics.elimination import eliminate
from vitprune.criteria.statistics.fisher_obs import root
from vitprune.criteria.statistics.obs import columns
from vitprune.model.inside import hooks
from vitprune.model.sites.ffn import FfnSite
from vitprune.model.vlm import sites as places
from vitprune.model.vlm.tokens import Batch, text_logits


def fisher_obs(model: nn.Module, sites: Sequence[FfnSite], batches: Iterable[Batch], seed: int = 0) -> list[Curve]:
    """The curve of every site: its order of removal and what each costs, in nats per sample."""
    curves = []
    for site, (covariance, fisher, rows) in zip(sites, statistics(model, sites, batches, seed), strict=True):
        order, costs = eliminate(root(fisher) @ columns(model, site), covariance, ridge(covariance), device_of(model))
        curves.append(Curve(order, 0.5 * rows * costs, "nats per image"))
    return curves


def ridge(covariance_NN: Tensor) -> float:
    """The house's ridge as a share of the mean variance, for one that is that share of the median."""
    variance = covariance_NN.diagonal()
    return least_squares.RIDGE * float(variance.median() / variance.mean().clamp_min(1e-30))


def statistics(
    model: nn.Module, sites: Sequence[FfnSite], batches: Iterable[Batch], seed: int
) -> list[tuple[Tensor, Tensor, float]]:
    """Per site C [N, N], G [D, D] in float64, and its rows per sample; one forward and one backward pass a batch.

    Raises UserError naming a vision FFN that no logit depends on, and where a gradient is no number.
    """
    streams, fishers = [Stream() for _ in sites], [torch.zeros(())] * len(sites)
    language = {site.name for site in places.ffns(model, "language")}
    draw, samples = torch.Generator().manual_seed(seed), 0
    for batch in batches:
        samples += len(batch.kinds.real)
        hidden, grads = _pass(model, sites, batch, draw)
        for i, site in enumerate(sites):
            if grads[i] is None:
                raise UserError(f"{site.name}: no logit depends on it (a dead vision block); it is not ranked")
            rows = [x[batch.kinds.real] if site.name in language else x.flatten(0, -2) for x in (hidden[i], grads[i])]
            if not bool(rows[1].isfinite().all()):
                raise UserError(f"{site.name}: gradients are not numbers; check the model's weights and the images")
            streams[i].add(rows[0])
            fishers[i] = fishers[i].to(wide(rows[1].device)) + widened(rows[1].T @ rows[1])
    found = [stream.finish() for stream in streams]
    return [(m.covariance, f.cpu() / m.tokens, m.tokens / samples) for m, f in zip(found, fishers, strict=True)]


def _pass(
    model: nn.Module, sites: Sequence[FfnSite], batch: Batch, draw: torch.Generator
) -> tuple[list[Tensor], list[Any]]:
    """Hidden units of every site, and the gradients at its output."""
    hidden: dict[int, Tensor] = {}
    outputs: dict[int, Tensor] = {}

    def collect(position: int, x: Tensor) -> None:
        hidden[position] = x.detach()

    def keep(position: int, out: Tensor) -> Tensor:
        outputs[position] = out if out.requires_grad else out.detach().requires_grad_()
        return outputs[position]

    paths, every = [site.fc2 for site in sites], range(len(sites))
    with torch.enable_grad(), hooks.layers(model, paths, collect, keep):
        log_p = text_logits(model, batch)[0].log_softmax(-1)
        chance = torch.rand(len(log_p), generator=draw, dtype=torch.float64).to(wide(log_p.device))
        cumulative = widened(log_p.detach()).exp().cumsum(-1)
        drawn = (chance[:, None] * cumulative[:, -1:] >= cumulative).sum(1).clamp_max(log_p.shape[1] - 1)
        loss = log_p.gather(1, drawn.to(log_p.device)[:, None]).sum()
        grads = torch.autograd.grad(loss, [outputs[i] for i in every], allow_unused=True)
    return [hidden[i] for i in every], list(grads)
