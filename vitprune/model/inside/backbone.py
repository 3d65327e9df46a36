"""The backbone: a model without a classifier, whose outputs are features; beside `classifier`, and never both.

Legend: N images, T tokens of one (class token, registers, patches), D width of the features.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from vitprune.core.errors import UserError
from vitprune.model import families
from vitprune.model.declared import Foreign
from vitprune.model.families import READ, Reads

Directions = Literal["tokens", "pooled"]
DRAWN = "directions_drawn"  # an attribute of a model: along which of its outputs directions are drawn


@dataclass(frozen=True, slots=True)
class Features:
    """What a backbone gives for N images: one vector each, `pooled` [N, D'], and `tokens` [N, T, D]."""

    pooled: Tensor
    tokens: Tensor


@dataclass(frozen=True, slots=True)
class Output:
    """A backbone's output as errors of it are counted: `weight` times those of one `vector` [N, D'] per image and once those
    of `rows` [N, R, D]. The vector weighs as much as all of the rows together."""

    vector: Tensor
    rows: Tensor
    weight: float


@dataclass(frozen=True, slots=True)
class Backbone:
    """A model whose outputs are features. `reads`: which of them are the model's output, and so what costs and repairs of
    the last block look at: every token, or the pooled vector alone."""

    model: nn.Module
    reads: Reads

    def features(self, images: Tensor) -> Features:
        """Both outputs for images [N, C, H, W], from one pass.

        Tokens are what the model's `forward_features` gives, after its final norm where it has one there (a few families
        pool first and normalise what they pooled); of stages they are the last one's, row by row.
        """
        if isinstance(self.model, Foreign):
            return Features(*self.model.pooled_and_tokens(images))
        model = cast("Any", self.model)
        tokens: Tensor = model.forward_features(images)
        pooled: Tensor = model.forward_head(tokens)
        if tokens.ndim == 4:  # Swin's map [N, H, W, D]
            tokens = tokens.flatten(1, 2)
        if pooled.ndim == 3:  # a model without a pooling: its class token, else the mean
            pooled = pooled[:, 0] if self.class_token else pooled.mean(1)
        return Features(pooled, tokens)

    def output(self, features: Features, along: Directions | None = None) -> Output:
        """What of the features is read (or what `along` says). Where every token is, the vector is the class token; of a model
        without one, it is the pooled feature, which no row says."""
        pooled, tokens = features.pooled, features.tokens
        if (along or self.reads) == "pooled":
            return Output(pooled, tokens[:, :0], 1.0)
        if self.class_token:
            return Output(tokens[:, 0], tokens[:, 1:], max(1.0, tokens.shape[1] - 1.0))
        return Output(pooled, tokens, float(tokens.shape[1]))

    @property
    def class_token(self) -> bool:
        """Whether the first of the tokens is a class token."""
        return families.has_class_token(self.model)

    @property
    def prefix(self) -> int:
        """How many tokens stand before the patches."""
        return families.prefix_tokens(self.model)

    @property
    def drawn(self) -> Directions:
        """Along which outputs the directions of costs are drawn: those that are read, unless `draw_along` says otherwise."""
        return getattr(self.model, DRAWN, self.reads)


def of(model: nn.Module) -> Backbone | None:
    """The model as a backbone; None for a classifier."""
    found = families.reads(model)
    return None if found is None else Backbone(model, found)


def remove_head(model: nn.Module) -> None:
    """Nothing; a classifier becomes a backbone in place, with its pooling as it was. One without a head stays as it is.

    Raises UserError for a head that cannot be told from the rest.
    """
    if families.reads(model) is not None:
        return
    if isinstance(model, Foreign):
        model.remove_head()
        model.eval().requires_grad_(False)
        return
    reset = getattr(model, "reset_classifier", None)
    if reset is None:
        raise UserError(
            f"model.head: none: of a {type(model).__name__} the head cannot be told from the rest; load a model without one"
        )
    reset(0)
    model.eval().requires_grad_(False)


def read(model: nn.Module, features: Reads | None) -> None:
    """Nothing; says which of a backbone's features are its output (None: its tokens). Raises UserError for a classifier, and
    for `pooled` of a model that pools nothing."""
    if families.reads(model) is None:
        if features is not None:
            raise UserError(
                "model.features: the model is a classifier, whose output is logits; take its head away (model.head: none, or "
                "reset_classifier(0) of a timm model)"
            )
        return
    if features == "pooled":
        before = vars(model).get(READ)
        setattr(model, READ, features)
        try:
            families.token_layout(model)
        except UserError:
            setattr(model, READ, before)
            if before is None:
                delattr(model, READ)
            raise
    elif hasattr(model, READ):
        delattr(model, READ)


@contextmanager
def reading(model: nn.Module, features: Reads | None) -> Iterator[None]:
    """Inside, `read` of these features; outside, what was read before (None: that inside too). Copies that are made inside
    keep it."""
    before = vars(model).get(READ)
    if features is not None:
        read(model, features)
    try:
        yield
    finally:
        if features is not None:
            read(model, before)


def draw_along(model: nn.Module, directions: Directions | None) -> None:
    """Nothing; costs are worked out along these directions from now on, whatever is read (None: along what is read).

    For comparisons: what a gradient of the pooled feature alone is worth where every token is read.
    """
    if directions is not None:
        setattr(model, DRAWN, directions)
    elif hasattr(model, DRAWN):
        delattr(model, DRAWN)


@torch.no_grad()
def width(model: nn.Module) -> int:
    """D': how many numbers the pooled feature has, from a pass of an empty image."""
    found = of(model)
    assert found is not None
    return int(found.features(next(model.parameters()).new_zeros(1, *families.input_shape(model))).pooled.shape[1])
