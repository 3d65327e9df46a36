"""A fixed part of the images, in one pass or in pieces, to the same bits.

How many images make a part is said by the model and the kind of device, never by the memory that happens to be free: a
sum over a part is one product, and a product's last bits hang on its shape. Where a part does not fit it is taken in
pieces. Every product of a piece with weights is then made at the part's own shape, with nothing in the rows of the other
images, so that an image's values are those of the whole part, while a pass keeps the rows of its piece alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from vitprune.core import memory
from vitprune.core.errors import UserError
from vitprune.model.sites.ffn import FfnSite
from vitprune.model.tokens import stream_width, tokens_per_site

T = TypeVar("T")
ROWS = {"cpu": 80, "other": 512}  # images × nodes of one part; more fall out of a processor's cache and are slower
BYTES = {"cpu": 1 << 30, "other": 1 << 32}  # what one part may keep, about
STATISTICS = "statistics: not enough memory for a single image; free some, or take a device with more"
SHARE = 0.4  # of the free memory, for one pass
RULE = [ROWS, BYTES]  # of the digest of everything that is computed in parts

_ROWS_FIRST = {F.linear, torch.mm, Tensor.mm, torch.matmul, Tensor.matmul, Tensor.__matmul__}
_NAMES = {
    F.linear: ("input", "weight", "bias"),
    torch.conv2d: ("input", "weight", "bias"),
    F.scaled_dot_product_attention: ("query", "key", "value"),
}


def footprint(model: nn.Module, sites: Sequence[FfnSite], gradient: bool = True) -> int:
    """Bytes that one image's pass keeps, about: of every block for a gradient, else of the largest one and the next."""
    tokens = tokens_per_site(model, sites)
    blocks = [
        4 * count * (2 * site.size + 14 * stream_width(model, site)) for count, site in zip(tokens, sites, strict=True)
    ]
    return sum(blocks) if gradient else 2 * max(blocks)


def size(bytes_per_image: int, device: torch.device, nodes: int = 1) -> int:
    """Images of one part, each of them `nodes` times in a pass; the same on every machine with this kind of device."""
    kind = "cpu" if device.type == "cpu" else "other"
    return max(1, min(ROWS[kind], BYTES[kind] // bytes_per_image) // nodes)


def room(bytes_per_image: int, device: torch.device, nodes: int = 1, share: float = SHARE) -> int:
    """Images that fit one pass into the memory that is free now; at least one. It says how large pieces begin."""
    return max(1, int(share * memory.free(device) // bytes_per_image) // nodes)


def taken(
    count: int, work: Callable[[slice], T], advice: str, fits: int | None = None, device: torch.device | None = None
) -> list[T]:
    """`work` on all rows of a part of `count` images at once; where memory does not suffice, on pieces of it in their order.

    The first piece has at most `fits` rows, and one that fails is halved. Raises UserError, `advice`, when a single
    image is too much.
    """
    step, start, made = max(1, min(count, fits or count)), 0, []
    while start < count:
        rows = slice(start, min(start + step, count))
        try:
            with _Whole(count, rows) if rows.stop - rows.start < count else nullcontext():
                made.append(work(rows))
        except (RuntimeError, MemoryError) as error:
            if not memory.lacking(error):
                raise
        else:
            start = rows.stop
            continue
        memory.release()
        if step == 1:
            raise UserError(f"{advice} ({memory.free(device or torch.device('cpu')) / 1e6:,.0f} MB are free)")
        step = math.ceil(step / 2)
    return made


def on(work: Callable[[Tensor], T], images: Tensor) -> Callable[[slice], T]:
    """`work` on the images of the rows that `taken` asks for."""
    return lambda rows: work(images[rows])


def joined(work: Callable[..., Tensor], *rows: Tensor, advice: str, fits: int | None = None) -> Tensor:
    """`work` on tensors [B, …] that go along row by row, its result [B, …] from as many pieces as it takes."""
    made = taken(len(rows[0]), lambda part: work(*(x[part] for x in rows)), advice, fits, rows[0].device)
    return made[0] if len(made) == 1 else torch.cat(made)


def first_of(found: list[list[Tensor]]) -> Tensor:
    """The first tensor of every piece's list, joined; it leaves the lists."""
    made = [tensors.pop(0) for tensors in found]
    return made[0] if len(made) == 1 else torch.cat(made)


def whole(count: int) -> int:
    """Images of the part that `count` images belong to: more, while a piece of it is being worked on."""
    for mode in torch.overrides._get_current_function_mode_stack():
        if isinstance(mode, _Whole) and count == mode.rows.stop - mode.rows.start:
            return mode.count
    return count


class _Whole(TorchFunctionMode):
    """Inside, products of images `rows` of a part of `count` with weights are made at the part's shape.

    A row of them may stand for an image several times: [copies · images, …], the images fastest.
    """

    def __init__(self, count: int, rows: slice) -> None:
        super().__init__()
        self.count, self.rows = count, rows

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        args = (*args, *(given.pop(name) for name in _NAMES.get(func, ())[len(args) :] if name in given))
        if func in _ROWS_FIRST and self.splits(args[0], 2) and args[1].ndim == 2:
            return self.cut(func(self.widened(args[0]), *args[1:], **given))
        if func is torch.conv2d and self.splits(args[0], 4):
            return self.cut(func(self.widened(args[0]), *args[1:], **given))
        if func is F.scaled_dot_product_attention and self.splits(args[0], 4):
            return self.attended(func, args, given)
        if func is torch.tensordot and args[1].ndim > 1 and args[1].shape[1] == self.rows.stop - self.rows.start:
            wide = self.widened(args[1].transpose(0, 1)).transpose(0, 1).contiguous()
            return self.cut(func(args[0], wide, *args[2:], **given))
        return func(*args, **given)

    def attended(self, func: Any, args: tuple[Any, ...], given: dict[str, Any]) -> Tensor:
        """Attention: which thread takes which image leaves a trace in its bits, so it has the part's shape as well. For the
        way back it is made again, or every piece would keep what a part keeps."""

        def attend(*qkv: Tensor) -> Tensor:
            return self.cut(func(*map(self.widened, qkv), *args[3:], **given))

        if torch.is_grad_enabled() and any(x.requires_grad for x in args[:3]):
            return checkpoint(attend, *args[:3], use_reentrant=False)
        return attend(*args[:3])

    def splits(self, x: Tensor, axes: int) -> bool:
        """Whether the first axis counts images of the piece."""
        return x.ndim >= axes and len(x) > 0 and len(x) % (self.rows.stop - self.rows.start) == 0

    def widened(self, x: Tensor) -> Tensor:
        """[copies · piece, …] → [copies · part, …], zero where the other images stand, and laid out as `x` is."""
        copies, step = divmod(len(x), self.rows.stop - self.rows.start)[0], x.stride(0)
        shape = (copies * self.count, *x.shape[1:])
        if step == 0:
            return x[:1].expand(shape)
        strides = [step, *(s * shape[0] // len(x) if s > step else s for s in x.stride()[1:])]
        wide = x.new_empty_strided(shape, strides).zero_()
        wide.unflatten(0, (copies, self.count))[:, self.rows] = x.unflatten(0, (copies, -1))
        return wide

    def cut(self, y: Tensor) -> Tensor:
        """The piece's rows of `widened`'s, in memory of their own."""
        return y.unflatten(0, (-1, self.count))[:, self.rows].clone().flatten(0, 1)
