"""Repair block by block: every layer learns to lead the pruned model's stream back to the dense model's.

In the order of the forward pass, with x the pruned and x* the dense model's stream into the block, z and z* those after
attention, y* the dense one after the whole block, a what attention hands to its projection, h the kept hidden units, and
γ the LayerScales:

    fc2      z + γ₂⊙(W2 h + b2)  ≈ y*        (`sequential`: this alone)
    qkv      Wqkv norm1(x) + b   ≈ Wqkv* norm1(x*) + b*
    proj     x + γ₁⊙(Wp a + bp)  ≈ z*        (`layerwise`: these two as well)

each a ridge regression towards the layer's old weights over all tokens of all images (in the last block, what is written
to the stream counts only at the tokens that the head reads), so each corrects the whole drift so far. No labels, no
gradient. The streams of all images are carried from block to block, in memory or, beyond `IN_MEMORY` bytes, in files; the
dense model's can be kept for the next repair from the same images (`Kept`), which need not run it again.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vitprune import halves, hooks, models
from vitprune.errors import UserError
from vitprune.least_squares import SecondMoments, fit
from vitprune.models import Halves

IN_MEMORY = 2 << 30
HELD_OUT = 5  # every fifth image chooses the ridge
Track = Callable[[Iterable[int]], Iterable[int]]
Kept = dict[
    tuple[int, int], Tensor
]  # (half, batch): the dense stream into the first block (-1), after the halves (0, 1, …)


class Streams:
    """Tensors by name and batch. Those that do not fit into `IN_MEMORY` bytes together lie in files of a temporary folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.room = folder, IN_MEMORY
        self.kept: dict[tuple[str, int], Tensor] = {}

    def put(self, name: str, batch: int, value: Tensor) -> None:
        """Keep `value`, in the place of what had the name."""
        old = self.kept.pop((name, batch), None)
        self.room += 0 if old is None else old.nbytes
        if value.nbytes <= self.room:
            self.room -= value.nbytes
            self.kept[name, batch] = value
        else:
            np.save(self._file(name, batch), value.cpu().numpy())

    def get(self, name: str, batch: int, device: torch.device) -> Tensor:
        """What `put` was given last."""
        if (name, batch) in self.kept:
            return self.kept[name, batch]
        return torch.from_numpy(np.load(self._file(name, batch), allow_pickle=False)).to(device)

    def _file(self, name: str, batch: int) -> Path:
        return self.folder / f"{name}-{batch}.npy"


@torch.no_grad()
def repair(
    slim: nn.Module,
    dense: nn.Module,
    batches: Iterable[Tensor],
    *,
    attention: bool,
    ridge: float | None = None,
    track: Track = iter,
    kept: Kept | None = None,
) -> None:
    """Rewrite `slim` in place from batches of images [B, C, H, W]; with `attention` qkv and proj too, not fc2 alone.

    `ridge` None: chosen per layer on a fifth of the images. `kept` is filled with the dense streams, or read if an earlier
    repair from the same batches and the same `dense` has filled it. Raises UserError for blocks that do not come in halves.
    """
    new, old = models.halves(slim), models.halves(dense)
    if new is None or old is None:
        why = halves.why_not(dense) or halves.why_not(slim)
        raise UserError(
            f"recovery: block by block needs blocks of one FFN after attention ({why}); use recovery: affine"
        )
    with tempfile.TemporaryDirectory(prefix="vitprune-") as folder:
        work = _Work(new, old, Streams(Path(folder)), models.device_of(dense), ridge, kept)
        work.start(batches)
        if not work.count:
            raise UserError("recovery: no images were given")
        blocks = len(old.blocks)
        for i in track(range(blocks)):
            read = models.tokens_read(dense) if i == blocks - 1 else slice(None)
            work.block(i, read, attention)


