"""How near a slim backbone's features are to the dense one's, without labels; and with them two plain uses of features.

Legend: N images, P patches of one, R rows of a backbone's output, D width; f dense, f' slim, Δ = f' − f. Sums are float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor, nn

from vitprune.core.device import device_of, products
from vitprune.core.errors import UserError
from vitprune.core.least_squares import SAME, Sums
from vitprune.model.inside import backbone, pieces
from vitprune.model.inside.backbone import Backbone, Features

ADVICE = "evaluate: not enough memory for a single image; free some, or take a device with more"
NEIGHBOURS = 10
AT_ONCE = 1 << 24  # similarities looked at together
NOTHING = 1e-12  # of E‖·‖²: a variance below is that of one vector, or of equal ones, and rounding
Teller = Callable[[Tensor], Features]


def teller(model: nn.Module) -> Teller:
    """Images [N, C, H, W] → their features on the processor, float32; the same bits where a batch needs several passes."""
    found, device = backbone.of(model), device_of(model)
    assert found is not None, "the model is a classifier"
    shapes: list[torch.Size] = []

    def both(x: Tensor) -> Tensor:
        told = found.features(x.to(device))
        shapes[:] = [told.pooled.shape[1:], told.tokens.shape[1:]]
        return torch.cat([told.pooled, told.tokens.flatten(1)], 1).float().cpu()

    @torch.inference_mode()
    def tell(images: Tensor) -> Features:
        with products("float32", device):
            made = pieces.joined(both, images, advice=ADVICE)
        if not bool(made.isfinite().all()):
            raise UserError("evaluate: the model gave features that are not finite; check its weights")
        of_pooled = shapes[0].numel()
        return Features(made[:, :of_pooled], made[:, of_pooled:].unflatten(1, shapes[1]))

    return tell


@dataclass(frozen=True, slots=True)
class Spread:
    """Of the dense features of some images: means [D] of the pooled vector and of patches; E‖·‖² and E‖· − mean‖² of an
    image's output, its vector and rows weighed as `backbone.Output` says."""

    pooled: Tensor
    patches: Tensor
    energy: float
    variance: float

    def unexplained(self, error: float) -> float | None:
        """An image's squared error of the output as a share of its variance; None where it has none, as of a single image."""
        return error / self.variance if self.variance > NOTHING * self.energy else None

    def tensors(self) -> Sums:
        """What `of_tensors` makes it of again."""
        return {f.name: torch.as_tensor(getattr(self, f.name), dtype=torch.float64) for f in fields(self)}

    @classmethod
    def of_tensors(cls, found: Sums) -> Spread:
        """What `tensors` was of."""
        return cls(found["pooled"], found["patches"], float(found["energy"]), float(found["variance"]))


def spread_sums(found: Backbone, told: Features) -> Sums:
    """What the spread is made of, summed over a batch's images; such sums add up."""
    out, patches = found.output(told), told.tokens[:, found.prefix :]
    every = {"pooled": told.pooled, "patches": patches, "vector": out.vector, "rows": out.rows}
    made: Sums = {}
    for name, x in every.items():
        x = x.double()
        made[f"{name}.sum"] = x.flatten(0, -2).sum(0)
        made[f"{name}.square"] = x.square().sum()
        made[f"{name}.count"] = torch.tensor(x.flatten(0, -2).shape[0])
    made[f"{SAME}weight"] = torch.tensor(out.weight, dtype=torch.float64)
    made["images"] = torch.tensor(len(told.pooled))
    return made


def spread_of(found: Backbone, told: Sums) -> Spread:
    """The spread from the sums over all images."""
    images = int(told["images"])

    def of(name: str) -> tuple[Tensor, float, float]:
        """The mean, E‖·‖² and E‖· − mean‖² per image."""
        count = int(told[f"{name}.count"])
        mean = told[f"{name}.sum"] / max(1, count)
        square = float(told[f"{name}.square"])
        return mean, square / images, (square - count * float(mean.square().sum())) / images

    vector, rows = of("vector"), of("rows")
    weight = float(told[f"{SAME}weight"])
    energy, variance = (weight * vector[i] + rows[i] for i in (1, 2))
    return Spread(of("pooled")[0], of("patches")[0], float(energy), float(variance))


