"""One set of weights in a trainer's file, and how it differs from what a model needs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vitprune.model.declared import Foreign

WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}  # torch puts these anywhere in a name


TOP = "."  # names the file's own top level


@dataclass(frozen=True, slots=True)
class Reading:
    """One set of weights: `tensors` by the names after `prefix`, `beside` what else its dictionary has."""

    where: tuple[str, ...]
    prefix: str
    spelled: str  # the prefix with torch's wrappers, as the file has it
    tensors: dict[str, Tensor]
    beside: list[str]

    @property
    def name(self) -> str:
        """What model.checkpoint_key calls it."""
        return ".".join([*self.where, *filter(None, [self.spelled.rstrip(".")])]) or TOP

    def answers_to(self, key: str) -> bool:
        """Whether `key` is a part of the name: `teacher` of `state_dict.teacher`."""
        parts, asked = self.name.split("."), key.split(".")
        return any(parts[i : i + len(asked)] == asked for i in range(len(parts)))


def inner(model: nn.Module) -> nn.Module:
    """What a file's names are names of: another library's model without our wrapper."""
    return model.net if isinstance(model, Foreign) else model


@dataclass(frozen=True, slots=True)
class Misfit:
    """How a set differs from a model: names that one of them lacks, and shapes (file, model) that are not equal."""

    missing: dict[str, list[int]]
    unexpected: dict[str, list[int]]
    shapes: dict[str, tuple[list[int], list[int]]]
    kinds: dict[str, str]

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.shapes or self.kinds)

    @classmethod
    def of(cls, reading: Reading, model: nn.Module) -> Misfit:
        net, have = inner(model), reading.tensors
        wanted = net.state_dict()
        made_again = {name: value for name, value in net.named_buffers() if name not in wanted}  # such as masks
        both = {name: (have[name], wanted[name]) for name in wanted if name in have}
        return cls(
            {name: list(value.shape) for name, value in wanted.items() if name not in have},
            {
                name: list(value.shape)
                for name, value in have.items()
                if name not in wanted and not (name in made_again and made_again[name].shape == value.shape)
            },
            {name: (list(a.shape), list(b.shape)) for name, (a, b) in both.items() if a.shape != b.shape},
            {name: str(a.dtype) for name, (a, b) in both.items() if b.is_floating_point() and not _plain(a)},
        )


def _plain(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.layout == torch.strided and not tensor.is_meta


def _telling(name: str) -> int:
    """What says most of a difference comes first: the patches, the positions, the head."""
    order = ("patch_embed", "conv_proj", "patch_embeddings", "pos", "head", "classifier")
    return next((rank for rank, word in enumerate(order) if word in name), len(order))
