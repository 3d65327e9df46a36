"""What a unit writes, held against the classes: four forms, and whether a block carries classes at all.

A unit writes its value vector v = γ ⊙ fc2[:, j] to the stream; E are the head's rows. `raw` v·E; `normed` head(norm(v));
`cos` v̂·Ê; `folded` (v − mean v)·(E ⊙ w), the direct way to the logits with the last norm's scale left out, w its weight.
Writing is not firing: which class makes a unit active is in `firing.py`.
Geva et al., EMNLP 2021; Vilas et al., NeurIPS 2023. Legend: H units, D width, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitprune.core.errors import UserError
from vitprune.model import families, plain
from vitprune.model.inside import blockwise

Form = Literal["folded", "raw", "normed", "cos"]
HEADS = 30  # random heads that a block's alignment is held against
MOST = 100  # rows of a random head at most: fewer rows spread more, so that more classes are never found by chance
ENOUGH = 3.0  # standard deviations above them, from which a block is said to carry classes
DEAD = 1e-6  # of the block's median length, below which a unit writes nothing


@dataclass(frozen=True, slots=True)
class Written:
    """What every unit of a model writes: value vectors [H, D] of each block, the head's rows [C, D], the last norm's weight
    [D] (ones without), whether it takes the mean away, and logits of value vectors as the model gives them."""

    values: list[Tensor]
    head: Tensor
    weight: Tensor
    centred: bool
    parts: blockwise.Halves

    def aligned(self, block: int, form: Form) -> Tensor:
        """[H, C] of one block."""
        values = self.values[block]
        if form == "raw":
            return values @ self.head.T
        if form == "cos":
            return F.normalize(values, dim=1) @ F.normalize(self.head, dim=1).T
        if form == "folded":
            straight = values - values.mean(1, keepdim=True) if self.centred else values
            return straight @ (self.head * self.weight).T
        tokens = families.token_layout(self.parts.model).prefix + 1  # the same at each, whatever the head pools
        return self.parts.logits(values[:, None].expand(-1, tokens, -1))


def why_not(model: nn.Module) -> str | None:
    """Why what a unit writes cannot be held against classes, or None."""
    try:
        written(model)
    except UserError as error:
        return str(error)
    return None


@torch.no_grad()
def written(model: nn.Module) -> Written:
    """What the model's units write. Raises UserError, naming what does not fit."""
    parts = blockwise.halves(model)
    if parts is None:
        raise UserError(f"needs blocks of one FFN after attention ({blockwise.why_not(model)})")
    if getattr(model, "attn_pool", None) is not None:
        raise UserError("needs tokens that go straight to the head; this model pools them by an attention of its own")
    head = getattr(model, "head", None)
    if not isinstance(head, nn.Linear):
        raise UserError(f"needs a linear head, this one is {type(head).__name__}")
    plain.require("head", head, plain.LINEAR)
    norm = _last_norm(model)
    weight = getattr(norm, "weight", None)
    columns = [parts.ffn_columns(i) for i in range(len(parts.blocks))]
    ones = torch.ones_like(head.weight[0])
    return Written(
        columns, head.weight, ones if weight is None else weight.detach(), isinstance(norm, nn.LayerNorm), parts
    )


def _last_norm(model: nn.Module) -> nn.Module:
    """The one norm between the last block and the head."""
    found = [getattr(model, name, None) for name in ("norm", "fc_norm")]
    norms = [norm for norm in found if isinstance(norm, nn.Module) and not isinstance(norm, nn.Identity)]
    if len(norms) != 1:
        raise UserError(f"needs one norm before the head, this model has {len(norms)}")
    return norms[0]


@torch.no_grad()
def read(model: nn.Module, stream_BTD: Tensor) -> Tensor:
    """The head's logits of every token by itself, through the last norm, [B, T, C]. Of a model that `why_not` allows."""
    logits: Tensor = model.get_submodule("head")(_last_norm(model)(stream_BTD))
    return logits


@dataclass(frozen=True, slots=True)
class Chance:
    """A block against random heads: mean over classes of its units' largest cosine, mean and spread of the same for them."""

    found: float
    mean: float
    sd: float

    @property
    def z(self) -> float:
        """Standard deviations above random heads."""
        return (self.found - self.mean) / self.sd if self.sd > 0 else 0.0

    @property
    def carries(self) -> bool:
        """Whether its units may be said to write classes."""
        return self.z >= ENOUGH


@torch.no_grad()
def chance(values_HD: Tensor, head_CD: Tensor, seed: int) -> Chance:
    """The null test of one block: `HEADS` seeded random heads of as many rows as the head has, at most `MOST`."""
    straight = F.normalize(values_HD, dim=1).T
    generator = torch.Generator().manual_seed(seed)
    rows, width = min(len(head_CD), MOST), head_CD.shape[1]
    drawn = torch.randn(HEADS, rows, width, generator=generator).to(values_HD)
    null = torch.stack([(F.normalize(one, dim=1) @ straight).amax(1).mean() for one in drawn]).double()
    found = (F.normalize(head_CD, dim=1) @ straight).amax(1).mean()
    return Chance(float(found), float(null.mean()), float(null.std()))


def dead(values_HD: Tensor) -> Tensor:
    """Which units write nothing, [H]: a norm would give every one of them the same class."""
    length = values_HD.norm(dim=1)
    return length <= DEAD * length.median()


@dataclass(frozen=True, slots=True)
class Best:
    """The unit that speaks most for a class, by how much before the next, and where it is."""

    block: int
    unit: int
    value: float
    margin: float


def best_units(aligned: Sequence[Tensor | None], alive: Sequence[Tensor], most: int = 3) -> list[list[Best]]:
    """Per class its units, the strongest first, `most` of them; of equal ones the lower block, then the lower unit. A block
    that is None (it carries no class) has none; `alive` [H] says which units write anything."""
    there = [i for i, one in enumerate(aligned) if one is not None]
    if not there:
        return []
    whole = torch.cat([_without(aligned[i], alive[i]) for i in there])
    place = [(i, j) for i in there for j in range(len(alive[i]))]
    found = []
    for column in whole.T:
        order = torch.sort(column, descending=True, stable=True).indices[: most + 1].tolist()
        values = [float(column[at]) for at in order] + [float("-inf")]
        mine = [place[at] for at in order[:most]]
        found.append([Best(i, j, values[k], values[k] - values[k + 1]) for k, (i, j) in enumerate(mine)])
    return found


def _without(aligned: Tensor | None, alive: Tensor) -> Tensor:
    assert aligned is not None
    return aligned.masked_fill(~alive[:, None], float("-inf"))
