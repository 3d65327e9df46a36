"""The road of a repair block by block, and what one process holds on it: both models' streams of some of the images.

The road is a row of steps, each a layer to be solved. Batch by batch the pruned stream is led up to a step, by the weights
that are solved so far, and gives the layer's second moments there; the dense stream goes beside it. Images are cut into
fixed parts of whole batches. What a part gives is a function of the models, the weights solved so far and its images
alone, so a part may be led again from its images, here or anywhere, to the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vitprune.core.device import device_of, widened
from vitprune.core.errors import UserError
from vitprune.core.least_squares import SecondMoments, Sums
from vitprune.model import tokens
from vitprune.model.inside import blockwise, hooks, pieces
from vitprune.model.inside.blockwise import Halves
from vitprune.model.sites.attention import NoAttention
from vitprune.pruning.repair.streams import DenseStreams, Streams

HELD_OUT = 5  # every fifth image chooses the ridge
PARTS = 8  # at most
TOGETHER = 2048  # rows, for one product
ADVICE = "repair: not enough memory for a single image; free some, or take a device with more"
Weights = dict[str, Tensor]  # of a layer, by the names of its parameters


@dataclass(frozen=True, slots=True)
class Step:
    """A layer to be solved; `centre`: the vector that is left of an attention without heads."""

    block: int
    layer: Literal["qkv", "proj", "centre", "fc2"]

    def of(self, model: Halves) -> Any:
        """The layer in a model."""
        if self.layer == "fc2":
            return model.fc2(self.block)
        attn = model.blocks[self.block].get_submodule("attn")
        return attn if self.layer == "centre" else attn.get_submodule(self.layer)


def parts(batches: int) -> list[range]:
    """The fixed parts of so many batches; their number alone says it."""
    count = min(PARTS, batches)
    return [range(j * batches // count, (j + 1) * batches // count) for j in range(count)]


def road(slim: Halves, attention: bool) -> list[Step]:
    """The steps in their order: of every block fc2, with `attention` what can be solved of its attention before it."""
    made = list[Step]()
    for i, block in enumerate(slim.blocks):
        if attention:
            made += [Step(i, name) for name in ("qkv", "proj") if _refittable(slim, i, name)]
        if attention and isinstance(block.attn, NoAttention):
            made.append(Step(i, "centre"))
        made.append(Step(i, "fc2"))
    return made


def in_halves(slim: nn.Module, dense: nn.Module) -> tuple[Halves, Halves]:
    """Both models in halves. Raises UserError for blocks that do not come so."""
    new, old = blockwise.halves(slim), blockwise.halves(dense)
    if new is None or old is None:
        why = blockwise.why_not(dense) or blockwise.why_not(slim)
        raise UserError(
            f"recovery: block by block needs blocks of one FFN after attention ({why}); use recovery: affine"
        )
    return new, old


@dataclass(frozen=True, slots=True)
class Seen:
    """Second moments of what a layer sees and should give, of the images that it is fitted to and of those held out."""

    train: SecondMoments
    held_out: SecondMoments

    def add(self, other: Seen) -> Seen:
        """Those of both; neither is what it was."""
        train, held_out = self.train, self.held_out
        train += other.train
        held_out += other.held_out
        return Seen(train, held_out)

    def sums(self) -> Sums:
        """Both as tensors by name, on the CPU."""
        return self.train.sums("train") | self.held_out.sums("held_out")

    @classmethod
    def of(cls, sums: Sums, device: torch.device) -> Seen:
        """What `sums` were made of."""
        return cls(*(SecondMoments.of(sums, name, device) for name in ("train", "held_out")))


@dataclass(slots=True)
class Rows:
    """Rows of inputs and targets on their way into second moments around `origin`, in blocks of at least `TOGETHER`."""

    origin: tuple[Tensor, Tensor] | None = None
    moments: SecondMoments = field(default_factory=SecondMoments)
    waiting: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    count: int = 0

    def add(self, inputs: Tensor, targets: Tensor) -> None:
        """`inputs` [..., p] and `targets` [..., q]."""
        self.waiting.append((inputs.flatten(0, -2), targets.flatten(0, -2)))
        self.count += len(self.waiting[-1][0])
        if self.count >= TOGETHER:
            self.summed()

    def summed(self) -> SecondMoments:
        """The moments of all rows so far."""
        if self.waiting:
            inputs, targets = map(torch.cat, zip(*self.waiting, strict=True))
            self.moments.add(inputs, targets, self.origin)
        self.waiting, self.count = [], 0
        return self.moments


class Walk:
    """What one process holds of a repair. `start` gives it batches, `learn` the weights of a step, `moments` leads a part
    to a step. `kept` is filled with the dense streams, or read where it has them; `scratch` as in `Streams`."""

    def __init__(
        self,
        slim: nn.Module,
        dense: nn.Module,
        attention: bool,
        kept: DenseStreams | None = None,
        scratch: Path | None = None,
    ) -> None:
        self.new, self.old = in_halves(slim, dense)
        self.road, self.last = road(self.new, attention), len(self.old.blocks) - 1
        self.read, self.device = tokens.tokens_read(dense), device_of(dense)
        self.kept = kept
        self.streams = Streams(scratch, self.device, 0 if kept is None else kept.to_come)
        self.first: dict[int, int] = {}  # by batch: the place of its first image among all
        self.at: dict[int, int] = {}  # by batch: the step that its pruned stream has been led to, −1 before all
        self.led: dict[int, int] = {}  # by batch: the place of its dense stream, where it is not kept

    def close(self) -> None:
        """Give the streams' room back now."""
        self.at.clear()
        self.streams.close()

    @torch.no_grad()
    def start(self, batches: Iterable[Tensor], number: int = 0, first: int = 0) -> int:
        """The number of batches [B, C, H, W] given; they stand before the first step now. `number` is that of the first of
        them among all batches, `first` that of its first image among all images."""
        given = 0
        for n, images in enumerate(batches, number):
            if self.kept is None or (0, n) not in self.kept:
                made = self.passed(lambda x: self.old.stream_into_blocks(x.to(self.device)), images)
                if self.kept is None:
                    self.streams.put("dense", n, made)
                else:
                    self.kept.put(0, n, made)
            self.led[n] = 0
            self.streams.put("x", n, self.dense(0, n))
            self.first[n], self.at[n] = first, -1
            first, given = first + len(images), given + 1
        return given

    def holds(self, part: range, step: int) -> bool:
        """Whether a part can be led to a step from where it stands."""
        return all(self.at.get(n, step + 1) <= step for n in part)

    @torch.no_grad()
    def learn(self, step: int, weights: Weights) -> None:
        """Put the weights of a step into the pruned model."""
        layer = self.road[step].of(self.new)
        for name, value in weights.items():
            layer.get_parameter(name).copy_(value)

    @torch.no_grad()
    def moments(self, part: range, step: int) -> Seen:
        """The moments of a step over a part; after the last step nothing of the part is held any more.

        Their origin is what the first batch of the part has in the mean. Every fifth image, by its place among all, is
        held out.
        """
        train, held_out = Rows(), Rows()
        for n in part:
            for k in range(self.at[n] + 1, step + 1):
                self.enter(k, n)
            inputs, targets = self.rows(self.road[step], n)
            held = torch.arange(self.first[n], self.first[n] + len(inputs), device=inputs.device)
            held = held % HELD_OUT == HELD_OUT - 1
            train.origin = held_out.origin = train.origin or (_mean(inputs), _mean(targets))
            train.add(inputs[~held], targets[~held])
            held_out.add(inputs[held], targets[held])
            if step == len(self.road) - 1:
                del self.at[n]
                self.streams.drop(n)
        return Seen(train.summed(), held_out.summed())

    def enter(self, k: int, n: int) -> None:
        """Lead batch n's pruned stream from the step before to step k."""
        new, step, before = self.new, self.road[k], self.road[k - 1] if k else None
        i, x = step.block, self.streams.get("x", n, self.device)
        del self.at[n]  # whatever ends this half way, it is begun again from the images
        if before is not None and before.block < i:
            x = self.passed(lambda z: new.add_ffn(i - 1, z, new.hidden(i - 1, z)), x)
        if step.layer == "proj":
            attn: Any = new.blocks[i].attn
            a = self.passed(lambda x: hooks.input_of(attn.proj, lambda: new.attention(i, x)), x)
            self.streams.put("mixed", n, a)
        if step.layer == "fc2" and before == Step(i, "proj"):
            x = self.passed(lambda x, a: new.project(i, x, a), x, self.streams.get("mixed", n, self.device))
        elif step.layer == "fc2":
            x = self.passed(lambda x: new.attend(i, x), x)
        self.streams.put("x", n, x)
        self.at[n] = k

    def rows(self, step: Step, n: int) -> tuple[Tensor, Tensor]:
        """What a step's layer sees of batch n, and what it should give: for qkv what the dense one sees in its place."""
        i, x = step.block, self.streams.get("x", n, self.device)
        if step.layer == "qkv":
            mine, theirs = (model.blocks[i].get_submodule("norm1") for model in (self.new, self.old))
            return mine(x), theirs(self.dense(2 * i, n))
        read = self.read if i == self.last else slice(None)
        if step.layer == "fc2":
            hidden = self.passed(lambda z: self.new.hidden(i, z), x[:, read])
            return hidden, (self.dense(2 * i + 2, n) - x)[:, read]
        missing = (self.dense(2 * i + 1, n) - x)[:, read]
        if step.layer == "proj":
            return self.streams.get("mixed", n, self.device)[:, read], missing
        return torch.zeros_like(missing[..., :1]), missing

    def dense(self, place: int, n: int) -> Tensor:
        """Batch n's dense stream at a place (see `DenseStreams`); not kept, only the last that was asked for is there."""
        if self.kept is not None:
            if (place, n) not in self.kept:
                self.kept.put(place, n, self.carried(place, self.dense(place - 1, n)))
            return self.kept.get(place, n, self.device)
        while self.led[n] < place:
            made = self.carried(self.led[n] + 1, self.streams.get("dense", n, self.device))
            self.streams.put("dense", n, made)
            self.led[n] += 1
        return self.streams.get("dense", n, self.device)

    def carried(self, place: int, x: Tensor) -> Tensor:
        """The dense stream at a place, from that at the place before."""
        i, half = divmod(place - 1, 2)
        if half:
            return self.passed(lambda z: self.old.add_ffn(i, z, self.old.hidden(i, z)), x)
        return self.passed(lambda x: self.old.attend(i, x), x)

    def passed(self, forward: Callable[..., Tensor], *streams: Tensor) -> Tensor:
        """`forward` of a batch, in as many pieces as it takes."""
        return pieces.joined(forward, *streams, advice=ADVICE)


def _mean(rows: Tensor) -> Tensor:
    return widened(rows.reshape(-1, rows.shape[-1])).mean(0).to(rows.dtype).to(rows.device)


def _refittable(model: Halves, i: int, name: str) -> bool:
    """A plain linear layer with a bias; a layer without one could not take over a shift of the mean, so it stays as it is."""
    layer = getattr(model.blocks[i].attn, name, None)
    return isinstance(layer, nn.Linear) and layer.bias is not None and f"blocks.{i}.attn.{name}" not in model.changed
