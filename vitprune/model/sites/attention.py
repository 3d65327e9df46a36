"""Attention as a site: how many heads it has and how many dimensions a head has, and which of them can become fewer.

The state of an attention is (H', d'): H' heads with d' dimensions of queries, keys and values each. A slim attention is
timm's own `Attention(dim, num_heads=H', attn_head_dim=d')`; (0, d') is a block without attention.

A head can go wherever attention is a sum over heads. Its values' dimensions can be rotated, and go, where nothing stands
between them and `proj`; its queries' and keys' where nothing stands between them and their product (no norm, no rotary
embedding).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers.attention import Attention
from timm.models import vision_transformer as vit
from torch import Tensor, nn

from vitprune.core.errors import UserError
from vitprune.model import families, plain
from vitprune.model.sites.ffn import bias_of, linear

SMALL = 32  # dimensions of a head up to which they go by fours, and by eights beyond
BLOCKS = (vit.Block,)
KINDS = (Attention,)
PARTS = {"qkv": plain.LINEAR, "proj": plain.LINEAR, "attn_drop": plain.IDLE, "proj_drop": plain.IDLE}


@dataclass(frozen=True, slots=True)
class AttentionSite:
    """One attention: block index, path inside the model, heads H of `dim` dimensions.

    `values`, `query_keys`: whether those dimensions can be rotated and removed; heads can always be.
    """

    block: int
    path: str
    heads: int
    dim: int
    values: bool = True
    query_keys: bool = True

    @property
    def kind(self) -> str:
        """Heads and their dimensions."""
        return "attention"

    @property
    def name(self) -> str:
        """The attention's path."""
        return self.path

    @property
    def multiple(self) -> int:
        """What the number of dimensions of a head is a multiple of, where it is not the whole."""
        return 4 if self.dim <= SMALL else 8

    @property
    def dims(self) -> tuple[int, ...]:
        """The dimensions a head may have, ascending; the last is all of them."""
        if not (self.values and self.query_keys):
            return (self.dim,)
        return (*range(self.multiple, self.dim, self.multiple), self.dim)

    @property
    def qkv(self) -> str:
        """The path of the layer that makes queries, keys and values."""
        return f"{self.path}.qkv"

    @property
    def proj(self) -> str:
        """The path of the layer that reads what the heads give."""
        return f"{self.path}.proj"

    def macs(self, width: int, tokens: int, read: int, heads: int, dim: int) -> int:
        """Multiply-adds of (heads, dim) for an image of `tokens`, where `read` of them ask and are answered."""
        return heads * dim * (2 * width * (tokens + read) + 2 * tokens * read)

    def parameters(self, model: nn.Module, heads: int, dim: int) -> int:
        """Parameters of (heads, dim)."""
        qkv, proj = linear(model, self.qkv), linear(model, self.proj)
        per_unit = 3 * (qkv.in_features + (qkv.bias is not None)) + proj.out_features
        return heads * dim * per_unit + (proj.out_features if proj.bias is not None else 0)


def attention_sites(model: nn.Module) -> list[AttentionSite]:
    """The model's attentions in the order of the forward pass; a block that has none left has no site.

    Raises UserError naming one that does not fit.
    """
    families.ffn_sites(model)  # a model that is not known is refused in the words that are used everywhere
    if not isinstance(model, families.PLAIN):
        raise UserError(f"attention: that of {type(model).__name__} is not supported, only its FFN units are")
    sites, places = [], plain.shared(model)
    blocks: Any = model.blocks
    for i, block in enumerate(blocks):
        path = f"blocks.{i}.attn"
        if type(block) not in BLOCKS:
            raise UserError(
                f"blocks.{i}: the attention of {type(block).__name__} is not supported, only its FFN units are"
            )
        attn: Any = block.attn
        if type(attn) is NoAttention:
            continue
        reason = plain.why_not(attn, KINDS)
        for name, kinds in PARTS.items():
            reason = reason or plain.why_not(getattr(attn, name), kinds)
        if reason is None and any(id(weight) in places for weight in attn.parameters()):
            reason = "shares its weights with another layer"
        if reason is None and type(attn.norm) is not nn.Identity:
            reason = "a norm over all heads stands in front of its projection; only its FFN units can go"
        if reason is not None:
            raise UserError(f"{path}: {reason}")
        bare = type(attn.q_norm) is nn.Identity and type(attn.k_norm) is nn.Identity
        sites.append(AttentionSite(i, path, attn.num_heads, attn.head_dim, attn.gate is None, bare))
    return sites


