"""Repair block by block: every layer learns to lead the pruned model's stream back to the dense model's.

In the order of the forward pass, with x the pruned and x* the dense model's stream into the block, z and z* those after
attention, y* the dense one after the whole block, a what attention hands to its projection, h the kept hidden units, and
γ the LayerScales:

    fc2      z + γ₂⊙(W2 h + b2)  ≈ y*        (`sequential`: this alone)
    qkv      Wqkv norm1(x) + b   ≈ Wqkv* norm1(x*) + b*
    proj     x + γ₁⊙(Wp a + bp)  ≈ z*        (`layerwise`: these two as well; of no heads b alone, in the mean)

each a ridge regression towards the layer's old weights over all tokens of all images (in the last block, what is written
to the stream counts only at the tokens that the head reads), so each corrects the whole drift so far. No labels, no
gradient. The streams of all images are carried from block to block (walk.py), in memory or, beyond `IN_MEMORY` bytes, in a
file; the dense model's can be kept for the next repair from the same images (`DenseStreams`), which need not run it again.
The moments are summed over fixed parts of the images, so others may hold the streams: the result is the same to the bit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from vitprune.core.device import wide, widened
from vitprune.core.errors import UserError
from vitprune.core.least_squares import fit
from vitprune.model.inside.blockwise import Halves
from vitprune.pruning.repair.streams import DenseStreams
from vitprune.pruning.repair.walk import Seen, Step, Walk, Weights, in_halves, parts, road

Track = Callable[[Iterable[int]], Iterable[int]]


class Solved(Protocol):
    """Where the weights of every step are left, so that a repair that was stopped goes on from there."""

    def read(self, step: int) -> Weights | None: ...

    def write(self, step: int, weights: Weights) -> None: ...


@dataclass(frozen=True, slots=True)
class Others:
    """What the repair of one slim model need not do in this process: `moments` of a step, part by part in order; `told`,
    what the classifier reads of images and what the dense model says of them, part by part (head.py)."""

    solved: Solved | None = None
    moments: Callable[[int], Iterable[Seen]] | None = None
    told: Callable[[], Iterable[tuple[Tensor, Tensor]]] | None = None


@torch.no_grad()
def repair(
    slim: nn.Module,
    dense: nn.Module,
    batches: Iterable[Tensor],
    *,
    attention: bool,
    ridge: float | None = None,
    track: Track = iter,
    kept: DenseStreams | None = None,
    scratch: Path | None = None,
    others: Others | None = None,
) -> None:
    """Rewrite `slim` in place from batches of images [B, C, H, W]; with `attention` qkv and proj too, not fc2 alone.

    `ridge` None: chosen per layer on a fifth of the images. `kept` is filled with the dense streams, or read if an earlier
    repair from the same batches and the same `dense` has filled it. `scratch`: the folder for what does not fit into memory.
    A batch is a fixed part: where a pass of it does not fit, it is taken in pieces, to the same bits. With moments of
    `others` the batches are not touched. Raises UserError for blocks that do not come in halves.
    """
    solved = others.solved if others else None
    if others is not None and others.moments is not None:
        _lead(slim, dense, others.moments, attention, ridge, track, solved)
        return
    with contextlib.closing(Walk(slim, dense, attention, kept, scratch)) as walk:
        cut = parts(walk.start(batches))
        _lead(slim, dense, lambda k: (walk.moments(part, k) for part in cut), attention, ridge, track, solved)


def _lead(
    slim: nn.Module,
    dense: nn.Module,
    moments: Callable[[int], Iterable[Seen]],
    attention: bool,
    ridge: float | None,
    track: Track,
    solved: Solved | None,
) -> None:
    """Solve layer after layer from the moments of every step, added up in the parts' order."""
    new, old = in_halves(slim, dense)
    steps = road(new, attention)
    for i in track(range(len(old.blocks))):
        for k, step in enumerate(steps):
            if step.block != i:
                continue
            layer, known = step.of(new), solved.read(k) if solved else None
            if known is None:
                solve(new, old, step, _total(moments(k)), ridge)
                if solved:
                    solved.write(k, dict(layer.named_parameters(recurse=False)))
            else:
                for name, value in known.items():
                    layer.get_parameter(name).copy_(value)


def _total(found: Iterable[Seen]) -> Seen:
    whole: Seen | None = None
    for part in found:
        whole = part if whole is None else whole.add(part)
    if whole is None:
        raise UserError("recovery: no images were given")
    return whole


def solve(new: Halves, old: Halves, step: Step, seen: Seen, ridge: float | None) -> None:
    """Rewrite a step's layer of `new` by what was seen of it."""
    i, layer = step.block, step.of(new)
    if step.layer == "qkv":
        _refit(layer, _through(new, old, i, seen), None, ridge)
    elif step.layer == "centre":
        _centre(layer, seen, new.scale(i, "attention"))
    else:
        _refit(layer, seen, new.scale(i, "attention" if step.layer == "proj" else "ffn"), ridge)


def _through(new: Halves, old: Halves, i: int, seen: Seen) -> Seen:
    """What block i's qkv should give, from what the dense one sees: it is linear, so it need not see a row. Slim, it gives
    other queries, keys and values than the dense one: what it should give is what it would of the dense stream."""
    mine: Any = new.blocks[i].attn
    theirs: Any = old.blocks[i].attn
    same = type(mine) is type(theirs) and mine.qkv.weight.shape == theirs.qkv.weight.shape
    layer = theirs.qkv if same else mine.qkv
    return Seen(seen.train.through(layer), seen.held_out.through(layer))


def _centre(left: Any, seen: Seen, scale: Tensor | None) -> None:
    """Let the vector that is left of an attention lead the stream back in the mean."""
    gamma = _gamma(left.bias, scale)
    live = gamma != 0
    every = seen.train
    every += seen.held_out
    shift = every.shift(left.bias.new_zeros(len(left.bias), 1))
    left.bias[live.to(left.bias.device)] = _narrowed(shift[live] / gamma[live], left.bias)


def _refit(layer: nn.Linear, seen: Seen, scale: Tensor | None, ridge: float | None) -> None:
    """`layer` by ridge regression; its output times `scale` [D] is what the targets are of."""
    gamma = _gamma(layer.weight, scale)
    weight, bias = fit(seen.train, seen.held_out, gamma[:, None] * widened(layer.weight), ridge)
    live = gamma != 0  # what LayerScale closes is left as it was
    there = live.to(layer.weight.device)
    layer.weight[there] = _narrowed(weight[live] / gamma[live, None], layer.weight)
    if layer.bias is not None:
        layer.bias[there] = _narrowed(bias[live] / gamma[live], layer.bias)


def _narrowed(solved: Tensor, like: Tensor) -> Tensor:
    """What was solved in float64, as a layer has it; a device without float64 is given no such tensor."""
    return solved.to(like.dtype).to(like.device)


def _gamma(written: Tensor, scale: Tensor | None) -> Tensor:
    """The scale of what is written [D] as numbers, 1 where there is none."""
    if scale is None:
        return torch.ones(len(written), dtype=torch.float64, device=wide(written.device))
    return widened(scale)
