"""What a removal in attention costs the prediction is worked out from these: second moments of attentions, and of FFNs in
the same pass; no labels.

Per attention, with a what `proj` reads and g = ∂ log p(ŷ)/∂(proj's output, before LayerScale), ŷ drawn from the model's own
prediction as in `fisher_obs`: the centred covariance of a, G = E[g gᵀ], and per head the second moment of the queries (bias
included) and the covariance of the keys around their mean in each image, for softmax ignores what all keys of an image share.
In the last block a and the queries count at the tokens that the head reads. Of a backbone g is along drawn directions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitprune.core.device import device_of, exact, products, widened
from vitprune.core.least_squares import SAME, Stream, Sums
from vitprune.criteria.sampling import objective
from vitprune.criteria.signatures import Batches
from vitprune.criteria.statistics import fisher_obs
from vitprune.model import families
from vitprune.model.inside import hooks, pieces
from vitprune.model.inside.pieces import STATISTICS
from vitprune.model.sites import attention_layers as layers
from vitprune.model.sites.attention import AttentionSite, attention_sites
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
    """The sums of all layers: first the FFNs', then the attentions'. `fisher`: those of the gradients too."""

    def __init__(
        self,
        model: nn.Module,
        ffns: Sequence[FfnSite],
        attentions: Sequence[AttentionSite],
        fisher: bool,
        first: Sums | None,
    ) -> None:
        self.attentions, self.fisher = attentions, fisher
        self.paths = [site.fc2 for site in ffns] + [site.proj for site in attentions]
        self.blocks = [site.block for site in ffns] + [site.block for site in attentions]
        self.asking = [(i, site) for i, site in enumerate(attentions) if site.query_keys]
        self.read, self.last = tokens_read(model), families.ffn_sites(model)[-1].block
        of_ffns, of_attentions = range(len(ffns)), [f"attention.{i}" for i in range(len(attentions))]
        self.names, self.labels = (
            [*(f"hidden.{i}" for i in of_ffns), *of_attentions],
            [*map(str, of_ffns), *of_attentions],
        )
        self.inputs = [Stream(first[f"{SAME}{name}.origin"] if first else None) for name in self.names]
        self.made: Sums = {}

    def add(self, found: list[list[Tensor]]) -> None:
        """What `_one_pass` gave for a batch, in pieces; it is used up."""
        for label, stream in zip(self.labels, self.inputs, strict=True):
            x = pieces.first_of(found)
            self.made[f"{SAME}read.{label}"] = torch.tensor([x.shape[1]])
            stream.add(x)
        for label in self.labels if self.fisher else ():
            grad = pieces.first_of(found)
            self.made[f"{SAME}tokens.{label}"] = torch.tensor([grad.shape[1]])
            self._second(f"fisher.{label}", f"rows.{label}", grad.flatten(0, 1))
        for i, site in self.asking:
            q, k, _ = split_heads(site, pieces.first_of(found))
            asked = q[:, :, self.read] if site.block == self.last else q
            self._second(f"queries.{i}", f"asked.{i}", asked.transpose(0, 1).flatten(1, 2))
            self._second(f"keys.{i}", f"told.{i}", (k - k.mean(2, keepdim=True)).transpose(0, 1).flatten(1, 2))

    def _second(self, name: str, count: str, x: Tensor) -> None:
        """Add the second moments of rows [..., rows, n], and how many rows these are."""
        x, rows = exact(x), torch.tensor([x.shape[-2]])
        with products("float32", x.device):
            made = widened(x.mT @ x)
        known = name in self.made
        self.made[name] = self.made[name] + made if known else made
        self.made[count] = self.made[count] + rows if known else rows

    def finish(self) -> Sums:
        """The sums, on the CPU."""
        found = {name: value.cpu() for name, value in self.made.items()}
        for name, stream in zip(self.names, self.inputs, strict=True):
            found |= stream.sums(name)
        return found


def sums(
    model: nn.Module,
    sites: Sequence[FfnSite],
    batches: Batches,
    *,
    classes: Sequence[int],
    how: Any,
    first: Sums | None = None,
    fisher: bool,
) -> Sums:
    """What the moments of FFNs and attentions are made of, summed over batches; those of the FFNs by the names that the
    criteria of FFNs alone give them. `fisher`: G too, with predictions drawn among `classes`; it takes a backward pass."""
    return _gathered(model, sites, attention_sites(model), batches, classes, how.seed if fisher else None, first)


def of_sums(found: Sums, attentions: Sequence[AttentionSite]) -> list[AttentionMoments]:
    """The moments of the attentions from sums. Without gradients G is empty and T nothing."""
    made = []
    for i, site in enumerate(attentions):
        label, graded = f"attention.{i}", f"fisher.attention.{i}" in found
        fisher = found[f"fisher.{label}"] / found[f"rows.{label}"] if graded else torch.empty(0, 0)
        if site.query_keys:
            sides = found[f"queries.{i}"] / found[f"asked.{i}"], found[f"keys.{i}"] / found[f"told.{i}"]
        else:
            whole = torch.eye(site.queries or site.dim, dtype=torch.float64).expand(site.heads, -1, -1)
            sides = whole, whole
        tokens = int(found[f"{SAME}tokens.{label}"]) if graded else 0
        covariance = Stream.of(found, label).finish().covariance
        made.append(AttentionMoments(covariance, fisher, *sides, tokens, int(found[f"{SAME}read.{label}"])))
    return made


def statistics(
    model: nn.Module, ffns: Sequence[FfnSite], attentions: Sequence[AttentionSite], batches: Batches, seed: int
) -> tuple[list[FfnMoments], list[AttentionMoments]]:
    """The moments of every FFN and every attention, from one forward and one backward per image."""
    found = _gathered(model, ffns, attentions, batches, fisher_obs.classes_of(batches), seed, None)
    of_ffns = [FfnMoments(*parts) for parts in zip(*fisher_obs.of_sums(found, ffns), strict=True)]
    return of_ffns, of_sums(found, attentions)


def _gathered(
    model: nn.Module,
    ffns: Sequence[FfnSite],
    attentions: Sequence[AttentionSite],
    batches: Batches,
    classes: Sequence[int],
    seed: int | None,
    first: Sums | None,
) -> Sums:
    device, footprint = device_of(model), pieces.footprint(model, ffns)
    among, of = torch.tensor(classes, device=device), _Gathered(model, ffns, attentions, seed is not None, first)
    for images, _ in batches():
        work = partial(_one_pass, model, of, images, among, seed)
        of.add(pieces.taken(len(images), work, STATISTICS, pieces.room(footprint, device), device))
    return of.finish()


def _one_pass(
    model: nn.Module, of: _Gathered, images: Tensor, among: Tensor, seed: int | None, rows: slice
) -> list[Tensor]:
    """What every layer reads, the gradients at their outputs (`seed` None: not these), what every qkv gives, for some rows
    of a batch."""
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

    every, grads = range(len(of.paths)), tuple[Tensor, ...]()
    written = None if seed is None else keep
    with (
        torch.set_grad_enabled(seed is not None),
        hooks.layers(model, of.paths, reads, written),
        asked(model, [site for _, site in of.asking], give),
    ):
        if seed is None:
            model(images[rows])
        else:
            total = objective(model, images[rows], among, seed)
            grads = torch.autograd.grad(total, [outputs[i] for i in every])
    return [seen[i] for i in every] + list(grads) + [made[i] for i in range(len(of.asking))]