def slim(model: nn.Module) -> dict[str, tuple[int, int]]:
    """(heads, dimensions) of every attention by its path, (0, 0) where a block has none left; nothing where all of it is
    whole: H heads of D / H dimensions for a stream of D, as every block here is built."""
    found, whole = {}, True
    blocks: Any = model.blocks if isinstance(model, families.PLAIN) else ()
    for i, block in enumerate(blocks):
        attn: Any = getattr(block, "attn", None)
        if isinstance(attn, NoAttention):
            found[f"blocks.{i}.attn"], whole = (0, 0), False
        elif isinstance(attn, KINDS):
            found[f"blocks.{i}.attn"] = (attn.num_heads, attn.head_dim)
            whole = whole and attn.num_heads * attn.head_dim == attn.qkv.in_features
    return {} if whole else found


class NoAttention(nn.Module):
    """What is left of a block's attention without heads: a vector that is added to every token."""

    def __init__(self, bias_D: Tensor) -> None:
        super().__init__()
        self.bias = nn.Parameter(bias_D)

    def forward(self, x: Tensor, **_: Any) -> Tensor:
        """The vector, for every token."""
        return self.bias.expand_as(x)


@torch.no_grad()
def resize(model: nn.Module, site: AttentionSite, heads: int, dim: int) -> None:
    """Give the attention H' = `heads` of d' = `dim` dimensions, with weights that have no meaning yet; without heads
    nothing but a vector is left of it."""
    if (heads, dim) == (site.heads, site.dim):
        return
    if not heads:
        parent, _, name = site.path.rpartition(".")
        setattr(model.get_submodule(parent), name, NoAttention(torch.zeros_like(bias_of(linear(model, site.proj)))))
        return
    qkv, proj = linear(model, site.qkv), linear(model, site.proj)
    width = heads * dim
    first = qkv.weight.new_zeros(3 * width, qkv.in_features), qkv.weight.new_zeros(3 * width)
    second = proj.weight.new_zeros(proj.out_features, width), proj.weight.new_zeros(proj.out_features)
    put(model, site, heads, dim, first, second)
    cut_gate(model, site, torch.arange(heads))


@torch.no_grad()
def put(
    model: nn.Module, site: AttentionSite, heads: int, dim: int, qkv: Sequence[Tensor], proj: Sequence[Tensor]
) -> None:
    """Give the attention these weights and biases [3·H'·d', D], [3·H'·d'] and [D, H'·d'], [D]; a layer that has no bias
    gets none. Weights and metadata together."""
    attn: Any = model.get_submodule(site.path)
    for layer, (weight, bias) in ((attn.qkv, qkv), (attn.proj, proj)):
        old = layer.weight
        layer.weight = nn.Parameter(weight.to(old), requires_grad=old.requires_grad)
        if layer.bias is not None:
            layer.bias = nn.Parameter(bias.to(old), requires_grad=old.requires_grad)
        layer.out_features, layer.in_features = weight.shape
    attn.num_heads, attn.head_dim, attn.attn_dim, attn.scale = heads, dim, heads * dim, dim**-0.5


@torch.no_grad()
def cut_gate(model: nn.Module, site: AttentionSite, heads: Tensor) -> None:
    """Leave only these heads' [k] rows of the gate on what the heads give, where there is one."""
    gate: Any = getattr(model.get_submodule(site.path), "gate", None)
    if gate is not None:
        rows = (heads[:, None] * site.dim + torch.arange(site.dim)).flatten().to(gate.weight.device)
        for name, value in list(gate.named_parameters(recurse=False)):
            setattr(gate, name, nn.Parameter(value[rows].clone(), requires_grad=value.requires_grad))
        gate.out_features = len(rows)
