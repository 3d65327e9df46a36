"""An attention that timm's classes cannot hold: fewer heads than the width has room for, values narrower than queries.

timm's plain `Attention` takes any number of heads of any one size; where it suffices it stays. Everything else that becomes
smaller becomes one of these: with a norm on queries and keys, rotary embeddings, a bias by position, a gate or a norm
behind the heads, or with values of another size than queries and keys.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import apply_rot_embed_cat
from timm.models import beit
from timm.models import vision_transformer_relpos as relpos
from torch import Tensor, nn


class OwnAttention(nn.Module):
    """`num_heads` heads with queries and keys of `head_dim` dimensions and values of `value_dim`."""

    index: Tensor | None

    def __init__(self, of: nn.Module, heads: Tensor, query_dim: int, value_dim: int, bias: bool) -> None:
        """What is left of the attention `of` with `heads` [k] (their numbers), the weights of its layers without meaning."""
        super().__init__()
        old: Any = of
        self.num_heads, self.head_dim, self.value_dim = len(heads), query_dim, value_dim
        self.scale, self.num_prefix_tokens = query_dim**-0.5, getattr(old, "num_prefix_tokens", 0)
        self.rotate_half = getattr(old, "rotate_half", False)
        like = {"device": old.proj.weight.device, "dtype": old.proj.weight.dtype}
        width = len(heads) * value_dim
        into = (old.q_proj if getattr(old, "qkv", None) is None else old.qkv).in_features
        self.qkv = nn.Linear(into, len(heads) * 2 * query_dim + width, bias=bias, **like)
        self.q_norm = copy.deepcopy(getattr(old, "q_norm", None)) or nn.Identity()
        self.k_norm = copy.deepcopy(getattr(old, "k_norm", None)) or nn.Identity()
        self.attn_drop, self.proj_drop = nn.Dropout(old.attn_drop.p), nn.Dropout(old.proj_drop.p)
        units = (heads[:, None].cpu() * value_dim + torch.arange(value_dim, device="cpu")).flatten()
        self.norm = rows_of(getattr(old, "norm", None), units) or nn.Identity()
        self.gate = rows_of(getattr(old, "gate", None), units)
        self.proj = nn.Linear(width, old.proj.out_features, bias=old.proj.bias is not None, **like)
        table, index = positions(of)
        self.table = None if table is None else nn.Parameter(table[:, heads.to(table.device)].detach().clone())
        self.register_buffer("index", index, persistent=False)
        for weight in self.parameters():
            weight.requires_grad_(old.proj.weight.requires_grad)

    def forward(
        self, x: Tensor, rope: Tensor | None = None, attn_mask: Tensor | None = None, is_causal: bool = False,
        shared_rel_pos: Tensor | None = None, shared_rel_pos_bias: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """What the attention it was made of gives, [B, T, D]."""
        q, k, v = self.qkv(x).split(self.sizes, -1)
        q, k, v = (y.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for y in (q, k, v))
        q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            n, half = self.num_prefix_tokens, self.rotate_half
            q = torch.cat([q[:, :, :n], apply_rot_embed_cat(q[:, :, n:], rope, half=half)], 2).type_as(v)
            k = torch.cat([k[:, :, :n], apply_rot_embed_cat(k[:, :, n:], rope, half=half)], 2).type_as(v)
        bias = attn_mask if shared_rel_pos is None else shared_rel_pos
        bias = bias if shared_rel_pos_bias is None else shared_rel_pos_bias
        if self.table is not None and self.index is not None:
            own = self.table[self.index].permute(2, 0, 1)[None]
            bias = own if bias is None else own + bias
        drop = self.attn_drop.p if self.training else 0.0
        a = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=drop, is_causal=is_causal)
        a = self.norm(a.transpose(1, 2).flatten(2))
        if self.gate is not None:
            a = a * self.gate(x).sigmoid()
        made: Tensor = self.proj_drop(self.proj(a))
        return made

    @property
    def sizes(self) -> list[int]:
        """How many rows of qkv are queries, keys and values."""
        own = self.num_heads * self.head_dim
        return [own, own, self.num_heads * self.value_dim]


def positions(attn: nn.Module) -> tuple[Tensor | None, Tensor | None]:
    """The bias by position: a table [P, H] and, for each pair of tokens, its row [T, T]; nothing where there is none."""
    of: Any = attn
    if isinstance(attn, OwnAttention):
        return attn.table, attn.index
    if isinstance(attn, beit.Attention):
        return of.relative_position_bias_table, of.relative_position_index
    if not isinstance(attn, relpos.RelPosAttention) or of.rel_pos is None:
        return None, None
    bias: Any = of.rel_pos
    if not hasattr(bias, "mlp"):
        tokens = bias.window_area + bias.prefix_tokens
        return bias.relative_position_bias_table, bias.relative_position_index.view(tokens, tokens)
    with torch.no_grad():
        table = bias.bias_act(bias.mlp(bias.rel_coords_log).view(-1, bias.num_heads))
    table = table if bias.bias_gain is None else bias.bias_gain * table
    index = bias.relative_position_index.view(bias.window_area, bias.window_area)
    if bias.prefix_tokens:  # tokens that are no patches have no bias: a row of zeros
        index = F.pad(index, [bias.prefix_tokens, 0, bias.prefix_tokens, 0], value=len(table))
        table = torch.cat([table, table.new_zeros(1, table.shape[1])])
    return table, index


def rows_of(layer: nn.Module | None, units: Tensor) -> Any:
    """A copy of a gate or a norm [n] with only these rows; None where there is none."""
    made: Any = copy.deepcopy(layer)
    if made is None or isinstance(made, nn.Identity):
        return None
    for name, value in list(made.named_parameters(recurse=False)):
        setattr(made, name, nn.Parameter(value[units.to(value.device)].detach().clone()))
    if isinstance(made, nn.Linear):
        made.out_features = len(units)
    else:
        made.normalized_shape = (len(units),)
    return made
