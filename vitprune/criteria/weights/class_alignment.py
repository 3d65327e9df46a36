"""Criterion `class-alignment`: what a unit writes, projected on the classifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from vitprune.core.errors import UserError
from vitprune.criteria.settings import Nothing
from vitprune.criteria.signatures import Batches
from vitprune.model import families, plain
from vitprune.model.inside import blockwise
from vitprune.model.sites.ffn import FfnSite


@torch.no_grad()
def class_alignment(
    model: nn.Module, sites: Sequence[FfnSite], batches: Batches, *, how: Nothing, form: Literal["raw", "normed"]
) -> list[Tensor]:
    """How much each unit's value vector speaks for each class; per block [C, N], signed."""
    parts, head = blockwise.halves(model), getattr(model, "head", None)
    if parts is None or not isinstance(head, nn.Linear):
        raise UserError("criterion `class-alignment`: needs blocks of one FFN after attention and a linear head")
    plain.require("criterion `class-alignment`: head", head, plain.LINEAR)
    columns = [parts.ffn_columns(i) for i in range(len(sites))]
    if form == "raw":
        return [head.weight @ values_ND.T for values_ND in columns]
    tokens = families.token_layout(model).prefix + 1  # the same at each, whatever the head pools
    return [parts.logits(values_ND[:, None].expand(-1, tokens, -1)).T for values_ND in columns]
