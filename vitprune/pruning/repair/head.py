"""Repair of the classifier: its last layer, fitted to what the dense model predicts; no labels.

With f what the layer reads in the slim model, p the dense model's probabilities and W0 the layer's weights:

    min over W, b of   mean KL(p ‖ softmax(W f + b)) + r/2 ‖(W − W0)·sd(f)‖²

which is convex. r is what a fifth of the images, kept from the fit, likes best; where they like the old layer best it stays.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

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
TOGETHER = 512  # images at once, of the fit
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
    layer, read, target = classifier.layers_of(slim)[0], list[Tensor](), list[Tensor]()
    for features, of_dense in told(slim, dense, batches) if seen is None else seen:
        read.append(widened(features))
        target.append(widened(of_dense).softmax(-1))
    every = torch.cat(target)
    del target
    weight, bias = fitted(torch.cat(read), every, widened(layer.weight), widened(layer.bias))
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
    seen = Seen((features - mean) / scale, features @ weight.T + bias, target)
    of_fit, of_choice, every = (~held).nonzero()[:, 0], held.nonzero()[:, 0], torch.arange(len(held)).to(held.device)
    zero = torch.zeros_like(weight), torch.zeros_like(bias)
    made, chosen, best = zero, None, seen.kl(of_choice, *zero)[0]
    for ridge in RIDGES:  # from the strongest on, each from where the one before has come to
        made = _solve(seen, of_fit, ridge, made)
        error = seen.kl(of_choice, *made)[0]
        if error < best:
            best, chosen = error, ridge
    if chosen is None:
        return weight, bias
    turned, shift = _solve(seen, every, chosen, zero)
    turned = turned / scale
    return weight + turned, bias + shift - turned @ mean


@dataclass(frozen=True, slots=True)
class Seen:
    """Standardised features z [N, D], the old layer's logits and the dense model's probabilities [N, C] of the same images."""

    z: Tensor
    start: Tensor
    target: Tensor

    def kl(self, rows: Tensor, weight: Tensor, bias: Tensor) -> tuple[float, Tensor, Tensor]:
        """Mean KL(target ‖ softmax) over the images `rows` without the target's own entropy, in nats, with weights [C, D] and
        biases [C] added; and its gradients. A few images at a time: a table of all of them is large."""
        total, of_weight, of_bias = 0.0, torch.zeros_like(weight), torch.zeros_like(bias)
        for some in rows.split(TOGETHER):
            z, target = self.z[some], self.target[some]
            log_q = (self.start[some] + z @ weight.T + bias).log_softmax(-1)
            total -= float((target * log_q).sum())
            error = log_q.exp_().sub_(target)
            of_weight += error.T @ z
            of_bias += error.sum(0)
        return total / len(rows), of_weight / len(rows), of_bias / len(rows)


def _solve(seen: Seen, rows: Tensor, ridge: float, begin: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """What is added to weights [C, D] on standardised features and to biases [C], at one ridge, by the images `rows`."""
    weight, bias = (part.clone() for part in begin)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=STEPS, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def loss() -> float:
        made, of_weight, bias.grad = seen.kl(rows, weight, bias)
        weight.grad = of_weight.add_(weight, alpha=ridge)
        return made + ridge / 2 * float(weight.square().sum())

    optimiser.step(loss)
    return weight, bias
