"""The classifier of a specialist: outputs for its own classes only, and their logits in the dense model's numbering.

Legend: N images, C outputs of the dense model, K of the specialist.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from vitprune.errors import UserError

FAR = 100.0  # nats below the lowest own logit: finite, and no probability in any precision


@torch.no_grad()
def narrow(model: nn.Module, outputs: Sequence[int]) -> None:
    """Leave only these of the model's C outputs, in this order, in place; the logits that stay are what they were.

    Raises UserError for a classifier that is not made of linear layers with one row per output.
    """
    rows = torch.as_tensor(list(outputs))
    for layer in layers_of(model):
        for name, values in list(layer.named_parameters(recurse=False)):
            kept = values[rows.to(values.device)].clone()
            setattr(layer, name, nn.Parameter(kept, requires_grad=values.requires_grad))
        layer.out_features = len(rows)
    model.num_classes = len(rows)  # type: ignore[assignment]


def layers_of(model: nn.Module) -> list[nn.Linear]:
    """The layers that `narrow` cuts; nothing is changed. Raises UserError as it does."""
    made = []
    for layer in _classifier(model):
        if not isinstance(layer, nn.Linear) or layer.out_features != model.num_classes:
            kind = type(layer).__name__
            raise UserError(f"head: own: the classifier is a {kind} without a row per class; take head: all")
        made.append(layer)
    return made


def _classifier(model: nn.Module) -> list[nn.Module]:
    """Every layer that ends in the outputs: what timm says, or the heads and classifiers by name."""
    if hasattr(model, "get_classifier"):
        found = model.get_classifier()  # type: ignore[operator]
        return list(found) if isinstance(found, tuple | list) else [found]
    last = {name: name.rpartition(".")[2] for name, _ in model.named_modules()}
    named = [model.get_submodule(name) for name, end in last.items() if end == "head" or end.endswith("classifier")]
    return named or [model]


def widen(logits_NK: np.ndarray, outputs: Sequence[int], total: int) -> np.ndarray:
    """Logits [N, K] of a narrowed model as [N, C]: outputs that are gone lie far below all others, but finite."""
    if logits_NK.shape[1] == total:
        return logits_NK
    wide = np.repeat(logits_NK.min(1, keepdims=True) - np.float32(FAR), total, axis=1)
    wide[:, list(outputs)] = logits_NK
    return wide