def compared(found: Backbone, dense: Features, slim: Features, spread: Spread) -> Sums:
    """Image by image [N]: cosines of f and f', as they are and about the dense mean, of the pooled vector and in the mean over
    patches; Σ‖Δ‖² and Σ‖f‖² of both; the output's squared error, and 1 − cosine of it, its vector and rows in equal parts."""
    made: Sums = {}
    prefix = found.prefix
    parts = {
        "pooled": (dense.pooled[:, None], slim.pooled[:, None], spread.pooled),
        "tokens": (dense.tokens[:, prefix:], slim.tokens[:, prefix:], spread.patches),
    }
    for name, (f, other, mean) in parts.items():
        f, other = f.double(), other.double()
        made[f"{name}.cosine"] = cosine(f, other).mean(1)
        made[f"{name}.centred"] = cosine(f - mean, other - mean).mean(1)
        made[f"{name}.error"] = (other - f).square().sum((1, 2))
        made[f"{name}.square"] = f.square().sum((1, 2))
        made[f"{name}.sum"] = f.sum(1)
    ours, theirs = found.output(dense), found.output(slim)
    vectors, rows = (ours.vector.double(), theirs.vector.double()), (ours.rows.double(), theirs.rows.double())
    made["output.error"] = ours.weight * (vectors[1] - vectors[0]).square().sum(1)
    made["output.error"] += (rows[1] - rows[0]).square().sum((1, 2))
    lost = 1 - cosine(*vectors)
    made["output.lost"] = (lost + (1 - cosine(*rows)).mean(1)) / 2 if rows[0].shape[1] else lost
    return made


def cosine(one: Tensor, other: Tensor) -> Tensor:
    """The cosine of vectors [..., D]; 0 where one of them is nothing."""
    length = one.norm(dim=-1) * other.norm(dim=-1)
    return (one * other).sum(-1) / length.clamp_min(torch.finfo(one.dtype).tiny)


def fvu(error: Tensor, square: Tensor, total_ND: Tensor, count: int) -> float:
    """Fraction of variance unexplained: Σ‖Δ‖² over Σ‖f − mean f‖², of `count` vectors for each of the N images. NaN where they
    are one vector, or equal ones."""
    vectors = count * len(error)
    mean = total_ND.sum(0) / vectors
    variance = square.sum() - vectors * mean.square().sum()
    return float(error.sum() / variance) if variance > NOTHING * square.sum() else float("nan")


def nearest(queries_ND: Tensor, bank_MD: Tensor, count: int, *, themselves: bool = False) -> tuple[Tensor, Tensor]:
    """Of every query the `count` vectors of the bank with the largest cosine: which [N, count], and the cosines. `themselves`:
    the queries are the bank, and none is its own neighbour. Of equal ones the first."""
    bank, step = _unit(bank_MD), max(1, AT_ONCE // len(bank_MD))
    every, like = [], []
    for start in range(0, len(queries_ND), step):
        alike = _unit(queries_ND[start : start + step]) @ bank.T
        if themselves:
            own = torch.arange(len(alike))
            alike[own, start + own] = -torch.inf
        found, order = alike.sort(dim=1, descending=True, stable=True)
        every.append(order[:, :count].clone())
        like.append(found[:, :count].clone())
    return torch.cat(every), torch.cat(like)


def overlap(dense_ND: Tensor, slim_ND: Tensor, count: int = NEIGHBOURS) -> float:
    """Which share of an image's nearest others, by dense features, are so by slim ones too; in the mean over the images. NaN
    for fewer than two of them."""
    count = min(count, len(dense_ND) - 1)
    if count < 1:
        return float("nan")
    ours, theirs = (nearest(x, x, count, themselves=True)[0] for x in (dense_ND, slim_ND))
    same = (ours[:, :, None] == theirs[:, None, :]).any(2)
    return float(same.double().mean())


def _unit(x: Tensor) -> Tensor:
    x = x.double()
    return x / x.norm(dim=1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)


def difference(one: np.ndarray, other: np.ndarray) -> tuple[float, Sequence[float] | None]:
    """The mean of `one` − `other`, image by image [N], and its 95 % interval (normal); None for a single image."""
    gap = one - other
    mean = float(gap.mean())
    if len(gap) < 2:
        return mean, None
    half = 1.96 * float(gap.std(ddof=1)) / len(gap) ** 0.5
    return mean, (mean - half, mean + half)