class _Work:
    """The streams of both models and the regression of one layer after the other."""

    def __init__(
        self, new: Halves, old: Halves, streams: Streams, device: torch.device, ridge: float | None, kept: Kept | None
    ) -> None:
        self.new, self.old, self.streams, self.device, self.ridge, self.kept = new, old, streams, device, ridge, kept
        self.count = 0

    def start(self, batches: Iterable[Tensor]) -> None:
        for images in batches:
            self.carry(-1, self.count, lambda images=images: self.old.stream_into_blocks(images.to(self.device)))  # type: ignore[misc]
            self.streams.put("x", self.count, self.dense(-1, self.count))
            self.count += 1

    def x(self) -> Iterator[tuple[int, Tensor]]:
        """The pruned model's stream, batch by batch."""
        for n in range(self.count):
            yield n, self.streams.get("x", n, self.device)

    def dense(self, half: int, n: int) -> Tensor:
        """Batch n's dense stream into the first block (-1), after block i's attention (2i) or after the block (2i + 1);
        if they are not kept, the last that was carried."""
        return self.streams.get("dense", n, self.device) if self.kept is None else self.kept[half, n]

    def carry(self, half: int, n: int, forward: Callable[[], Tensor]) -> None:
        if self.kept is None:
            self.streams.put("dense", n, forward())
        elif (half, n) not in self.kept:
            self.kept[half, n] = forward()

    def block(self, i: int, read: slice, attention: bool) -> None:
        """Refit block i's layers and carry both streams through it."""
        new, old, streams = self.new, self.old, self.streams
        mine: Any = new.blocks[i].attn
        theirs: Any = old.blocks[i].attn
        qkv, proj = (attention and _refittable(new, i, name) for name in ("qkv", "proj"))
        inputs = self.through_attention(i)
        if qkv:
            self.refit(mine.qkv, inputs, through=theirs.qkv)
        else:
            for _ in inputs:
                pass
        if proj:
            self.refit(mine.proj, self.mixed(i, read), new.scale(i, "attention"))
        for n, x in self.x():
            a = streams.get("mixed", n, self.device) if proj else None
            z = new.attend(i, x) if a is None else new.project(i, x, a)
            streams.put("x", n, z)
        for n in range(self.count):
            self.carry(2 * i + 1, n, lambda n=n: self._after_ffn(i, self.dense(2 * i, n)))  # type: ignore[misc]
        rows = ((new.hidden(i, z[:, read]), (self.dense(2 * i + 1, n) - z)[:, read]) for n, z in self.x())
        self.refit(new.fc2(i), rows, new.scale(i, "ffn"))
        for n, z in self.x():
            streams.put("x", n, new.add_ffn(i, z, new.hidden(i, z)))

    def _after_ffn(self, i: int, z: Tensor) -> Tensor:
        return self.old.add_ffn(i, z, self.old.hidden(i, z))

    def through_attention(self, i: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Carry the dense stream through block i's attention; what the pruned model's qkv sees and what the dense one's."""
        mine: Any = self.new.blocks[i].norm1
        theirs: Any = self.old.blocks[i].norm1
        for n, x in self.x():
            d = self.dense(2 * i - 1, n)
            self.carry(2 * i, n, lambda d=d: self.old.attend(i, d))  # type: ignore[misc]
            yield mine(x), theirs(d)

    def mixed(self, i: int, read: slice) -> Iterator[tuple[Tensor, Tensor]]:
        """What attention hands to its projection, kept as `mixed`, and what the projection should write to the stream."""
        attn: Any = self.new.blocks[i].attn
        for n, x in self.x():
            a = hooks.input_of(attn.proj, lambda x=x: self.new.attention(i, x))  # type: ignore[misc]
            self.streams.put("mixed", n, a)
            yield a[:, read], (self.dense(2 * i, n) - x)[:, read]

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
        gamma = torch.ones(layer.out_features, dtype=torch.float64) if scale is None else scale.double()
        gamma = gamma.to(self.device)
        weight, bias = fit(train, held_out, gamma[:, None] * layer.weight.double(), self.ridge)
        live = gamma != 0  # what LayerScale closes is left as it was
        layer.weight[live] = (weight[live] / gamma[live, None]).to(layer.weight)
        if layer.bias is not None:
            layer.bias[live] = (bias[live] / gamma[live]).to(layer.bias)


def _refittable(parts: Halves, i: int, name: str) -> bool:
    """A plain linear layer with a bias; a layer without one could not take over a shift of the mean, so it stays as it is."""
    layer = getattr(parts.blocks[i].attn, name, None)
    return isinstance(layer, nn.Linear) and layer.bias is not None and f"blocks.{i}.attn.{name}" not in parts.changed
