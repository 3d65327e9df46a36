"""Ridge regression of a linear layer towards its old weights, from streamed second moments.

With inputs h [p], targets t [q], old weights W0 [q, p], μ the means and C the centred covariances over all rows:

    W = W0 + (C_th − W0 C_hh)(C_hh + λI)⁻¹,   b = μ_t − W μ_h,   λ = ridge · mean diag C_hh

that is the minimiser of mean‖t − W h − b‖² + λ‖W − W0‖², the bias unpenalised. The ridge is the one of `RIDGES` that
leaves the least error on a held-out share of the images; the layer is then solved from all of them.

Sums of several parts are added in the parts' order, each moved to the first part's origin in float64: with a row r around
its own origin and δ what that origin is above the first, (r + δ)(r + δ)ᵀ = rrᵀ + rδᵀ + δrᵀ + δδᵀ, summed over the rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vitprune.core.device import exact, products, wide, widened

RIDGES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
CHUNK = 8192
STRIP = 128  # columns of a Gram matrix at once


def strips(n: int) -> Iterator[tuple[int, slice]]:
    """A symmetric matrix [n, n] in strips of columns from the diagonal down: each one's first column, and its place packed."""
    at = 0
    for i in range(0, n, STRIP):
        end = at + (n - i) * min(STRIP, n - i)
        yield i, slice(at, end)
        at = end


def packed_size(n: int) -> int:
    """Numbers of a packed symmetric matrix [n, n], a little more than half of it."""
    return sum(place.stop - place.start for _, place in strips(n))


def unpacked(packed: Tensor, n: int) -> Tensor:
    """The whole matrix [n, n]."""
    made = packed.new_empty(n, n)
    for i, place in strips(n):
        strip = packed[place].view(n - i, -1)
        made[i:, i : i + STRIP] = strip
        made[i : i + STRIP, i:] = strip.T
    return made


def add_gram(total: Tensor, rows: Tensor) -> None:
    """Add rowsᵀ·rows of rows [R, n] to a float64 total in place: a matrix [n, n], or a packed one. Products are of the rows'
    type, in strips from the diagonal down: half of the arithmetic, and no temporary matrix."""
    n = rows.shape[1]
    with products("float32", rows.device):
        for i, place in strips(n):
            part = (rows[:, i:].T @ rows[:, i : i + STRIP]).to(total.device)
            if total.ndim == 1:
                total[place].view(n - i, -1).add_(part)
                continue
            total[i:, i : i + STRIP] += part
            total[i : i + STRIP, i + STRIP :] += part[STRIP:].T


def _summed(rows: Tensor) -> Tensor:
    """Sums of every column, float64."""
    return widened(rows).sum(0) if wide(rows.device) != rows.device else rows.sum(0, dtype=torch.float64)


