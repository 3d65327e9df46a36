"""Which token of a text with an image is what, and samples put together to batches.

Kinds follow from the ids when a sample is made: a token is visual where its id is the image token's, text from `start` on
(what the pair says, not the prompt around it), ignored elsewhere. The first token of a sequence and the beginning-of-text
token are sinks: whatever they look like, they are ignored, and no maximum is taken over them.
Legend: B samples, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from vitprune.core.errors import UserError

TYPES = ("visual", "text", "multimodal", "unknown")  # what a unit may answer to; a unit's type is a number into these


@dataclass(frozen=True, slots=True)
class Sample:
    """One pair as a model reads it: ids [T], where its text starts, and what the processor made of its image."""

    ids: Tensor
    start: int
    extras: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Kinds:
    """Of every token [B, T] bool: visual, text, a sink, or there at all (`real`; the rest is padding)."""

    visual: Tensor
    text: Tensor
    sink: Tensor
    real: Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """Samples side by side: what the model is called with, and the kinds of their tokens."""

    inputs: Mapping[str, Tensor]
    kinds: Kinds

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        kinds = (self.kinds.visual, self.kinds.text, self.kinds.sink, self.kinds.real)
        return Batch({k: v.to(device) for k, v in self.inputs.items()}, Kinds(*(one.to(device) for one in kinds)))


def image_token(config: Any) -> int:
    """The id of the token that stands for a piece of an image. Raises UserError where a configuration has none."""
    for name in ("image_token_id", "image_token_index"):
        found = getattr(config, name, None)
        if isinstance(found, int) and not isinstance(found, bool) and found >= 0:
            return found
    raise UserError("model: its configuration has no image_token_id, so no token is known to be visual")


def first_tokens(config: Any) -> set[int]:
    """The ids of beginning-of-text tokens, of the whole configuration and its language model."""
    found = {getattr(one, "bos_token_id", None) for one in (config, getattr(config, "text_config", None))}
    return {one for one in found if isinstance(one, int)}


def kinds_of(ids: Tensor, starts: Sequence[int], lengths: Sequence[int], image: int, first: set[int]) -> Kinds:
    """The kinds of ids [B, T], of sequences of `lengths` tokens whose texts begin at `starts`."""
    place = torch.arange(ids.shape[1])[None]
    real = place < torch.tensor(list(lengths))[:, None]
    sink = real & ((place == 0) | torch.isin(ids, torch.tensor(sorted(first), dtype=ids.dtype)))
    visual = real & (ids == image) & ~sink
    text = real & (place >= torch.tensor(list(starts))[:, None]) & ~visual & ~sink
    return Kinds(visual, text, sink, real)


def collate(samples: Sequence[Sample], config: Any) -> Batch:
    """Samples as one batch, the shorter ones padded at their end."""
    image, lengths = image_token(config), [len(sample.ids) for sample in samples]
    ids = torch.full((len(samples), max(lengths)), 0 if image else 1)
    for row, sample in zip(ids, samples, strict=True):
        row[: len(sample.ids)] = sample.ids
    kinds = kinds_of(ids, [sample.start for sample in samples], lengths, image, first_tokens(config))
    inputs = {"input_ids": ids, "attention_mask": kinds.real.long()}
    for name in samples[0].extras:
        inputs[name] = torch.cat([sample.extras[name] for sample in samples])
    if "image_grid_thw" in inputs:  # of models with three positions per token
        inputs["mm_token_type_ids"] = (ids == image).int()
    return Batch(inputs, kinds)


def batches(samples: Sequence[Sample], config: Any, size: int) -> Iterator[tuple[range, Batch]]:
    """The samples in order, at most `size` a batch, with their places; those of one batch have images of one shape."""
    start = 0
    while start < len(samples):
        stop = start + 1
        while stop < min(len(samples), start + size) and _shape(samples[stop]) == _shape(samples[start]):
            stop += 1
        yield range(start, stop), collate(samples[start:stop], config)
        start = stop


def _shape(sample: Sample) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape[1:]) for name, value in sample.extras.items()}


def call(model: nn.Module, batch: Batch) -> Tensor:
    """The logits [B, T, V] of a batch; nothing is kept for a next token."""
    made: Any = model(**batch.inputs, use_cache=False)
    logits: Tensor = made.logits
    return logits


def text_logits(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """The logits [R, V] that predict the text tokens of a batch, and these tokens [R], sample by sample; a sequence's first
    token is predicted by nothing. What stands before the texts is not read out."""
    text = batch.kinds.text[:, 1:]
    first = int(text.any(0).nonzero()[0]) if bool(text.any()) else 0
    length = batch.kinds.real.shape[1]
    made: Any = model(**batch.inputs, use_cache=False, logits_to_keep=length - first)
    return made.logits[:, :-1][text[:, first:]], batch.inputs["input_ids"][:, 1:][text]
