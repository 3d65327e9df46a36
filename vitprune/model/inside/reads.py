"""Which features of a model without a head are its output, and which of its tokens is what, whoever wrote it.

Here and not in `families`, which gives it on: nothing here asks for more of a model than these few attributes.
"""

from __future__ import annotations

from typing import Literal

from torch import nn

from vitprune.model.declared import Foreign

READ = "features_read"  # an attribute of a model without a head: which of its features are its output
PROJECTS = "head_projects_features"  # of a model whose head is no classifier, as that of CLIP's image tower
Reads = Literal["pooled", "tokens"]


def reads(model: nn.Module) -> Reads | None:
    """Which features of a model without a head are its output: every token, unless it was told otherwise; None for a
    classifier, whatever `num_classes` says of it."""
    if getattr(model, "num_classes", None) != 0:
        return None
    found = model.get_classifier() if hasattr(model, "get_classifier") else ()  # type: ignore[operator]
    heads = found if isinstance(found, tuple | list) else [found]
    if any(next(head.parameters(), None) is not None for head in heads) and not getattr(model, PROJECTS, False):
        return None
    return getattr(model, READ, "tokens")


def prefix_tokens(model: nn.Module) -> int:
    """How many tokens of the stream stand before the patches."""
    return model.layout.prefix if isinstance(model, Foreign) else int(getattr(model, "num_prefix_tokens", 0))


def has_class_token(model: nn.Module) -> bool:
    """Whether the first token of the stream is a class token, read by a head or not."""
    if isinstance(model, Foreign):
        return model.layout.prefix > 0 and model.layout.class_token
    there = getattr(getattr(model, "embeds", model), "cls_token", None) is not None
    return there and prefix_tokens(model) > 0