class SecondMoments:
    """Sums of [h 1]ᵀ[h 1], [h 1]ᵀt and t² around the first rows' means: products in the rows' type, sums in float64."""

    def __init__(self) -> None:
        self.rows = 0
        self.origin: tuple[Tensor, Tensor] | None = None
        self.gram = self.cross = self.square = torch.zeros(())

    def add(self, inputs: Tensor, targets: Tensor, origin: tuple[Tensor, Tensor] | None = None) -> None:
        """`inputs` [..., p] and `targets` [..., q]; `origin` to sum around, if another sum has one already."""
        h, t = exact(inputs).reshape(-1, inputs.shape[-1]), exact(targets).reshape(-1, targets.shape[-1])
        if self.origin is None:
            self.origin = origin or (widened(h).mean(0).to(h.dtype).to(h), widened(t).mean(0).to(t.dtype).to(t))
            own = wide(h.device)
            self.gram = torch.zeros(h.shape[1] + 1, h.shape[1] + 1, dtype=torch.float64, device=own)
            self.cross = torch.zeros(h.shape[1] + 1, t.shape[1], dtype=torch.float64, device=own)
            self.square = torch.zeros(t.shape[1], dtype=torch.float64, device=own)
        for h_part, t_part in zip(h.split(CHUNK), t.split(CHUNK), strict=True):
            row, target = h_part - self.origin[0], t_part - self.origin[1]
            with products("float32", row.device):
                cross = row.T @ target
            add_gram(self.gram[:-1, :-1], row)
            self.cross[:-1] += cross.to(self.cross.device)
            self.cross[-1] += _summed(target)
            self.gram[-1, :-1] += _summed(row)
            self.square += widened(target.square().sum(0))
        self.rows += len(h)
        self.gram[-1, -1] = self.rows
        self.gram[:-1, -1] = self.gram[-1, :-1]

    def __iadd__(self, other: SecondMoments) -> SecondMoments:
        """Add the sums of other rows, which are used up by it: no more memory is taken than both have already."""
        if other.origin is None:
            return self
        if self.origin is None:
            return other
        moved = other.around(self.origin, inside=True)
        self.rows += moved.rows
        self.gram += moved.gram
        self.cross += moved.cross
        self.square = self.square + moved.square
        return self

    def around(self, origin: tuple[Tensor, Tensor], inside: bool = False) -> SecondMoments:
        """The same sums around another origin; itself where it is this one. `inside`: these need not stay as they are."""
        assert self.origin is not None
        h, t = (widened(old) - widened(new) for old, new in zip(self.origin, origin, strict=True))
        if not bool(h.any()) and not bool(t.any()):
            return self
        made, n = SecondMoments(), self.rows
        made.rows, made.origin = n, origin
        inputs, targets = self.gram[-1, :-1].clone(), self.cross[-1].clone()
        made.gram, made.cross = (self.gram, self.cross) if inside else (self.gram.clone(), self.cross.clone())
        made.gram[:-1, :-1].addr_(inputs, h).addr_(h, inputs).addr_(h, h, alpha=n)
        made.gram[-1, :-1] += n * h
        made.gram[:-1, -1] += n * h
        made.cross[:-1].addr_(inputs, t).addr_(h, targets).addr_(h, t, alpha=n)
        made.cross[-1] += n * t
        made.square = self.square + 2 * t * targets + n * t.square()
        return made

    def sums(self, name: str) -> Sums:
        """What was summed, by names that begin with `name`, on the CPU."""
        assert self.origin is not None
        found = {"inputs": self.origin[0], "targets": self.origin[1], "gram": self.gram, "cross": self.cross}
        found |= {"square": self.square, "rows": torch.tensor([self.rows])}
        return {f"{name}.{key}": value.cpu() for key, value in found.items()}

    @classmethod
    def of(cls, sums: Sums, name: str, device: torch.device) -> SecondMoments:
        """The moments whose `sums` these are."""
        places = {"inputs": device, "targets": device} | dict.fromkeys(("gram", "cross", "square"), wide(device))
        own = {key: sums[f"{name}.{key}"].to(place) for key, place in places.items()}
        made = cls()
        made.rows, made.origin = int(sums[f"{name}.rows"]), (own["inputs"], own["targets"])
        made.gram, made.cross, made.square = own["gram"], own["cross"], own["square"]
        return made

    def through(self, layer: nn.Linear) -> SecondMoments:
        """The sums that targets `layer(t)` in the place of t give, but for `square`: `error` is then less a constant."""
        if self.origin is None:
            return self
        weight, made = widened(layer.weight), SecondMoments()
        shift = 0 if layer.bias is None else widened(layer.bias)
        made.rows, made.origin = self.rows, (self.origin[0], weight @ widened(self.origin[1]) + shift)
        made.gram, made.cross = self.gram, self.cross @ weight.T
        made.square = self.cross.new_zeros(len(weight))
        return made

    def solve(self, old_weight: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
        """The new weight [q, p] and bias [q], float64."""
        assert self.origin is not None
        mean, target_mean = self.gram[-1, :-1] / self.rows, self.cross[-1] / self.rows
        covariance = (self.gram[:-1, :-1] / self.rows).sub_(mean[:, None] * mean)
        cross = self.cross[:-1] / self.rows - mean[:, None] * target_mean
        old = old_weight.to(covariance)
        lacking = cross - covariance @ old.T
        covariance.diagonal().add_((ridge * covariance.diagonal().mean()).clamp_min(1e-30))
        weight = old + torch.linalg.solve(covariance, lacking).T
        bias = widened(self.origin[1]) + target_mean - weight @ (widened(self.origin[0]) + mean)
        return weight, bias

    def shift(self, weight: Tensor) -> Tensor:
        """The bias [q] that makes t ≈ W h + b right in the mean, float64."""
        assert self.origin is not None
        mean = widened(self.origin[0]) + self.gram[-1, :-1] / self.rows
        return widened(self.origin[1]) + self.cross[-1] / self.rows - weight.to(mean) @ mean

    def error(self, weight: Tensor, bias: Tensor) -> float:
        """Mean squared error per row of t ≈ W h + b on the rows summed here."""
        assert self.origin is not None
        shift = bias + weight @ widened(self.origin[0]) - widened(self.origin[1])
        both = torch.cat([weight, shift[:, None]], 1)
        total = self.square.sum() - 2 * (both.T * self.cross).sum() + ((both @ self.gram) * both).sum()
        return float(total) / self.rows


def fit(
    train: SecondMoments, held_out: SecondMoments, old_weight: Tensor, ridge: float | None
) -> tuple[Tensor, Tensor]:
    """Weight and bias from both sums, under `ridge` or, if that is None, the one that `held_out` likes best. Neither of the
    sums is what it was afterwards."""
    if ridge is None:
        ridge = RIDGES[len(RIDGES) // 2]
        if train.rows and held_out.rows:
            ridge = min(RIDGES, key=lambda r: held_out.error(*train.solve(old_weight, r)))
    train += held_out
    return train.solve(old_weight, ridge)


RIDGE = 1e-3


@dataclass(frozen=True, slots=True)
class Moments:
    """Mean [n] and centred covariance [n, n] of one block's hidden units, float64; `tokens` is how many were seen."""

    mean: Tensor
    covariance: Tensor
    tokens: int


Sums = dict[str, Tensor]
OF_ATTENTION = {"attention", "queries", "asked", "keys", "told"}  # words in the names of an attention's sums
SAME = "same."  # begins the names of what is not summed: the first part makes it, and the others are given it


def plus(total: Sums | None, part: Sums) -> Sums:
    """The sums of what came before and of the next part; the tensors of `total` are changed in place."""
    if total is None:
        return dict(part)
    for name, value in part.items():
        if not name.startswith(SAME):
            total[name] += value
    return total


def same(sums: Sums) -> Sums:
    """What the parts after the first are given of its sums."""
    return {name: value for name, value in sums.items() if name.startswith(SAME)}


def of_site(names: Iterable[str], position: int, attention: bool) -> dict[str, str]:
    """The names of the sums of one FFN or one attention by those that they have where it is the only one."""
    found, number = {}, str(position)
    for name in names:
        words = name.split(".")
        if number in words and bool(OF_ATTENTION & {*words}) == attention:
            found[".".join("0" if word == number else word for word in words)] = name
    return found


class Stream:
    """Sums of a block's hidden units around the first batch's mean, so that float32 products lose nothing that counts.

    `origin`: that mean, where the first batch is another stream's. The Gram matrix is packed.
    """

    def __init__(self, origin: Tensor | None = None) -> None:
        self.origin = origin
        self.total: Tensor | None = None
        self.gram: Tensor | None = None
        self.tokens = 0

    def add(self, hidden_BTN: Tensor) -> None:
        rows = exact(hidden_BTN).reshape(-1, hidden_BTN.shape[-1])
        if self.origin is None:
            self.origin = widened(rows).mean(0).to(rows.dtype).to(rows)
        if self.total is None or self.gram is None:
            self.origin = self.origin.to(rows)
            own = wide(rows.device)
            self.total = torch.zeros(rows.shape[1], dtype=torch.float64, device=own)
            self.gram = torch.zeros(packed_size(rows.shape[1]), dtype=torch.float64, device=own)
        rows = rows - self.origin
        self.total += _summed(rows)
        for chunk in rows.split(CHUNK):
            add_gram(self.gram, chunk)
        self.tokens += len(rows)

    def sums(self, name: str) -> Sums:
        """What was summed, by names that begin with `name`, on the CPU."""
        if self.origin is None or self.total is None or self.gram is None:
            raise ValueError("no images were given")
        found = {f"{SAME}{name}.origin": self.origin, f"{name}.total": self.total, f"{name}.gram": self.gram}
        return {key: value.cpu() for key, value in found.items()} | {f"{name}.tokens": torch.tensor([self.tokens])}

    @classmethod
    def of(cls, sums: Sums, name: str) -> Stream:
        """The stream whose `sums` these are."""
        made = cls(sums[f"{SAME}{name}.origin"])
        made.total, made.gram = sums[f"{name}.total"], sums[f"{name}.gram"]
        made.tokens = int(sums[f"{name}.tokens"])
        return made

    def finish(self) -> Moments:
        if self.origin is None or self.total is None or self.gram is None:
            raise ValueError("no images were given")
        shift = self.total / self.tokens
        covariance = unpacked(self.gram, len(shift)).div_(self.tokens).sub_(shift[:, None] * shift)
        return Moments((widened(self.origin) + shift).cpu(), covariance.cpu(), self.tokens)
