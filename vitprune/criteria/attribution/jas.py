"""Joint attribution of neuron paths, TopK form: Wang et al., ICLR 2025, Definition 1, Eq. 3, Algorithm 3.

Per image, block by block: with the path so far assigned α·w̄ and all candidates of the present block assigned α·w̄
together (parallel candidates), the score of candidate j is

    jas         ( Σ_path w̄ + w̄_j ) · ∫ ( Σ_path ∂p/∂w + ∂p/∂w_j ) dα
    joint-ig    ∫ ( Σ_path w̄·∂p/∂w + w̄_j·∂p/∂w_j ) dα

and the t best join the path. w̄ is a unit's clean value, p the softmax probability of the label (or another objective);
the sums go over units and over the scored tokens. `each` assigns one candidate alone, the others stay live.

The engine never goes back through the prefix: Σ_path ∂p/∂w (seed 1) or Σ_path w̄·∂p/∂w (seed w̄) is the derivative of
p in one direction, so the stream after a block is carried together with its forward-mode tangent in that direction,
and each block costs one block of forward mode, one forward and one backward from its end to the head, and inner
products. What a block does to its own scored units is linear after the activation, so assigning them, one or all,
needs no pass. The first block's stream knows no α yet; in the last only what the head reads is computed.
`jas_plain.py` is the same by hooks and full passes; the tests hold the two against each other.

Legend: B images, M nodes, R = M·B rows (node-major), T tokens, S scored tokens, D width, N hidden units, t units kept,
J candidates of a chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from vitprune.criteria.attribution import quadrature
from vitprune.criteria.attribution.jas_plain import Follow, best, jas_plain, only_shortlist, summed, without_path
from vitprune.criteria.attribution.objective import objective
from vitprune.criteria.attribution.settings import Jas
from vitprune.model import tokens
from vitprune.model.inside import blockwise, pieces
from vitprune.model.inside.blockwise import Halves
from vitprune.model.sites.ffn import FfnSite

EACH_ROWS = 80  # rows of one pass; never fewer than the images' own


def jas(
    model: nn.Module,
    sites: Sequence[FfnSite],
    images: Tensor,
    labels: Tensor,
    *,
    ts: Sequence[int],
    how: Jas,
    along: Tensor | None = None,
) -> dict[int, list[Tensor]]:
    """Candidate scores along the greedy path of each t in `ts`, per block [B, N]; the path is the t largest of each row.

    `images` [B, C, H, W] on the model's device, `labels` [B] output indices; the model is in eval mode. The paths of
    different t share their first block. `along` [B, L, t] gives the path instead of the greedy choice.
    Raises UserError when `tokens: cls` meets a head that does not read a class token.
    """
    scored = tokens.scored_tokens(model, how.tokens, "jas")
    parts = blockwise.halves(model)
    follow = Follow(along)
    if parts is None:
        return {t: jas_plain(model, sites, images, labels, t=t, how=how, along=along) for t in ts}
    engine = _Engine(parts, len(sites), how, labels, scored)
    with torch.no_grad():
        first = engine.first(images)
        return {t: engine.follow(first, t, follow) for t in ts}


def alone(model: nn.Module, sites: Sequence[FfnSite], images: Tensor, labels: Tensor, how: Jas) -> list[Tensor]:
    """Candidate scores of every block with no path before it, per block [B, N]."""
    scored = tokens.scored_tokens(model, how.tokens, "jas")
    parts = blockwise.halves(model)
    if parts is None:
        return without_path(model, sites, images, labels, how)
    engine = _Engine(parts, len(sites), how, labels, scored)
    with torch.no_grad():
        return engine.alone(images)


@dataclass(frozen=True, slots=True)
class _Block:
    """A block with every unit live: the stream after it, and of its scored tokens the stream before the FFN and the units."""

    y_RTD: Tensor
    z_RSD: Tensor
    hidden_RSN: Tensor

    def rows(self, times: int) -> _Block:
        """The same for every node."""
        return _Block(*(x.repeat(times, 1, 1) for x in (self.y_RTD, self.z_RSD, self.hidden_RSN)))

    def zeros(self) -> _Block:
        return _Block(*(torch.zeros_like(x) for x in (self.y_RTD, self.z_RSD, self.hidden_RSN)))


@dataclass(frozen=True, slots=True)
class _First:
    """What every t shares: the first block, every block's clean scored units, and the first block's scores."""

    block: _Block
    clean: list[Tensor]
    scores_BN: Tensor


@dataclass(frozen=True, slots=True)
class _Engine:
    parts: Halves
    depth: int
    how: Jas
    labels_B: Tensor
    scored: slice

    def nodes(self) -> tuple[Tensor, Tensor]:
        """α of every row [R, 1, 1] and the weights [M]."""
        at, weights = quadrature.rule(self.how.quadrature, self.how.nodes)
        like = next(self.parts.model.parameters())
        alpha = torch.from_numpy(at).to(like).repeat_interleave(len(self.labels_B))
        return alpha[:, None, None], torch.from_numpy(weights).to(like)

    def first(self, images: Tensor) -> _First:
        x = self.parts.stream_into_blocks(images)
        clean, first = [], None
        for i in range(self.depth):
            block = self.block(i, x, whole=True)
            first, x = first or block, block.y_RTD
            clean.append(block.hidden_RSN)
        assert first is not None
        alpha, weights = self.nodes()
        live = first.rows(len(weights))
        scores = self.scores(0, live, live.zeros(), clean[0], alpha, weights, clean[0].new_zeros(len(images)))
        return _First(first, clean, scores)

    def follow(self, start: _First, t: int, path: Follow) -> list[Tensor]:
        """The scores of every block along a path with t units per block."""
        alpha, weights = self.nodes()
        scores, clean = [start.scores_BN], start.clean
        live = start.block.rows(len(weights))
        dot = live.zeros()
        value_B = clean[0].new_zeros(len(clean[0]))
        for i in range(1, self.depth):
            chosen_Bt = path.units(i - 1, scores[-1], t)
            counted_Bt = chosen_Bt[:, -1:] if self.how.reference else chosen_Bt
            value_B = value_B + clean[i - 1].sum(1).gather(1, counted_Bt).sum(1)
            x, x_dot = self.take(i - 1, live, dot, clean[i - 1], alpha, (chosen_Bt, counted_Bt))
            live, dot = self.extend(i, x, x_dot)
            scores.append(self.scores(i, live, dot, clean[i], alpha, weights, value_B))
        return scores

    def alone(self, images: Tensor) -> list[Tensor]:
        """The scores of every block along an empty path."""
        x, found = self.parts.stream_into_blocks(images), []
        alpha, weights = self.nodes()
        for i in range(self.depth):
            block = self.block(i, x, whole=True)
            x = block.y_RTD
            live = block.rows(len(weights))
            if i + 1 == self.depth and self.narrow:  # no more than the head reads
                read = int(self.scored.indices(2)[0] == 0)
                live = _Block(live.y_RTD[:, :1], live.z_RSD[:, :read], live.hidden_RSN[:, :read])
            none = block.hidden_RSN.new_zeros(len(images))
            found.append(self.scores(i, live, live.zeros(), block.hidden_RSN, alpha, weights, none))
        return found

    def block(self, i: int, x_RTD: Tensor, whole: bool = False) -> _Block:
        """Block i; the last one only where the head reads, unless `whole`."""
        if i + 1 == self.depth and not whole and self.narrow:
            z = self.parts.attend_first(i, x_RTD)
        else:
            z = self.parts.attend(i, x_RTD)
        hidden = self.parts.hidden(i, z)
        return _Block(self.parts.add_ffn(i, z, hidden), z[:, self.scored], hidden[:, self.scored])

    @property
    def narrow(self) -> bool:
        """Whether the head reads the first token alone."""
        return tokens.tokens_read(self.parts.model) == slice(0, 1)

    def extend(self, i: int, x_RTD: Tensor, dot_RTD: Tensor) -> tuple[_Block, _Block]:
        """Block i with its forward-mode tangent."""

        def forward(x: Tensor) -> tuple[Tensor, ...]:
            block = self.block(i, x)
            return block.y_RTD, block.z_RSD, block.hidden_RSN

        with self.precision(x_RTD), sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no forward-mode derivative
            pair = torch.func.jvp(forward, (x_RTD,), (dot_RTD,))
        return tuple(_Block(*(part.to(x_RTD) for part in half)) for half in pair)  # type: ignore[return-value]

    def precision(self, like: Tensor) -> torch.autocast:
        """Matrix products in bfloat16 where that is asked for."""
        return torch.autocast(like.device.type, torch.bfloat16, enabled=self.how.precision == "bfloat16")

    def seed(self, clean_BSN: Tensor) -> Tensor:
        """∂(assigned value)/∂(direction): 1 for the sum of gradients, w̄ for the gradient along α."""
        return torch.ones_like(clean_BSN) if self.how.formula == "jas" else clean_BSN

    def take(
        self, i: int, live: _Block, dot: _Block, clean_BSN: Tensor, alpha: Tensor, chosen: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The stream after block i, and its tangent, when the chosen units [B, t] are assigned; the counted ones grow."""
        nodes = len(alpha) // len(clean_BSN)
        none = torch.zeros_like(clean_BSN[:, 0], dtype=torch.bool)
        on, counted = (none.scatter(1, units, True).repeat(nodes, 1)[:, None] for units in chosen)
        clean = clean_BSN.repeat(nodes, 1, 1)
        others, others_dot = (clean, 0.0) if self.how.reference else (live.hidden_RSN, dot.hidden_RSN)
        hidden = torch.where(on, alpha * clean, others)
        grows = torch.where(counted, self.seed(clean_BSN).repeat(nodes, 1, 1), others_dot)
        x = self.parts.add_ffn(i, live.z_RSD, hidden)
        return self.put(live.y_RTD, x), self.put(dot.y_RTD, dot.z_RSD + self.parts.through_ffn(i, grows))

    def put(self, y_RTD: Tensor, scored_RSD: Tensor) -> Tensor:
        """The stream with the scored tokens replaced."""
        if not scored_RSD.shape[1]:
            return y_RTD
        start, stop, _ = self.scored.indices(y_RTD.shape[1])
        return torch.cat([y_RTD[:, :start], scored_RSD, y_RTD[:, stop:]], 1)

    def scores(
        self, i: int, live: _Block, dot: _Block, clean_BSN: Tensor, alpha: Tensor, weights: Tensor, value_B: Tensor
    ) -> Tensor:
        """Candidate scores [B, N] of block i."""
        read = live.hidden_RSN.shape[1]  # fewer than S in the last block, where the others change nothing
        nodes = len(weights)
        assigned = alpha * clean_BSN[:, :read].repeat(nodes, 1, 1)
        x = self.put(live.y_RTD, self.parts.add_ffn(i, live.z_RSD, assigned))
        x_dot = self.put(dot.y_RTD, dot.z_RSD)
        grad_x = self.gradient(i, x, self.labels_B.repeat(nodes))
        path_B = self.mean((grad_x * x_dot).sum((1, 2)), weights)
        grad_BSN = self.mean(self.parts.back_through_ffn(i, grad_x[:, self.scored]), weights)
        own_BN = summed(grad_BSN, clean_BSN, self.how)
        scores = self.together(value_B[:, None], clean_BSN.sum(1), path_B[:, None], own_BN)
        each = self.how.candidates == "each"
        return self.each(i, live, dot, clean_BSN, assigned, weights, value_B, scores) if each else scores

    def together(self, value: Tensor, own_value: Tensor, gradient: Tensor, own_gradient: Tensor) -> Tensor:
        """The formula, from the sums over the path and the candidate's own."""
        total = gradient + own_gradient
        return (value + own_value) * total if self.how.formula == "jas" else total

    def each(
        self,
        i: int,
        live: _Block,
        dot: _Block,
        clean_BSN: Tensor,
        assigned: Tensor,
        weights: Tensor,
        value_B: Tensor,
        parallel_BN: Tensor,
    ) -> Tensor:
        """Every candidate alone, in chunks; with a shortlist only the best of the parallel pass, the rest ranked below."""
        how, nodes, batch = self.how, len(weights), len(clean_BSN)
        units_BK = best(parallel_BN, min(how.shortlist or parallel_BN.shape[1], parallel_BN.shape[1]))
        exact = torch.empty_like(units_BK, dtype=parallel_BN.dtype)
        step = max(1, EACH_ROWS // (nodes * pieces.whole(batch)))
        columns_ND = self.parts.ffn_columns(i)
        for k in range(0, units_BK.shape[1], step):
            units_BJ = units_BK[:, k : k + step]
            count = units_BJ.shape[1]
            at = units_BJ.repeat(nodes, 1)[:, None].expand(-1, assigned.shape[1], -1)
            change_RSJ = assigned.gather(2, at) - live.hidden_RSN.gather(2, at)
            column_RJD = columns_ND[units_BJ].repeat(nodes, 1, 1)
            x = self.lift(live.y_RTD, change_RSJ, column_RJD)
            x_dot = self.lift(dot.y_RTD, -dot.hidden_RSN.gather(2, at), column_RJD)
            grad_x = self.gradient(i, x, self.labels_B.repeat(nodes * count))
            path_BJ = self.mean((grad_x * x_dot).sum((1, 2)).view(count, -1).T, weights)
            columns = column_RJD.transpose(0, 1).flatten(0, 1)  # [J·R, D], as the rows of x
            own_RSJ = (grad_x[:, self.scored] * columns[:, None]).sum(2).unflatten(0, (count, -1)).permute(1, 2, 0)
            clean_BSJ = clean_BSN.gather(2, units_BJ[:, None].expand(-1, clean_BSN.shape[1], -1))
            own_BJ = summed(self.mean(own_RSJ, weights), clean_BSJ, how)
            exact[:, k : k + step] = self.together(value_B[:, None], clean_BSJ.sum(1), path_BJ, own_BJ)
        return only_shortlist(parallel_BN, units_BK, exact)

    def lift(self, y_RTD: Tensor, change_RSJ: Tensor, column_RJD: Tensor) -> Tensor:
        """J copies of the stream, [J·R, T, D], each with one unit's value changed at the scored tokens."""
        added = torch.einsum("rsj,rjd->jrsd", change_RSJ, column_RJD).flatten(0, 1)
        y = y_RTD.repeat(change_RSJ.shape[2], 1, 1)
        return self.put(y, y[:, self.scored] + added)

    def gradient(self, i: int, x_RTD: Tensor, labels_R: Tensor) -> Tensor:
        """∂(objective)/∂(stream after block i), every unit behind it live."""
        x = x_RTD.detach().requires_grad_()
        with torch.enable_grad():
            with self.precision(x):
                y = x
                for later in range(i + 1, self.depth):
                    y = self.block(later, y).y_RTD
                logits = self.parts.logits(y)
            value = objective(logits.to(x), labels_R, self.how.objective)
            return torch.autograd.grad(value.sum(), x)[0]

    def mean(self, value_R: Tensor, weights_M: Tensor) -> Tensor:
        """Mean over α: [R, …] → [B, …]."""
        return torch.tensordot(weights_M, value_R.unflatten(0, (len(weights_M), -1)), 1)
