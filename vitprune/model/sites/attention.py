"""Attention as a site: how many heads it has and how many dimensions a head has, and which of them can become fewer.

The state of an attention is (H', d'): H' heads with d' dimensions of values each, and as many of queries and keys where
those can go, else all they had; (0, d') is a block without attention. A slim attention is timm's own
`Attention(dim, num_heads=H', attn_head_dim=d')` where that can hold it, else `OwnAttention`.

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
from torch import Tensor, nn

from vitprune.core.errors import UserError
from vitprune.model import families, plain
from vitprune.model.declared import Foreign
from vitprune.model.sites import attention_layers as layers
from vitprune.model.sites.ffn import bias_of, linear
from vitprune.model.sites.own_attention import OwnAttention, rows_of

WHOLE = "heads_before"  # an attribute of an attention that became smaller: how many heads it was built with
SMALL = 32  # dimensions of a head up to which they go by fours, and by eights beyond


@dataclass(frozen=True, slots=True)
class AttentionSite:
    """One attention: block index, path inside the model, heads H whose values have `dim` dimensions.

    `values`, `query_keys`, `whole_heads`: what can go. `queries`: dimensions of queries and keys where they are others.
    `gated`: a gate stands behind the heads.
    """

    block: int
    path: str
    heads: int
    dim: int
    values: bool = True
    query_keys: bool = True
    whole_heads: bool = True
    queries: int | None = None
    gated: bool = False

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
        """The dimensions that a head's values may have, ascending; the last is all of them."""
        if not self.values:
            return (self.dim,)
        return (*range(self.multiple, self.dim, self.multiple), self.dim)

    @property
    def counts(self) -> tuple[int, ...]:
        """How many heads there may be, beside none, ascending."""
        return tuple(range(1, self.heads + 1)) if self.whole_heads else (self.heads,)

    def asking(self, dim: int, queries: int | None = None) -> int:
        """The dimensions of a head's queries and keys where its values have `dim`: as many, if not `queries`, where they can
        go."""
        if not self.query_keys:
            return self.queries or self.dim
        return dim if queries is None else queries

    def state(self, heads: int, dim: int, queries: int | None = None) -> tuple[int, ...]:
        """(heads, dimensions), or (heads, those of queries and keys, those of values) where these are others."""
        asked = self.asking(dim, queries) if heads else dim
        return (heads, dim) if asked == dim else (heads, asked, dim)

    @property
    def qkv(self) -> str:
        """The path of the layer that makes queries, keys and values, where it is one."""
        return f"{self.path}.qkv"

    @property
    def proj(self) -> str:
        """The path of the layer that reads what the heads give."""
        return f"{self.path}.proj"

    def macs(self, width: int, tokens: int, read: int, heads: int, dim: int, queries: int | None = None) -> int:
        """Multiply-adds of (heads, dim) for an image of `tokens`, where `read` of them ask and are answered."""
        asked = self.asking(dim, queries)
        projected = width * (asked + dim) * (tokens + read) + (width * dim * read if self.gated else 0)
        return heads * (projected + tokens * read * (asked + dim))

    def parameters(self, model: nn.Module, heads: int, dim: int, queries: int | None = None) -> int:
        """Parameters of (heads, dim)."""
        attn = model.get_submodule(self.path)
        if self.state(heads, dim, queries) == self.state(self.heads, self.dim):
            return sum(weight.numel() for weight in attn.parameters())
        proj = linear(model, self.proj)
        if not heads:  # the vector of `NoAttention`
            return proj.out_features
        left = proj.out_features if proj.bias is not None else 0
        fixed, per_head, per_value = layers.beside(attn)
        into = layers.reads(attn) + layers.has_bias(attn)
        per_head += (2 * self.asking(dim, queries) + dim) * into + dim * (proj.out_features + per_value)
        return heads * per_head + fixed + left


