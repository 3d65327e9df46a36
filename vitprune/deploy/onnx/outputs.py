"""What an ONNX file gives: logits, or of a backbone `features` and, where all of them were kept, `tokens`.

Legend: B images, T tokens of one, D width, D' of the feature.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from vitprune.model.inside import backbone
from vitprune.model.inside.backbone import Backbone

LOGITS, FEATURES, TOKENS = "logits", "features", "tokens"


class Told(nn.Module):
    """Images [B, C, H, W] → `features` [B, D'] and `tokens` [B, T, D], class token and registers first; of a backbone whose
    output is the pooled vector alone, only that."""

    def __init__(self, found: Backbone) -> None:
        super().__init__()
        self.model, self.reads = found.model, found.reads
        self.eval()

    def extra_repr(self) -> str:
        """Which outputs there are."""
        return self.reads

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """The outputs in the order of `names_of`."""
        found = cast("Backbone", backbone.of(self.model)).features(images)
        return (found.pooled, found.tokens) if self.reads == "tokens" else (found.pooled,)


def names_of(model: nn.Module) -> list[str]:
    """The names of the outputs of the model's file."""
    found = backbone.of(model)
    return [LOGITS] if found is None else [FEATURES, TOKENS] if found.reads == "tokens" else [FEATURES]


def told(model: nn.Module) -> nn.Module:
    """The module that gives a file's outputs: the classifier itself, or both features of a backbone."""
    found = backbone.of(model)
    return model if found is None else Told(found)
