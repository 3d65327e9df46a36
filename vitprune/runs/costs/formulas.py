"""Arithmetic and bytes of the work of a run, from the sizes of a model alone. Arithmetic is multiply-adds times two.

Legend: n hidden units of an FFN or dimensions of all heads of an attention, D width of the stream, T tokens of an image, N
images.
"""

from __future__ import annotations

from vitprune.core.least_squares import RIDGES, packed_size
from vitprune.criteria.statistics import ranks
from vitprune.pruning.repair import head, streams
from vitprune.pruning.repair.names import closed_form
from vitprune.runs.costs.facts import Layer, Shape

EIGEN = 16  # times n³ of a symmetric matrix's values and vectors: 9 of them, at half the pace of products
EVALUATIONS = 1.25  # of the loss, a step of the classifier's fit
FORWARD = 1.5  # passes of the slim model that a repair block by block takes


def elimination(n: int, width: int) -> float:
    """Of one unit after the other: the inverse, a row of products each, and an update of both matrices every few."""
    return 8 / 3 * n**3 + 2.0 * n**2 * min(n, width)


def of_ffns(shape: Shape) -> list[float]:
    """Eliminations of every FFN's units."""
    return [elimination(layer.units, layer.width) for layer in shape.ffns]


def of_attentions(shape: Shape) -> list[float]:
    """Eliminations of every attention's dimensions, for each number of heads that are left."""
    return [
        sum(elimination(heads * a.dim, a.width) for heads in range(1, a.heads + 1)) for a in shape.attentions
    ]  # fmt: skip


def roots(shape: Shape, attention: bool) -> float:
    """The square roots of every layer's matrix: one of an FFN, one for each number of heads of an attention."""
    every = sum(EIGEN * layer.width**3 for layer in shape.ffns)
    return every + sum((a.heads + 1) * EIGEN * a.width**3 for a in shape.attentions if attention)


def ranked(a: Layer) -> int:
    """Images that the ranks of an attention's queries and keys are measured on."""
    return max(ranks.IMAGES, -(-ranks.ROWS * a.units // a.tokens)) if a.smaller else 0


def ranking(shape: Shape, images: int) -> float:
    """The ranks of queries and keys: at each of them attention, and sums of what it gives beside what the whole gives."""
    total = 0.0
    for a in shape.attentions:
        rows = min(ranked(a), images) * a.tokens
        total += a.smaller * (rows * (8.0 * a.units**2 + 8.0 * a.tokens * a.units) + EIGEN * a.units**3)
    return total


def sums_bytes(shape: Shape, attention: bool, fisher: bool) -> int:
    """Bytes of a criterion's sums: a packed matrix of every layer's units, and one of its gradients."""
    layers = [*shape.ffns, *(shape.attentions if attention else ())]
    return sum(8 * (packed_size(layer.units) + (layer.width**2 if fisher else 0)) for layer in layers)


def curves_bytes(shape: Shape, attention: bool) -> int:
    """Bytes of the curves: of FFNs an order and its costs, of attentions rotations for each number of heads."""
    of_heads = sum(16 * a.heads * (a.heads + 1) // 2 * a.dim**2 + 16 * a.heads * a.dim**2 for a in shape.attentions)
    return sum(16 * layer.units for layer in shape.ffns) + (of_heads if attention else 0)


def scores_bytes(shape: Shape, classes: int, images: int, t: int) -> int:
    """Bytes of the scores of single images at one t: counts (2 bytes) and means (4) of every class, every image's path."""
    return sum(6 * classes * layer.units for layer in shape.ffns) + images * len(shape.ffns) * t * 8


def streams_bytes(shape: Shape, images: int) -> int:
    """Bytes of the dense model's stream of so many images at all places between halves of blocks."""
    return 4 * images * (2 * len(shape.ffns) + 1) * max(layer.tokens * layer.width for layer in shape.ffns)


def carried_bytes(shape: Shape, images: int) -> int:
    """Bytes of the streams that a repair carries from block to block: the slim model's, what its attention gives, and the
    dense model's where those of all places are not kept."""
    return 4 * images * max(layer.tokens * (2 * layer.width + layer.width) for layer in shape.ffns)


def spilled(size: int, room: float = streams.IN_MEMORY) -> int:
    """Bytes of streams that lie in the run's folder, where memory has room for so many."""
    return int(max(0, size - room))


def refitting(shape: Shape, repair: str, share: float, images: int) -> tuple[float, float]:
    """A repair's own arithmetic without its passes, in float32 and in float64: sums of what goes into each layer that is
    fitted and of what should come out, and a solution for each ridge; `share` of the units and dimensions is left."""
    kind, fitted = closed_form(repair), list[tuple[int, float, float]]()
    for layer in shape.ffns:
        fitted += [(layer.tokens, share * layer.units, layer.width)] if kind in ("sequential", "layerwise") else []
    for a in shape.attentions if kind == "layerwise" else ():
        fitted += [(a.tokens, a.width, a.width), (a.tokens, share * a.units, a.width)]
    single = sum(2.0 * images * tokens * (packed_size(round(p)) + p * q) for tokens, p, q in fitted)
    double = sum((len(RIDGES) + 1) * (2 / 3 * p**3 + 4 * p**2 * q) for _, p, q in fitted)
    if kind in ("mean", "affine"):
        double += sum(2 / 3 * layer.units**3 + 4 * (share * layer.units) ** 2 * layer.units for layer in shape.ffns)
    if repair.endswith("head"):
        double += heading(shape, images)
    return single, double


def heading(shape: Shape, images: int) -> float:
    """The fit of the classifier: every ridge and the last once more, each step a pass over all features and back."""
    seen, width = min(images, max(1, head.ENTRIES // shape.outputs)), max(layer.width for layer in shape.ffns)
    return (len(head.RIDGES) + 1) * head.STEPS * EVALUATIONS * 6.0 * seen * width * shape.outputs


def passes(repair: str, share: float, images: int, outputs: int, dense_kept: bool) -> float:
    """Forward passes of the dense model that a repair from so many images comes to. The dense model runs along once, unless
    its streams are kept."""
    total, kind = 0.0, closed_form(repair)
    if kind in ("sequential", "layerwise"):
        total += images * (FORWARD * share + (0 if dense_kept else 1))
    if repair.endswith("head"):
        total += min(images, max(1, head.ENTRIES // outputs)) * (1 + share)
    return total
