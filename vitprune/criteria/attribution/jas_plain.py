"""Joint attribution by hooks and full passes: slow, family-independent, and the replica the fast engine is tested against.

The formulas are in `jas.py`. For every block: one forward of all images × nodes with the path assigned, one backward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vitprune.criteria.attribution import quadrature
from vitprune.criteria.attribution.objective import objective
from vitprune.criteria.attribution.settings import Jas
from vitprune.model import tokens
from vitprune.model.inside import hooks
from vitprune.model.sites.ffn import FfnSite


@dataclass(frozen=True, slots=True)
class Follow:
    """Which units join the path: those given [B, L, t], else the t best."""

    along: Tensor | None

    def units(self, block: int, scores_BN: Tensor, t: int) -> Tensor:
        """[B, t], best first."""
        return best(scores_BN, t) if self.along is None else self.along[:, block].to(scores_BN.device).long()


def best(scores_BN: Tensor, count: int) -> Tensor:
    """The largest `count` of each row, [B, count], largest first."""
    return scores_BN.topk(count, 1).indices


def summed(grad_BSN: Tensor, clean_BSN: Tensor, how: Jas) -> Tensor:
    """Over the scored tokens: Σ ∂p/∂w (jas), Σ w̄·∂p/∂w (joint-ig); tokens without a gradient are at the end."""
    return grad_BSN.sum(1) if how.formula == "jas" else (grad_BSN * clean_BSN[:, : grad_BSN.shape[1]]).sum(1)


def only_shortlist(parallel_BN: Tensor, units_BK: Tensor, exact_BK: Tensor) -> Tensor:
    """Exact scores on the shortlist; everything else keeps its parallel score but ranks below."""
    if units_BK.shape[1] == parallel_BN.shape[1]:
        return torch.empty_like(parallel_BN).scatter_(1, units_BK, exact_BK)
    floor = exact_BK.min(1, keepdim=True).values
    below = floor - torch.finfo(floor.dtype).eps * floor.abs().clamp_min(1e-30)
    return torch.minimum(parallel_BN, below).scatter(1, units_BK, exact_BK)


def jas_plain(
    model: nn.Module,
    sites: Sequence[FfnSite],
    images: Tensor,
    labels: Tensor,
    *,
    t: int,
    how: Jas,
    along: Tensor | None = None,
) -> list[Tensor]:
    """Candidate scores along the greedy path, per block [B, N]; arguments as in `jas`."""
    clean = clean_units(model, sites, images, tokens.scored_tokens(model, how.tokens, "jas"))
    taken: list[Tensor] = []
    scores: list[Tensor] = []
    for i in range(len(sites)):
        scores.append(_Step(model, sites, images, labels, how, clean, taken, i).all_scores())
        taken.append(Follow(along).units(i, scores[-1], t))
    return scores


def without_path(model: nn.Module, sites: Sequence[FfnSite], images: Tensor, labels: Tensor, how: Jas) -> list[Tensor]:
    """Candidate scores of every block with no path before it, per block [B, N]."""
    clean = clean_units(model, sites, images, tokens.scored_tokens(model, how.tokens, "jas"))
    nobody = [torch.zeros(len(images), 0, dtype=torch.int64, device=images.device)] * len(sites)
    return [_Step(model, sites, images, labels, how, clean, nobody[:i], i).all_scores() for i in range(len(sites))]


@torch.no_grad()
def clean_units(model: nn.Module, sites: Sequence[FfnSite], images: Tensor, scored: slice) -> list[Tensor]:
    """Every block's hidden units at the scored tokens, [B, S, N]."""
    clean: list[Tensor] = []
    with hooks.hidden_units(model, sites, lambda _, hidden: clean.append(hidden[:, scored])):
        model(images)
    return clean


@dataclass(frozen=True, slots=True)
class _Step:
    """One block's turn: units `taken` [B, t] in the blocks before it, candidates in block i."""

    model: nn.Module
    sites: Sequence[FfnSite]
    images: Tensor
    labels: Tensor
    how: Jas
    clean: list[Tensor]
    taken: list[Tensor]
    i: int

    def all_scores(self) -> Tensor:
        """[B, N], candidates together or each alone."""
        everything = torch.ones_like(self.clean[self.i][:, 0], dtype=torch.bool)
        scores = self.scores(everything)
        if self.how.candidates == "parallel":
            return scores
        units = best(scores, min(self.how.shortlist or everything.shape[1], everything.shape[1]))
        alone = [self.scores(torch.zeros_like(everything).scatter_(1, u[:, None], True)) for u in units.T]
        exact = torch.stack([s.gather(1, u[:, None])[:, 0] for s, u in zip(alone, units.T, strict=True)], 1)
        return only_shortlist(scores, units, exact)

    def scores(self, candidates_BN: Tensor) -> Tensor:
        """[B, N] with these candidates assigned together."""
        how, i, clean = self.how, self.i, self.clean
        at, of_node = quadrature.rule(how.quadrature, how.nodes)
        nodes, weights = len(at), torch.from_numpy(of_node).to(clean[0])
        alpha = torch.from_numpy(at).to(clean[0]).repeat_interleave(len(self.images))[:, None, None]
        leaves = [(alpha * w.repeat(nodes, 1, 1)).requires_grad_() for w in clean[: i + 1]]
        on = [torch.zeros_like(w[:, 0], dtype=torch.bool) for w in clean[: i + 1]]
        counted = [o.clone() for o in on]
        for o, c, units in zip(on, counted, self.taken, strict=False):
            o.scatter_(1, units, True)
            c.scatter_(1, units[:, -1:] if how.reference else units, True)
        on[i] = candidates_BN
        scored = tokens.scored_tokens(self.model, how.tokens, "jas")

        def assign(position: int, hidden_RTN: Tensor) -> Tensor | None:
            if position > i:
                return None
            clamped = how.reference and position < i
            others = clean[position].repeat(nodes, 1, 1) if clamped else hidden_RTN[:, scored]
            units = torch.where(on[position].repeat(nodes, 1)[:, None], leaves[position], others)
            start, stop, _ = scored.indices(hidden_RTN.shape[1])
            return torch.cat([hidden_RTN[:, :start], units, hidden_RTN[:, stop:]], 1)

        with torch.enable_grad(), hooks.hidden_units(self.model, self.sites, assign):
            p = objective(self.model(self.images.repeat(nodes, 1, 1, 1)), self.labels.repeat(nodes), how.objective)
            grads = torch.autograd.grad(p.sum(), leaves)
        sums = [
            summed(torch.tensordot(weights, g.view(nodes, -1, *g.shape[1:]), 1), w, how)
            for g, w in zip(grads, clean, strict=False)
        ]
        pairs = zip(sums[:-1], clean, counted, strict=False)
        both = [((g * c).sum(1), (w.sum(1) * c).sum(1)) for g, w, c in pairs]
        gradient, value = (sum((b[k] for b in both), clean[0].new_zeros(len(clean[0])))[:, None] for k in (0, 1))
        total = gradient + sums[-1]
        return (value + clean[i].sum(1)) * total if how.formula == "jas" else total
