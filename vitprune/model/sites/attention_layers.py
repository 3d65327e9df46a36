"""The attentions of timm's families as they are built: where each keeps its queries', keys' and values' weights.

One layer `qkv` for all three, with a bias, without one, or with one of its own beside it (none for the keys); or three
layers. Legend: D width, N rows of queries, keys and values together.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import LayerNorm, RmsNorm
from timm.layers.attention import Attention, AttentionRope
from timm.models import beit, eva
from timm.models import vision_transformer as vit
from timm.models import vision_transformer_relpos as relpos
from torch import Tensor, nn

from vitprune.model import plain
from vitprune.model.sites.own_attention import OwnAttention, positions

BLOCKS = (
    vit.Block, vit.ResPostBlock, relpos.RelPosBlock, relpos.ResPostRelPosBlock, beit.Block, eva.EvaBlock,
    eva.EvaBlockPostNorm,
)  # fmt: skip
KINDS = (Attention, AttentionRope, relpos.RelPosAttention, beit.Attention, eva.EvaAttention, OwnAttention)
NORMS = (nn.Identity, nn.LayerNorm, LayerNorm, RmsNorm)
WHAT = ("values", "query_keys", "heads")
SHARED = "all blocks share a bias by position of every head"
PARTS = {
    "qkv": plain.LINEAR, "q_proj": plain.LINEAR, "k_proj": plain.LINEAR, "v_proj": plain.LINEAR, "gate": plain.LINEAR,
    "proj": plain.LINEAR, "attn_drop": plain.IDLE, "proj_drop": plain.IDLE, "norm": NORMS,
}  # fmt: skip


def inside(i: int, block: nn.Module) -> dict[str, nn.Module] | None:
    """A block's attentions by their paths in the model; None where it is of a kind that is not known."""
    if type(block) in BLOCKS:
        return {f"blocks.{i}.attn": block.get_submodule("attn")}
    if type(block) is vit.ParallelThingsBlock:
        return {f"blocks.{i}.attns.{k}.attn": half.get_submodule("attn") for k, half in _named(block, "attns")}
    return None


def _named(block: nn.Module, rows: str) -> list[tuple[str, nn.Module]]:
    return list(block.get_submodule(rows).named_children())


def why_not(attn: nn.Module) -> str | None:
    """Why this attention cannot become smaller; None where it can."""
    reason = plain.why_not(attn, KINDS)
    if reason is None and getattr(attn, "num_kv_groups", 1) > 1:
        reason = "several heads share their keys and values; only its FFN units can go"
    for name, kinds in PARTS.items():
        part = getattr(attn, name, None)
        if reason is None and part is not None:
            reason = plain.why_not(part, kinds)
    return reason


def shape(attn: nn.Module) -> tuple[int, int, int]:
    """Heads, dimensions of a head's queries and keys, and of its values."""
    of: Any = attn
    if isinstance(attn, OwnAttention):
        return attn.num_heads, attn.head_dim, attn.value_dim
    own = int(of.proj.in_features) // int(of.num_heads)
    return int(of.num_heads), own, own


def idle(attn: nn.Module, name: str) -> bool:
    """Whether nothing is done at this place."""
    return type(getattr(attn, name, nn.Identity())) is nn.Identity


def stays(model: nn.Module, attn: nn.Module) -> dict[str, str]:
    """What of this attention cannot become fewer, and why: of `WHAT`."""
    of: Any = model
    mixed = getattr(of, "rope_mixed", False) or getattr(of, "rope_is_mixed", False)
    shared = getattr(of, "rel_pos_bias", None) is not None or getattr(of, "shared_rel_pos", None) is not None
    _, queries, dim = shape(attn)
    reasons = {
        "heads": [(mixed, "all blocks share rotary embeddings of every head"), (shared, SHARED)],
        "values": [
            (getattr(attn, "gate", None) is not None, "a gate stands behind the heads"),
            (not idle(attn, "norm"), "a norm stands behind the heads"),
        ],
        "query_keys": [
            (not (idle(attn, "q_norm") and idle(attn, "k_norm")), "a norm stands behind queries and keys"),
            (getattr(of, "rope", None) is not None, "rotary embeddings stand behind queries and keys"),
            (shared, SHARED),
            (queries != dim, "they have other dimensions than the values"),
        ],
    }
    reasons["query_keys"] += reasons["values"]
    return {
        what: next(why for is_so, why in said if is_so) for what, said in reasons.items() if any(x for x, _ in said)
    }


def calls_qkv(attn: nn.Module) -> bool:
    """Whether it calls its layer `qkv`, rather than to take the weights out of it."""
    return isinstance(attn, Attention | relpos.RelPosAttention)


def bias_of_positions(attn: nn.Module) -> Tensor | None:
    """What is added to the logits of every two tokens [H, T, T], its own alone; None where nothing is."""
    table, index = positions(attn)
    return None if table is None or index is None else table[index].permute(2, 0, 1)


def reads(attn: nn.Module) -> int:
    """Numbers of a token that queries, keys and values are made of."""
    of: Any = attn
    return int((of.q_proj if of.qkv is None else of.qkv).in_features)


def beside(attn: nn.Module) -> tuple[int, int, int]:
    """Parameters beside `qkv` and `proj` in a smaller one: those that are there once, for each head, for each value."""
    of: Any = attn
    fixed = sum(w.numel() for name in ("q_norm", "k_norm") for w in getattr(of, name, nn.Identity()).parameters())
    table, _ = positions(attn)
    behind = len(list(getattr(of, "norm", nn.Identity()).parameters()))
    gate = getattr(of, "gate", None)
    behind += 0 if gate is None else gate.in_features + (gate.bias is not None)
    return fixed, 0 if table is None else len(table), behind


def has_bias(attn: nn.Module) -> bool:
    """Whether anything is added to what queries, keys and values are made of."""
    of: Any = attn
    if getattr(of, "q_bias", None) is not None:
        return True
    return (of.q_proj if of.qkv is None else of.qkv).bias is not None


def rows(attn: nn.Module) -> Tensor:
    """[weight bias] of queries, keys and values, one under the other, [N, D + 1], in the weights' precision."""
    of: Any = attn
    layers = [of.q_proj, of.k_proj, of.v_proj] if of.qkv is None else [of.qkv]
    weight = torch.cat([layer.weight for layer in layers])
    if getattr(of, "q_bias", None) is not None:
        parts = [of.q_bias, torch.zeros_like(of.q_bias), of.v_bias]
    else:
        parts = [layer.weight[:, 0] * 0 if layer.bias is None else layer.bias for layer in layers]
    return torch.cat([weight, torch.cat(parts)[:, None]], 1)


@torch.no_grad()
def put_rows(attn: nn.Module, made: Tensor) -> None:
    """Put what `rows` gave, changed, back into its places; a place that has no bias gets none."""
    of: Any = attn
    layers = [of.q_proj, of.k_proj, of.v_proj] if of.qkv is None else [of.qkv]
    for layer, own in zip(layers, made.split([layer.out_features for layer in layers]), strict=True):
        layer.weight.copy_(own[:, :-1])
        if layer.bias is not None:
            layer.bias.copy_(own[:, -1])
    if getattr(of, "q_bias", None) is not None:
        q, _, v = made[:, -1].chunk(3)
        of.q_bias.copy_(q)
        of.v_bias.copy_(v)