def attention_sites(model: nn.Module) -> list[AttentionSite]:
    """The model's attentions in the order of the forward pass; a block that has none left has no site.

    Raises UserError naming one that does not fit.
    """
    families.ffn_sites(model)  # a model that is not known is refused in the words that are used everywhere
    if not isinstance(model, families.PLAIN):
        of = "another library" if isinstance(model, Foreign) else type(model).__name__
        raise UserError(f"model: the attention of {of} is not supported, only its FFN units are")
    sites, places = [], plain.shared(model)
    blocks: Any = model.blocks
    for i, block in enumerate(blocks):
        found = layers.inside(i, block)
        if found is None:
            raise UserError(
                f"blocks.{i}: the attention of {type(block).__name__} is not supported, only its FFN units are"
            )
        for path, attn in found.items():
            if type(attn) is NoAttention:
                continue
            reason = layers.why_not(attn)
            if reason is None and any(id(weight) in places for weight in attn.parameters()):
                reason = "shares its weights with another layer"
            if reason is not None:
                raise UserError(f"{path}: {reason}")
            sites.append(_site(model, i, path, attn))
    return sites


def _site(model: nn.Module, i: int, path: str, attn: nn.Module) -> AttentionSite:
    """The site, and what of it can go."""
    heads, queries, dim = layers.shape(attn)
    stays = layers.stays(model, attn)
    return AttentionSite(
        i, path, heads, dim, values="values" not in stays, query_keys="query_keys" not in stays,
        whole_heads="heads" not in stays, queries=None if queries == dim else queries,
        gated=getattr(attn, "gate", None) is not None,
    )  # fmt: skip


def stays(model: nn.Module) -> dict[str, str]:
    """What of the model's attention cannot go, with the reason: of "values", "query_keys" and "heads"."""
    found: dict[str, str] = {}
    try:
        sites = attention_sites(model)
    except UserError as error:
        return dict.fromkeys(layers.WHAT, str(error).partition(": ")[2])
    for site in sites:
        found = layers.stays(model, model.get_submodule(site.path)) | found
    return found


