"""The classifier: how many outputs it has; a specialist's, for its own classes only, and its logits in the dense model's
numbering.

Legend: N images, C outputs of the dense model, K of the specialist.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from vitprune.core.errors import UserError
from vitprune.model import plain
from vitprune.model.declared import Foreign
from vitprune.model.families import input_shape

FAR = 100.0  # nats below the lowest own logit: finite, and no probability in any precision


def outputs(model: nn.Module) -> int:
    """C: how many outputs the classifier has, whatever `num_classes` says of it.

    Raises UserError naming a head that is no classifier (timm leaves an Identity where num_classes is 0).
    """
    heads = _classifier(model)
    for path, head in heads.items():
        if next(head.parameters(), None) is None:
            raise UserError(
                f"model.{path}: is {type(head).__name__}, the model has no classifier, its outputs are features; give it "
                "one (num_classes, or model.args: {num_classes: …} in a recipe, and weights that have it)"
            )
    sizes = {head.out_features for head in heads.values() if type(head) is nn.Linear}
    if not isinstance(model, Foreign) and len(sizes) == 1 and all(type(head) is nn.Linear for head in heads.values()):
        return int(sizes.pop())
    return _width_of_logits(model)


@torch.no_grad()
def _width_of_logits(model: nn.Module) -> int:
    """C, from a pass of an empty image."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        made = model.eval()(next(model.parameters()).new_zeros(1, *input_shape(model)))
    finally:
        for module, training in modes:
            module.training = training
    if not isinstance(made, torch.Tensor) or made.ndim != 2:
        shape = list(made.shape) if isinstance(made, torch.Tensor) else type(made).__name__
        raise UserError(f"model: gives {shape} for one image; a classifier's logits [N, C] are needed")
    return int(made.shape[1])


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
    made, count, places = [], outputs(model), plain.shared(model)
    for path, layer in _classifier(model).items():
        if not isinstance(layer, nn.Linear) or layer.out_features != count:
            kind = type(layer).__name__
            raise UserError(f"head: own: the classifier is a {kind} without a row per class; take head: all")
        plain.require(f"head: own: {path}", layer, plain.LINEAR)
        if any(id(weight) in places for weight in layer.parameters()):
            raise UserError(f"head: own: {path} shares its weights with another layer; take head: all")
        made.append(layer)
    return made


def _classifier(model: nn.Module) -> dict[str, nn.Module]:
    """Path → layer of all that end in the outputs: what timm says, or the heads and classifiers by name."""
    if hasattr(model, "get_classifier"):
        found = model.get_classifier()  # type: ignore[operator]
        layers = list(found) if isinstance(found, tuple | list) else [found]
        paths = {id(module): path for path, module in model.named_modules()}
        return {paths.get(id(layer), "head"): layer for layer in layers}
    last = {name: name.rpartition(".")[2] for name, _ in model.named_modules()}
    named = [name for name, end in last.items() if end in ("head", "heads") or end.endswith("classifier")]
    inner = [name for name in named if not any(other.startswith(f"{name}.") for other in named)]
    return {name: model.get_submodule(name) for name in inner} or {"": model}


def widen(logits_NK: np.ndarray, outputs: Sequence[int], total: int) -> np.ndarray:
    """Logits [N, K] of a narrowed model as [N, C]: outputs that are gone lie far below all others, but finite."""
    if logits_NK.shape[1] == total:
        return logits_NK
    wide = np.repeat(logits_NK.min(1, keepdims=True) - np.float32(FAR), total, axis=1)
    wide[:, list(outputs)] = logits_NK
    return wide
