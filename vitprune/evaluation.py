"""Accuracy, probabilities, parameters and MACs; the only reader of the test split.

Legend: N test images, C outputs, n hidden units of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from scipy.stats import binomtest
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vitprune import hooks, models, pieces
from vitprune.data import Images
from vitprune.errors import UserError
from vitprune.types import FfnSite, Metrics, Split

BOOTSTRAPS = 2000
ADVICE = "evaluate: not enough memory for a single image; free some, or take a device with more"
Predictor = Callable[..., Tensor]


def predictor(model: nn.Module) -> Predictor:
    """Images [B, C, H, W] on the CPU → logits [B, C] on the CPU, float32; the same bits where a batch needs several passes."""
    device = models.device_of(model)

    @torch.inference_mode()
    def predict(images: Tensor) -> Tensor:
        return pieces.joined(lambda x: model(x.to(device)).float().cpu(), images, advice=ADVICE)

    return predict


def test_logits(
    predict: Predictor, images: Images, split: Split, batch: int, only: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Logits [N, C] float32 and labels [N] on the test split, or on those of its images whose label is in `only`.

    Raises UserError for logits that are not finite.
    """
    index = test_indices(images, split, only)
    logits = np.concatenate([_fitting(predict, x) for x, _ in images.batches(index, batch)])
    if not np.isfinite(logits).all():
        first = images.source.names[int(index[np.flatnonzero(~np.isfinite(logits).all(1))[0]])]
        raise UserError(f"evaluate: the model gave logits that are not finite, first for {first}; check its weights")
    return logits, images.labels[index]


def _fitting(predict: Predictor, x: Tensor, *more: Tensor) -> np.ndarray:
    """Logits [B, C] of a batch, in pieces where it does not fit; `more` [B, …] goes along row by row."""
    return pieces.joined(predict, x, *more, advice=ADVICE).numpy()


def test_indices(images: Images, split: Split, only: np.ndarray | None = None) -> np.ndarray:
    """Test images whose label is in `only` (None: all of them)."""
    return split.test if only is None else split.test[np.isin(images.labels[split.test], only)]


def metrics(logits: np.ndarray, labels: np.ndarray, head: Sequence[int] | None = None, seed: int = 0) -> Metrics:
    """Scores of logits [N, C] against labels [N]; `head` masks the other outputs before softmax and argmax.

    The interval is `interval`'s. Raises ValueError for no images or logits that are not finite.
    """
    if not len(labels):
        raise ValueError("no test images of these classes")
    if not np.isfinite(logits).all():
        raise ValueError("the model gave logits that are not finite")
    logits = _closed(logits.astype(np.float64), head)
    hit = logits.argmax(1) == labels
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    true_probability = shifted[np.arange(len(labels)), labels] / shifted.sum(1)
    with np.errstate(invalid="ignore"):
        of_class = [
            float(hit[labels == c].mean()) if (labels == c).any() else float("nan") for c in range(logits.shape[1])
        ]
    return Metrics(float(hit.mean()), interval(hit, seed), float(true_probability.mean()), of_class, len(hit))


def interval(hit: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """95 % interval of the share that is right: percentile bootstrap over images, Wilson's where that is a single point.

    All right or all wrong, every draw is the same; nine of nine right is no proof of 100 %, though.
    """
    if hit.all() or not hit.any():
        return wilson(int(hit.sum()), len(hit))
    draws = np.random.default_rng(seed).integers(0, len(hit), (BOOTSTRAPS, len(hit)), dtype=np.int32)
    low, high = map(float, np.percentile(hit[draws].mean(1), [2.5, 97.5]))
    return (low, high) if low < high else wilson(int(hit.sum()), len(hit))


def wilson(right: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of `right` out of `n`: never a single point, never outside 0 to 1."""
    found = binomtest(right, n).proportion_ci(method="wilson")
    return float(found.low) if right else 0.0, float(found.high) if right < n else 1.0


def hits(logits: np.ndarray, labels: np.ndarray, head: Sequence[int] | None = None) -> np.ndarray:
    """Which images the logits [N, C] get right, bool [N]; `head` as in `metrics`."""
    return _closed(logits, head).argmax(1) == labels


def _closed(logits: np.ndarray, head: Sequence[int] | None) -> np.ndarray:
    """The logits with the outputs outside `head` at minus infinity."""
    if head is None:
        return logits
    closed = np.ones(logits.shape[1], bool)
    closed[list(head)] = False
    return np.where(closed, -np.inf, logits)


def mcnemar(one: np.ndarray, other: np.ndarray) -> float:
    """Exact two-sided McNemar test: the p-value of as lopsided a split of the images that only one of the two got right."""
    only, not_only = int((one & ~other).sum()), int((other & ~one).sum())
    return 1.0 if only + not_only == 0 else float(binomtest(only, only + not_only).pvalue)


def oracle_logits(
    model: nn.Module,
    sites: Sequence[FfnSite],
    keep_CN: Sequence[Tensor],
    images: Images,
    index: np.ndarray,
    batch: int,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> tuple[np.ndarray, np.ndarray]:
    """The paper's protocol: class token only, the mask of the image's TRUE label; logits and labels of `index`.

    An oracle-routed figure: nobody knows the true label at deployment. `keep_CN` is per block bool [C, n].
    """
    device = models.device_of(model)

    def predict(x: Tensor, y: Tensor) -> Tensor:
        rows = [keep[y].to(device) for keep in keep_CN]
        with torch.inference_mode(), hooks.masked_class_token(model, sites, rows):
            return model(x.to(device)).float().cpu()

    outputs = []
    starts = progress(range(0, len(index), batch))
    for _, (x, y) in zip(starts, images.batches(index, batch), strict=True):
        outputs.append(_fitting(predict, x, y))
    return np.concatenate(outputs), images.labels[index]


def parameters(model: nn.Module) -> int:
    """Number of weights."""
    return sum(p.numel() for p in model.parameters())


def macs(model: nn.Module) -> int:
    """Multiply-adds of one image: half of torch's FLOP count (linear, convolution and attention products).

    Attention is written out as products: which fused kernels torch counts differs between its releases and devices.
    """
    example = next(model.parameters()).new_zeros(1, *models.input_shape(model))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        model(example)
    return counter.get_total_flops() // 2