def slim(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """(heads, dimensions) of every attention by its path, (heads, queries' and keys' dimensions, values') where these are
    others, (0, 0) where a block has none left; nothing where all of it is whole, as the architecture has it."""
    found: dict[str, tuple[int, ...]] = {}
    whole = True
    blocks: Any = model.blocks if isinstance(model, families.PLAIN) else ()
    for path, attn in (pair for i, block in enumerate(blocks) for pair in (layers.inside(i, block) or {}).items()):
        if isinstance(attn, NoAttention):
            found[path], whole = (0, 0), False
        elif isinstance(attn, layers.KINDS):
            heads, queries, dim = layers.shape(attn)
            found[path] = (heads, dim) if queries == dim else (heads, queries, dim)
            own = type(attn) is OwnAttention or (type(attn) is Attention and heads * dim != attn.qkv.in_features)
            whole = whole and not own
    return {} if whole else found


class NoAttention(nn.Module):
    """What is left of a block's attention without heads: a vector that is added to every token."""

    def __init__(self, bias_D: Tensor) -> None:
        super().__init__()
        self.bias = nn.Parameter(bias_D)

    def forward(self, x: Tensor, **_: Any) -> Tensor:
        """The vector, for every token."""
        return self.bias.expand_as(x)


def fits(attn: nn.Module, queries: int, dim: int) -> bool:
    """Whether timm's own class can hold it with these dimensions of queries and values."""
    return type(attn) is Attention and queries == dim


@torch.no_grad()
def resize(model: nn.Module, site: AttentionSite, heads: int, dim: int, queries: int | None = None) -> None:
    """Give the attention H' = `heads` of d' = `dim` dimensions (and `queries` for queries and keys), with weights that have
    no meaning yet; without heads nothing but a vector is left of it."""
    asked = site.asking(dim) if queries is None else queries
    if (heads, asked, dim) == (site.heads, site.asking(site.dim), site.dim):
        return
    attn: Any = model.get_submodule(site.path)
    if not heads:
        _replace(model, site, NoAttention(torch.zeros_like(bias_of(attn.proj))))
        return
    if not fits(attn, asked, dim):
        _replace(model, site, OwnAttention(attn, torch.arange(heads, device="cpu"), asked, dim, layers.has_bias(attn)))
        return
    qkv, proj, width = attn.qkv, attn.proj, heads * dim
    first = qkv.weight.new_zeros(3 * width, qkv.in_features), qkv.weight.new_zeros(3 * width)
    second = proj.weight.new_zeros(proj.out_features, width), proj.weight.new_zeros(proj.out_features)
    put(model, site, heads, dim, first, second)
    cut_rows(model, site, torch.arange(heads, device="cpu"))


def _replace(model: nn.Module, site: AttentionSite, made: nn.Module) -> None:
    parent, _, name = site.path.rpartition(".")
    setattr(made, WHOLE, getattr(model.get_submodule(site.path), WHOLE, site.heads))
    setattr(model.get_submodule(parent), name, made)


def whole_heads(model: nn.Module) -> int | None:
    """How many heads the architecture gives every attention, whatever was cut; None where nothing says it."""
    blocks: Any = model.blocks if isinstance(model, families.PLAIN) else ()
    found: list[int] = []
    for attn in (attn for i, block in enumerate(blocks) for attn in (layers.inside(i, block) or {}).values()):
        heads, _, dim = layers.shape(attn) if isinstance(attn, layers.KINDS) else (0, 0, 0)
        is_whole = heads > 0 and heads * dim == model.embed_dim
        found.append(getattr(attn, WHOLE, heads if is_whole else 0))
    return max(found, default=0) or None


@torch.no_grad()
def put(
    model: nn.Module, site: AttentionSite, heads: int, dim: int, qkv: Sequence[Tensor], proj: Sequence[Tensor]
) -> None:
    """Give timm's attention these weights and biases [3·H'·d', D], [3·H'·d'] and [D, H'·d'], [D]; a layer that has no bias
    gets none. Weights and metadata together."""
    attn: Any = model.get_submodule(site.path)
    for layer, (weight, bias) in ((attn.qkv, qkv), (attn.proj, proj)):
        old = layer.weight
        layer.weight = nn.Parameter(weight.to(old), requires_grad=old.requires_grad)
        if layer.bias is not None:
            layer.bias = nn.Parameter(bias.to(old), requires_grad=old.requires_grad)
        layer.out_features, layer.in_features = weight.shape
    setattr(attn, WHOLE, getattr(attn, WHOLE, site.heads))
    attn.num_heads, attn.head_dim, attn.attn_dim, attn.scale = heads, dim, heads * dim, dim**-0.5


@torch.no_grad()
def put_own(
    model: nn.Module, site: AttentionSite, heads: Tensor, parts: Sequence[Tensor], columns_HDd: Tensor, bias: Tensor
) -> None:
    """Put an `OwnAttention` of these heads [k] in the place: [weight bias] of queries, keys and values per head
    [k, d, D + 1], proj's columns and bias."""
    old: Any = model.get_submodule(site.path)
    made = OwnAttention(old, heads, parts[0].shape[1], parts[2].shape[1], layers.has_bias(old)).train(old.training)
    layers.put_rows(made, torch.cat([part.flatten(0, 1) for part in parts]))
    made.proj.weight.copy_(columns_HDd.transpose(0, 1).flatten(1))
    if made.proj.bias is not None:
        made.proj.bias.copy_(bias)
    _replace(model, site, made)


def without(model: nn.Module, site: AttentionSite) -> None:
    """Leave nothing of the attention but the bias of its projection."""
    _replace(model, site, NoAttention(bias_of(linear(model, site.proj)).clone()))


@torch.no_grad()
def cut_rows(model: nn.Module, site: AttentionSite, heads: Tensor) -> None:
    """Leave only these heads' [k] rows of the gate and of the norm on what the heads give, where there are some."""
    attn: Any = model.get_submodule(site.path)
    units = (heads[:, None].cpu() * site.dim + torch.arange(site.dim, device="cpu")).flatten()
    for name in ("gate", "norm"):
        if (made := rows_of(getattr(attn, name, None), units)) is not None:
            setattr(attn, name, made)
