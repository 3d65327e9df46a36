"""Repair block by block: every layer learns to lead the pruned model's stream back to the dense model's.

In the order of the forward pass, with x the pruned and x* the dense model's stream into the block, z and z* those after
attention, y* the dense one after the whole block, a what attention hands to its projection, h the kept hidden units, and
γ the LayerScales:

    fc2      z + γ₂⊙(W2 h + b2)  ≈ y*        (`sequential`: this alone)
    qkv      Wqkv norm1(x) + b   ≈ Wqkv* norm1(x*) + b*
    proj     x + γ₁⊙(Wp a + bp)  ≈ z*        (`layerwise`: these two as well; of no heads b alone, in the mean)

each a ridge regression towards the layer's old weights over all tokens of all images (in the last block, what is written
to the stream counts only at the tokens that the head reads), so each corrects the whole drift so far. No labels, no
gradient. The streams of all images are carried from block to block, in memory or, beyond `IN_MEMORY` bytes, in a file; the
dense model's can be kept for the next repair from the same images (`DenseStreams`), which need not run it again.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitprune.core.device import device_of
from vitprune.core.errors import UserError
from vitprune.core.least_squares import SecondMoments, fit
from vitprune.model import tokens
from vitprune.model.inside import blockwise, hooks, pieces
from vitprune.model.inside.blockwise import Halves
from vitprune.model.sites.attention import NoAttention
from vitprune.pruning.repair.streams import DenseStreams, Streams

HELD_OUT = 5  # every fifth image chooses the ridge
ADVICE = "repair: not enough memory for a single image; free some, or take a device with more"
Track = Callable[[Iterable[int]], Iterable[int]]


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
) -> None:
    """Rewrite `slim` in place from batches of images [B, C, H, W]; with `attention` qkv and proj too, not fc2 alone.

    `ridge` None: chosen per layer on a fifth of the images. `kept` is filled with the dense streams, or read if an earlier
    repair from the same batches and the same `dense` has filled it. `scratch`: the folder for what does not fit into memory.
    A batch is a fixed part: where a pass of it does not fit, it is taken in pieces, to the same bits. Raises UserError for
    blocks that do not come in halves.
    """
    new, old = blockwise.halves(slim), blockwise.halves(dense)
    if new is None or old is None:
        why = blockwise.why_not(dense) or blockwise.why_not(slim)
        raise UserError(
            f"recovery: block by block needs blocks of one FFN after attention ({why}); use recovery: affine"
        )
    with contextlib.closing(Streams(scratch)) as streams:
        work = _Work(new, old, streams, device_of(dense), ridge, kept)
        work.start(batches)
        if not work.count:
            raise UserError("recovery: no images were given")
        blocks = len(old.blocks)
        for i in track(range(blocks)):
            read = tokens.tokens_read(dense) if i == blocks - 1 else slice(None)
            work.block(i, read, attention)


class _Work:
    """The streams of both models and the regression of one layer after the other."""

    def __init__(
        self,
        new: Halves,
        old: Halves,
        streams: Streams,
        device: torch.device,
        ridge: float | None,
        kept: DenseStreams | None,
    ) -> None:
        self.new, self.old, self.streams, self.device, self.ridge, self.kept = new, old, streams, device, ridge, kept
        self.count = 0

    def start(self, batches: Iterable[Tensor]) -> None:
        for images in batches:
            self.carry(0, self.count, lambda x: self.old.stream_into_blocks(x.to(self.device)), images)
            self.streams.put("x", self.count, self.dense(0, self.count))
            self.count += 1

    def x(self) -> Iterator[tuple[int, Tensor]]:
        """The pruned model's stream, batch by batch."""
        for n in range(self.count):
            yield n, self.streams.get("x", n, self.device)

    def dense(self, place: int, n: int) -> Tensor:
        """Batch n's dense stream at a place (see `DenseStreams`); if they are not kept, the last that was carried."""
        return self.streams.get("dense", n, self.device) if self.kept is None else self.kept.tensors[place, n]

    def carry(self, place: int, n: int, forward: Callable[[Tensor], Tensor], x: Tensor | None = None) -> None:
        """Take batch n's dense stream to a place, by `forward` of `x` (None: of the stream at the place before)."""
        if self.kept is not None and (place, n) in self.kept.tensors:
            return
        made = self.passed(forward, self.dense(place - 1, n) if x is None else x)
        if self.kept is None:
            self.streams.put("dense", n, made)
        else:
            self.kept.tensors[place, n] = made

    def passed(self, forward: Callable[..., Tensor], *streams: Tensor) -> Tensor:
        """`forward` of a batch, in as many pieces as it takes."""
        return pieces.joined(forward, *streams, advice=ADVICE)

    def block(self, i: int, read: slice, attention: bool) -> None:
        """Refit block i's layers and carry both streams through it."""
        new, old, streams = self.new, self.old, self.streams
        mine: Any = new.blocks[i].attn
        theirs: Any = old.blocks[i].attn
        qkv, proj = (attention and _refittable(new, i, name) for name in ("qkv", "proj"))
        inputs = self.through_attention(i)
        if qkv:
            # slim, it gives other queries, keys and values than the dense one: what it should give is what it would of the
            # dense stream
            same = type(mine) is type(theirs) and mine.qkv.weight.shape == theirs.qkv.weight.shape
            through = theirs.qkv if same else copy.deepcopy(mine.qkv)
            self.refit(mine.qkv, inputs, through=through)
        else:
            for _ in inputs:
                pass
        if proj:
            self.refit(mine.proj, self.mixed(i, read), new.scale(i, "attention"))
        if attention and isinstance(mine, NoAttention):
            self.centre(i, mine, read)
        for n, x in self.x():
            a = streams.get("mixed", n, self.device) if proj else None
            if a is None:
                z = self.passed(lambda x: new.attend(i, x), x)
            else:
                z = self.passed(lambda x, a: new.project(i, x, a), x, a)
            streams.put("x", n, z)
        for n in range(self.count):
            self.carry(2 * i + 2, n, lambda z: self.old.add_ffn(i, z, self.old.hidden(i, z)))
        rows = (
            (self.passed(lambda z: new.hidden(i, z), z[:, read]), (self.dense(2 * i + 2, n) - z)[:, read])
            for n, z in self.x()
        )
        self.refit(new.fc2(i), rows, new.scale(i, "ffn"))
        for n, z in self.x():
            streams.put("x", n, self.passed(lambda z: new.add_ffn(i, z, new.hidden(i, z)), z))

    def through_attention(self, i: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Carry the dense stream through block i's attention; what the pruned model's qkv sees and what the dense one's."""
        mine: Any = self.new.blocks[i].norm1
        theirs: Any = self.old.blocks[i].norm1
        for n, x in self.x():
            d = self.dense(2 * i, n)
            self.carry(2 * i + 1, n, lambda d: self.old.attend(i, d), d)
            yield mine(x), theirs(d)

    def mixed(self, i: int, read: slice) -> Iterator[tuple[Tensor, Tensor]]:
        """What attention hands to its projection, kept as `mixed`, and what the projection should write to the stream."""
        attn: Any = self.new.blocks[i].attn
        for n, x in self.x():
            a = self.passed(lambda x: hooks.input_of(attn.proj, lambda: self.new.attention(i, x)), x)
            self.streams.put("mixed", n, a)
            yield a[:, read], (self.dense(2 * i + 1, n) - x)[:, read]

    def centre(self, i: int, left: NoAttention, read: slice) -> None:
        """Let the vector that is left of block i's attention lead the stream back in the mean."""
        moments = SecondMoments()
        for n, x in self.x():
            missing = (self.dense(2 * i + 1, n) - x)[:, read]
            moments.add(torch.zeros_like(missing[..., :1]), missing)
        gamma = self.gamma(left.bias, self.new.scale(i, "attention"))
        live = gamma != 0
        shift = moments.shift(left.bias.new_zeros(len(left.bias), 1))
        left.bias[live] = (shift[live] / gamma[live]).to(left.bias)

    def gamma(self, written: Tensor, scale: Tensor | None) -> Tensor:
        """The scale of what is written [D] as numbers, 1 where there is none."""
        gamma = torch.ones(len(written), dtype=torch.float64) if scale is None else scale.double()
        return gamma.to(self.device)

    def refit(
        self,
        layer: nn.Linear,
        rows: Iterable[tuple[Tensor, Tensor]],
        scale: Tensor | None = None,
        through: nn.Linear | None = None,
    ) -> None:
        """`layer` by ridge regression; its output times `scale` [D] is what the targets are of, or what `through` makes of
        them: it is linear, so it need not see a row."""
        train, held_out, first = SecondMoments(), SecondMoments(), 0
        for inputs, targets in rows:
            held = torch.arange(first, first + len(inputs), device=inputs.device) % HELD_OUT == HELD_OUT - 1
            first += len(inputs)
            train.add(inputs[~held], targets[~held])
            if bool(held.any()):
                held_out.add(inputs[held], targets[held], train.origin)
        if through is not None:
            train, held_out = train.through(through), held_out.through(through)
        gamma = self.gamma(layer.weight, scale)
        weight, bias = fit(train, held_out, gamma[:, None] * layer.weight.double(), self.ridge)
        live = gamma != 0  # what LayerScale closes is left as it was
        layer.weight[live] = (weight[live] / gamma[live, None]).to(layer.weight)
        if layer.bias is not None:
            layer.bias[live] = (bias[live] / gamma[live]).to(layer.bias)


def _refittable(parts: Halves, i: int, name: str) -> bool:
    """A plain linear layer with a bias; a layer without one could not take over a shift of the mean, so it stays as it is."""
    layer = getattr(parts.blocks[i].attn, name, None)
    return isinstance(layer, nn.Linear) and layer.bias is not None and f"blocks.{i}.attn.{name}" not in parts.changed
