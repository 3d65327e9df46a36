"""Repair of the classifier: its last layer, fitted to what the dense model predicts; no labels.

With f what the layer reads in the slim model, p the dense model's probabilities and W0 the layer's weights:

    min over W, b of   mean KL(p ‖ softmax(W f + b)) + r/2 ‖(W − W0)·sd(f)‖²

which is convex. r is what a fifth of the images, kept from the fit, likes best; where they like the old layer best it stays.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from vitprune.core.device import device_of, widened
from vitprune.core.errors import UserError
from vitprune.model import classifier
from vitprune.model.inside import hooks, pieces

RIDGES = (1.0, 1e-1, 1e-2, 1e-3, 1e-4)
STEPS = 60
ENTRIES = 1 << 26  # of the table of probabilities: no more images are read
HELD_OUT = 5  # every fifth image
ADVICE = "repair: not enough memory for a single image; free some, or take a device with more"


def why_not(model: nn.Module) -> str | None:
    """Why the classifier cannot be refitted; None where it can: one linear layer with a bias that ends in the outputs."""
    try:
        layers = classifier.layers_of(model)
    except UserError as error:
        return str(error)
    if len(layers) != 1:
        return f"the classifier has {len(layers)} layers side by side"
    return "the classifier has no bias" if layers[0].bias is None else None


@torch.no_grad()
def refit(
    slim: nn.Module, dense: nn.Module, batches: Iterable[Tensor], seen: Iterable[tuple[Tensor, Tensor]] | None = None
) -> None:
    """Rewrite the classifier of `slim` in place from batches of images [B, C, H, W], or from what others have `told` of them.
    Raises UserError where it is another than one linear layer."""
    why = why_not(slim)
    if why is not None:
        raise UserError(f"recovery: {why}; take layerwise without head")
    layer, read, logits = classifier.layers_of(slim)[0], list[Tensor](), list[Tensor]()
    for features, of_dense in told(slim, dense, batches) if seen is None else seen:
        read.append(widened(features))
        logits.append(widened(of_dense))
    start = widened(layer.weight), widened(layer.bias)
    weight, bias = fitted(torch.cat(read), torch.cat(logits).softmax(-1), *start)
    layer.weight.copy_(weight.to(layer.weight.dtype))
    layer.bias.copy_(bias.to(layer.bias.dtype))


@torch.no_grad()
def told(slim: nn.Module, dense: nn.Module, batches: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """What the classifier of `slim` reads [B, D] and the logits of `dense` [B, C], batch by batch, of no more images than
    `most` and the rest of a batch."""
    layer, seen = classifier.layers_of(slim)[0], 0
    for images in batches:
        if seen >= most(slim):
            return
        x = images.to(device_of(dense))
        features = pieces.joined(lambda x: hooks.input_of(layer, lambda: slim(x)), x, advice=ADVICE)
        if features.ndim != 2:
            raise UserError(
                "recovery: the classifier reads more than one vector of an image; take layerwise without head"
            )
        yield features, pieces.joined(dense, x, advice=ADVICE)
        seen += len(images)


def most(model: nn.Module) -> int:
    """Images that are enough for the classifier's repair."""
    return max(1, ENTRIES // classifier.layers_of(model)[0].out_features)


def fitted(features: Tensor, target: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The new weight [C, D] and bias [C] for features [N, D] and the dense model's probabilities [N, C]; float64."""
    held = torch.arange(len(features), device=features.device) % HELD_OUT == HELD_OUT - 1
    if not bool(held.any()):
        return weight, bias
    mean, scale = features.mean(0), features.std(0).clamp_min(1e-12)
    z = (features - mean) / scale
    start = features @ weight.T + bias
    best, chosen = _kl(target[held], start[held]), None
    zero = torch.zeros_like(weight), torch.zeros_like(bias)
    made = zero
    for ridge in RIDGES:  # from the strongest on, each from where the one before has come to
        made = _solve(z[~held], start[~held], target[~held], ridge, made)
        error = _kl(target[held], start[held] + z[held] @ made[0].T + made[1])
        if error < best:
            best, chosen = error, ridge
    if chosen is None:
        return weight, bias
    turned, shift = _solve(z, start, target, chosen, zero)
    turned = turned / scale
    return weight + turned, bias + shift - turned @ mean


def _kl(target: Tensor, logits: Tensor) -> float:
    """Mean KL(target ‖ softmax(logits)) without the target's own entropy, nats."""
    return -float((target * logits.log_softmax(-1)).sum(-1).mean())


def _solve(
    z: Tensor, start: Tensor, target: Tensor, ridge: float, begin: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """What is added to weights [C, D] on standardised features z [N, D] and to biases [C], at one ridge."""
    weight, bias = (part.clone().requires_grad_() for part in begin)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=STEPS, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        log_q = (start + z @ weight.T + bias).log_softmax(-1)
        made = ridge / 2 * weight.square().sum() - (target * log_q).sum(-1).mean()
        made.backward()
        return made

    with torch.enable_grad():
        optimiser.step(loss)
    return weight.detach(), bias.detach()
