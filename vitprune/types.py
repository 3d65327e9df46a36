"""The records that pass between the stages; this file imports nothing of ours.

Legend: N images, C classes, L blocks, n hidden units of a block, t units kept per image and block.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:  # recipes are read, and checked, without either
    import numpy as np
    from torch import Tensor

Recovery = Literal[
    "none", "mean", "affine", "sequential", "layerwise",
    "distill", "mean+distill", "affine+distill", "sequential+distill", "layerwise+distill",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class FfnSite:
    """One FFN: block index, module paths of its layers inside the model, hidden width n.

    A gated FFN's hidden unit is the product of value and gate: `gate` is the layer beside `fc1` that makes the gate, or
    `parts` is 2 and fc1 holds both (rows j and n + j are unit j). Rows of fc1 after those belong to something else (`split`
    is then the block that cuts them apart). `norm` stands between the hidden units and fc2.
    """

    block: int
    fc1: str
    act: str
    fc2: str
    width: int
    gate: str | None = None
    parts: int = 1
    norm: str | None = None
    split: str | None = None

    @property
    def layers(self) -> tuple[str, ...]:
        """Every module that holds weights of hidden units."""
        return tuple(path for path in (self.fc1, self.gate, self.norm, self.fc2) if path is not None)


@dataclass(frozen=True, slots=True)
class TokenLayout:
    """Which tokens of the stream [B, T, D] are what: how many are no patches, whether the first is a class token that the
    head reads, and which of them the head reads at all (`start`, `stop`). `plain`: one stream for all blocks."""

    prefix: int
    class_token: bool
    start: int = 0
    stop: int | None = None
    plain: bool = True


@dataclass(frozen=True, slots=True)
class Attribution:
    """How a score integrates gradients over α; one setting for the whole of a discovery.

    `formula`: the paper's product of sums, or joint integrated gradients (Σ w̄·∂p). `candidates`: all units of a block
    scaled together, or `each` alone (Definition 1; with `shortlist`, only that many of the parallel pass). `nodes` of
    the `quadrature` rule. `tokens`: where a unit's value is assigned. `reference`: as the authors' code does it. `precision`
    of the matrix products; sums stay in the model's own type. `low`, `form`, `labels`: joint gates only.
    `epochs`, `rate` (AdamW's), `pressure` (weight of Σ|ζ|), `train_weights`: ViT-Slim only.
    """

    formula: Literal["jas", "joint-ig"] = "jas"
    candidates: Literal["parallel", "each"] = "parallel"
    shortlist: int | None = None
    quadrature: Literal["left", "right", "midpoint", "gauss-legendre"] = "gauss-legendre"
    nodes: int = 5
    tokens: Literal["cls", "patches", "all"] = "cls"
    objective: Literal["probability", "logit", "log-probability"] = "probability"
    reference: bool = False
    precision: Literal["float32", "bfloat16"] = "float32"
    low: float = 0.0
    form: Literal["signed", "absolute", "squared"] = "signed"
    labels: Literal["true", "sampled"] = "true"
    seed: int = 0
    epochs: int = 10
    rate: float = 5e-4
    pressure: float = 1e-4
    train_weights: bool = False


@dataclass(frozen=True, slots=True)
class Split:
    """Probe and test indices into an image source, disjoint; per class `probe_share`, None where both were given."""

    seed: int
    probe_share: float | None
    probe: np.ndarray
    test: np.ndarray

    def __post_init__(self) -> None:
        if set(self.probe.tolist()) & set(self.test.tolist()):
            raise ValueError("probe and test share images")


@dataclass(frozen=True, slots=True)
class PathSet:
    """Neuron paths in columns: image [N] int64, label [N] int64, units [N, L, t] int32, scores [N, L, t] float32.

    Units of one image and block are in descending order of score.
    """

    image: np.ndarray
    label: np.ndarray
    units: np.ndarray
    scores: np.ndarray


@dataclass(frozen=True, slots=True)
class Scores:
    """What a criterion returns: per block [C, n] float32, larger is kept first; C is 1 when it knows no classes.

    `ties` has the same shapes and decides between equal scores. `images` is how many images took part.
    """

    criterion: str
    blocks: list[Tensor]
    ties: list[Tensor] | None = None
    images: int = 0
    paths: PathSet | None = None

    @property
    def classes(self) -> int:
        """Number of class rows (1: class-free)."""
        return self.blocks[0].shape[0]


@dataclass(frozen=True, slots=True)
class Mask:
    """Per block bool [n], True keeps, at least one per block; `classes` are the class indices it serves."""

    blocks: list[Tensor]
    classes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for block, keep in enumerate(self.blocks):
            if not bool(keep.any()):
                raise ValueError(f"block {block}: the mask keeps no hidden unit")

    @property
    def widths(self) -> list[int]:
        """Kept units per block."""
        return [int(keep.sum()) for keep in self.blocks]

    @property
    def kept(self) -> float:
        """Share of all hidden units that is kept."""
        return sum(self.widths) / sum(keep.numel() for keep in self.blocks)


@dataclass(frozen=True, slots=True)
class Metrics:
    """One evaluation on n images; accuracies are fractions, per_class is [C] with NaN for classes without images."""

    top1: float
    top1_ci95: tuple[float, float]
    mean_true_probability: float
    per_class: list[float]
    n: int


@dataclass(slots=True)
class RunRecord:
    """Everything the report shows; `report.json` is this record, see report/schema.json."""

    data: dict[str, Any] = field(default_factory=dict)
