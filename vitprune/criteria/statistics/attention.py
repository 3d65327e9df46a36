"""What a removal in attention costs the prediction is worked out from these: second moments of attentions, and of FFNs in
the same pass; no labels.

Per attention, with a what `proj` reads and g = ∂ log p(ŷ)/∂(proj's output, before LayerScale), ŷ drawn from the model's own
prediction as in `fisher_obs`: the centred covariance of a, G = E[g gᵀ], and per head the second moment of the queries (bias
included) and the covariance of the keys around their mean in each image, for softmax ignores what all keys of an image share.
In the last block a and the queries count at the tokens that the head reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitprune.core.device import device_of
from vitprune.core.least_squares import Stream
from vitprune.criteria.sampling import draw
from vitprune.criteria.signatures import Batches
from vitprune.model import families
from vitprune.model.inside import hooks, pieces
from vitprune.model.inside.pieces import STATISTICS
from vitprune.model.sites import attention_layers as layers
from vitprune.model.sites.attention import AttentionSite
from vitprune.model.sites.ffn import FfnSite
from vitprune.model.tokens import tokens_read


@dataclass(frozen=True, slots=True)
class FfnMoments:
    """Of one FFN, float64: C [N, N] of the hidden units, G [D, D] at fc2's output, tokens T of an image."""

    covariance: Tensor
    fisher: Tensor
    tokens: int


@dataclass(frozen=True, slots=True)
class AttentionMoments:
    """Of one attention, float64: C [H·d, H·d] of what proj reads, G [D, D] at its output, queries' second moment and keys'
    covariance [H, d, d], tokens T of an image and how many of them count."""

    covariance: Tensor
    fisher: Tensor
    queries: Tensor
    keys: Tensor
    tokens: int
    read: int


class _Sum:
    """A mean of second moments [..., n, n], taken part by part."""

    def __init__(self) -> None:
        self.total: Tensor | None = None
        self.rows = 0

    def add(self, x: Tensor) -> None:
        """Rows [..., rows, n]."""
        made = (x.mT @ x).double()
        self.total = made if self.total is None else self.total + made
        self.rows += x.shape[-2]

    def mean(self) -> Tensor:
        """The second moment, on the CPU."""
        assert self.total is not None, "no images were given"
        return (self.total / self.rows).cpu()


