"""Fisher-weighted OBS curves: what a removal costs the prediction, after the best linear repair; no labels.

Per block, with C the centred covariance of the hidden units over all tokens and G = E[g gᵀ] over images and tokens of
g = ∂ log p(ŷ)/∂(fc2's output, before LayerScale), ŷ drawn from the model's own prediction:

    W̃ = G^½ W2;   remove the unit with the least ‖W̃_j‖² / [C⁻¹]_jj, update W̃ and C⁻¹ (Schur), again (as `obs`)

The cost of a removal is ½·T times that in nats per image, if the T tokens were independent: one unit of account for all
blocks, so their curves can be merged (`allocation: global` or `budgeted`). The prediction is taken among the classes of
the images that are given: for a class set C and G are those of its images, and ŷ is one of its classes.

Of a backbone g = ∂(u·f)/∂(the same), u drawn (`sampling.objective`), and the cost is half the expected squared error of its
output, the image's vector and its rows weighed as `backbone.Output` says.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from vitprune.core.device import device_of, exact, products, wide
from vitprune.core.least_squares import SAME, Sums
from vitprune.criteria.curves import Curve
from vitprune.criteria.sampling import objective
from vitprune.criteria.settings import Seeded
from vitprune.criteria.signatures import Batches
from vitprune.criteria.statistics.elimination import eliminate
from vitprune.criteria.statistics.obs import columns
from vitprune.model import families
from vitprune.model.inside import hooks, moments, pieces
from vitprune.model.inside.pieces import STATISTICS
from vitprune.model.sites.ffn import FfnSite
from vitprune.model.tokens import tokens_read


def fisher_obs(model: nn.Module, sites: Sequence[FfnSite], batches: Batches, *, how: Seeded) -> list[Curve]:
    """Per block the order of removal and its costs, in nats per image."""
    return from_sums(model, sites, sums(model, sites, batches, classes=classes_of(batches), how=how), how=how)


def from_sums(model: nn.Module, sites: Sequence[FfnSite], found: Sums, *, how: Seeded) -> list[Curve]:
    """The curves from what `sums` gave, or from that of several parts added up."""
    return curves_of(model, sites, zip(*of_sums(found, sites), strict=True))


def curves_of(model: nn.Module, sites: Sequence[FfnSite], moments: Iterable[tuple[Tensor, Tensor, int]]) -> list[Curve]:
    """The curve of every FFN, from C, G and T of each (see `statistics`)."""
    curves = []
    for site, (covariance, fisher, count) in zip(sites, moments, strict=True):
        order, costs = eliminate(root(fisher) @ columns(model, site), covariance, device=device_of(model))
        curves.append(Curve(order, 0.5 * count * costs, "nats per image"))
    return curves


def statistics(
    model: nn.Module, sites: Sequence[FfnSite], batches: Batches, seed: int
) -> tuple[list[Tensor], list[Tensor], list[int]]:
    """Per block C [N, N] and G [D, D] in float64, and the tokens T; one forward and one backward per image.

    In the last block C is over the tokens that the head reads and G over all of them: the gradient at the others is 0.
    """
    return of_sums(sums(model, sites, batches, classes=classes_of(batches), how=Seeded(seed)), sites)


def classes_of(batches: Batches) -> list[int]:
    """The classes of the images, in order."""
    found: list[int] = torch.cat([labels.unique() for _, labels in batches()]).unique().tolist()
    return found


def of_sums(found: Sums, sites: Sequence[FfnSite]) -> tuple[list[Tensor], list[Tensor], list[int]]:
    """`statistics` from sums."""
    every = range(len(sites))
    fishers = [found[f"fisher.{i}"] / int(found[f"rows.{i}"]) for i in every]
    covariances = [stat.covariance for stat in moments.of_sums(found, sites)]
    return covariances, fishers, [int(found[f"{SAME}tokens.{i}"]) for i in every]


def sums(
    model: nn.Module,
    sites: Sequence[FfnSite],
    batches: Batches,
    *,
    classes: Sequence[int],
    how: Seeded,
    first: Sums | None = None,
) -> Sums:
    """What the statistics are made of, summed over batches; predictions are taken among `classes`."""
    among = torch.tensor(classes, device=device_of(model))
    streams = moments.streams_of(sites, first)
    fishers: list[Tensor] = []
    tokens, rows = [0] * len(sites), [0] * len(sites)
    read, last = tokens_read(model), families.ffn_sites(model)[-1].block
    device, footprint = device_of(model), pieces.footprint(model, sites)

    def of(images: Tensor) -> list[Tensor]:
        """Every block's hidden units, then every block's gradients."""
        hidden: dict[int, Tensor] = {}
        outputs: dict[int, Tensor] = {}

        def collect(position: int, hidden_BTN: Tensor) -> None:
            hidden[position] = (hidden_BTN[:, read] if sites[position].block == last else hidden_BTN).detach()

        def keep(position: int, out_BTD: Tensor) -> Tensor:
            outputs[position] = out_BTD if out_BTD.requires_grad else out_BTD.requires_grad_()
            return outputs[position]

        with torch.enable_grad(), hooks.hidden_units(model, sites, collect), hooks.ffn_outputs(model, sites, keep):
            every, total = range(len(sites)), objective(model, images, among, how.seed)
            grads = torch.autograd.grad(total, [outputs[i] for i in every])
        return [hidden[i] for i in every] + list(grads)

    for images, _ in batches():
        fits = pieces.room(footprint, device)
        made = pieces.taken(len(images), lambda rows, x=images: of(x[rows]), STATISTICS, fits, device)  # type: ignore[misc]
        for stream in streams:
            stream.add(pieces.first_of(made))
        for position in range(len(sites)):
            grad = pieces.first_of(made)
            flat = exact(grad).reshape(-1, grad.shape[-1])
            if len(fishers) <= position:
                fishers.append(torch.zeros(flat.shape[1], flat.shape[1], dtype=torch.float64, device=wide(flat.device)))
            with products("float32", flat.device):
                fishers[position] += (flat.T @ flat).to(fishers[position].device)
            rows[position] += len(flat)
            tokens[position] = grad.shape[1]
    found = moments.sums_of(streams)
    for i in range(len(sites)):
        found |= {f"fisher.{i}": fishers[i].cpu(), f"rows.{i}": torch.tensor([rows[i]])}
        found[f"{SAME}tokens.{i}"] = torch.tensor([tokens[i]])
    return found


def root(matrix: Tensor) -> Tensor:
    """The symmetric square root of a positive semidefinite matrix [D, D]."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T