def split_heads(site: AttentionSite, qkv_BTN: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values [B, H, T, d] from what qkv gives; their dimensions are of one number."""
    q, k, v = qkv_BTN.unflatten(-1, (3, site.heads, site.dim)).permute(2, 0, 3, 1, 4)
    return q, k, v


@contextmanager
def asked(model: nn.Module, sites: Sequence[AttentionSite], give: Callable[[int, Tensor], None]) -> Iterator[None]:
    """Call `give(position in sites, queries, keys and values [B, T, 3·H·d])` on every forward: what `qkv` gives where it is
    called, elsewhere what its weights give of what the attention reads."""
    called = {i: layers.calls_qkv(model.get_submodule(site.path)) for i, site in enumerate(sites)}
    direct, others = [i for i in called if called[i]], [i for i in called if not called[i]]

    def read(position: int, x: Tensor) -> None:
        rows = layers.rows(model.get_submodule(sites[others[position]].path))
        give(others[position], F.linear(x.detach(), rows[:, :-1], rows[:, -1]))

    def written(position: int, x: Tensor) -> None:
        give(direct[position], x)

    with (
        hooks.layers(model, [sites[i].qkv for i in direct], written=written),
        hooks.layers(model, [sites[i].path for i in others], read),
    ):
        yield


class _Gathered:
    """The sums of all layers: first the FFNs', then the attentions'."""

    def __init__(self, model: nn.Module, ffns: Sequence[FfnSite], attentions: Sequence[AttentionSite]) -> None:
        self.attentions, self.first = attentions, len(ffns)
        self.paths = [site.fc2 for site in ffns] + [site.proj for site in attentions]
        self.blocks = [site.block for site in ffns] + [site.block for site in attentions]
        self.asking = [site for site in attentions if site.query_keys]
        self.read, self.last = tokens_read(model), families.ffn_sites(model)[-1].block
        self.inputs, self.fishers = [Stream() for _ in self.paths], [_Sum() for _ in self.paths]
        self.queries, self.keys = [_Sum() for _ in self.asking], [_Sum() for _ in self.asking]
        self.tokens, self.counted = [0] * len(self.paths), [0] * len(self.paths)

    def add(self, found: list[list[Tensor]]) -> None:
        """What `_one_pass` gave for a batch, in pieces; it is used up."""
        for position, stream in enumerate(self.inputs):
            x = pieces.first_of(found)
            self.counted[position] = x.shape[1]
            stream.add(x)
        for position, fisher in enumerate(self.fishers):
            grad = pieces.first_of(found)
            self.tokens[position] = grad.shape[1]
            fisher.add(grad.flatten(0, 1))
        for position, site in enumerate(self.asking):
            q, k, _ = split_heads(site, pieces.first_of(found))
            asked = q[:, :, self.read] if site.block == self.last else q
            self.queries[position].add(asked.transpose(0, 1).flatten(1, 2))
            self.keys[position].add((k - k.mean(2, keepdim=True)).transpose(0, 1).flatten(1, 2))

    def finish(self) -> tuple[list[FfnMoments], list[AttentionMoments]]:
        """The moments."""
        covariances = [stream.finish().covariance for stream in self.inputs]
        means = [fisher.mean() for fisher in self.fishers]
        of_ffns = [FfnMoments(covariances[i], means[i], self.tokens[i]) for i in range(self.first)]
        of_attentions = []
        asking = iter(zip(self.queries, self.keys, strict=True))
        for i, site in enumerate(self.attentions):
            n = self.first + i
            whole = torch.eye(site.queries or site.dim, dtype=torch.float64).expand(site.heads, -1, -1)
            queries, keys = (side.mean() for side in next(asking)) if site.query_keys else (whole, whole)
            found = AttentionMoments(covariances[n], means[n], queries, keys, self.tokens[n], self.counted[n])
            of_attentions.append(found)
        return of_ffns, of_attentions


def statistics(
    model: nn.Module, ffns: Sequence[FfnSite], attentions: Sequence[AttentionSite], batches: Batches, seed: int
) -> tuple[list[FfnMoments], list[AttentionMoments]]:
    """The moments of every FFN and every attention, from one forward and one backward per image."""
    among = torch.cat([labels.unique() for _, labels in batches()]).unique()
    device, footprint = device_of(model), pieces.footprint(model, ffns)
    gathered = _Gathered(model, ffns, attentions)
    for images, _ in batches():
        work = partial(_one_pass, model, gathered, images, among, seed)
        gathered.add(pieces.taken(len(images), work, STATISTICS, pieces.room(footprint, device), device))
    return gathered.finish()


def _one_pass(model: nn.Module, of: _Gathered, images: Tensor, among: Tensor, seed: int, rows: slice) -> list[Tensor]:
    """What every layer reads, the gradients at their outputs, what every qkv gives, for some rows of a batch."""
    seen: dict[int, Tensor] = {}
    outputs: dict[int, Tensor] = {}
    made: dict[int, Tensor] = {}

    def reads(position: int, x: Tensor) -> None:
        seen[position] = (x[:, of.read] if of.blocks[position] == of.last else x).detach()

    def keep(position: int, x: Tensor) -> Tensor:
        outputs[position] = x if x.requires_grad else x.requires_grad_()
        return outputs[position]

    def give(position: int, x: Tensor) -> None:
        made[position] = x.detach()

    with torch.enable_grad(), hooks.layers(model, of.paths, reads, keep), asked(model, of.asking, give):
        log_p = model(images[rows])[:, among].log_softmax(-1)
        drawn = draw(log_p.detach().double().softmax(-1), images[rows], seed)
        every = range(len(of.paths))
        grads = torch.autograd.grad(log_p.gather(1, drawn[:, None]).sum(), [outputs[i] for i in every])
    return [seen[i] for i in every] + list(grads) + [made[i] for i in range(len(of.asking))]
