"""The last block for the class token alone: what a head that reads nothing else needs of it, and no more.

Keys and values are those of all tokens; the query, the projection and the FFN are the class token's. The other tokens' rows
of the last block are never read, so what is left is the same sum: exact, not an approximation. Only for timm's own
VisionTransformer with its own Block, whose forward is known here; any other model is taken as it is (`why_not`).
"""

from __future__ import annotations

import copy
from typing import Any

import torch.nn.functional as F
from timm.layers.attention import Attention
from timm.models import vision_transformer as vit
from torch import Tensor, nn

from vitprune.model import families, plain
from vitprune.model.sites.attention import NoAttention

PARTS = {"qkv": plain.LINEAR, "proj": plain.LINEAR, "attn_drop": plain.IDLE, "proj_drop": plain.IDLE}
BLOCK = {"drop_path1": plain.IDLE, "drop_path2": plain.IDLE, "ls1": plain.SCALES, "ls2": plain.SCALES}


def why_not(model: nn.Module) -> str | None:
    """Why the last block cannot be taken for the class token alone; None where it can."""
    if type(model) is not vit.VisionTransformer:
        return f"{type(model).__name__} is not timm's VisionTransformer"
    layout = families.token_layout(model)
    if not layout.class_token or (layout.start, layout.stop) != (0, 1):
        return "its head reads other tokens than the class token"
    blocks, norm = model.get_submodule("blocks"), model.get_submodule("norm")
    block: Any = [*blocks.children()][-1]
    reason = plain.touched(model) or plain.why_not(blocks, families.ROWS) or plain.touched(norm)
    reason = reason or plain.why_not(block, (vit.Block,))
    for name, kinds in BLOCK.items():
        reason = reason or plain.why_not(getattr(block, name), kinds)
    if reason is not None or type(block.attn) is NoAttention:
        return reason
    reason = plain.why_not(block.attn, (Attention,))
    for name, kinds in PARTS.items():
        reason = reason or plain.why_not(getattr(block.attn, name), kinds)
    return reason


def of(model: nn.Module) -> nn.Module:
    """The model with its last block for the class token alone; it shares the weights of `model`, which stays as it is.

    For those models that `why_not` finds nothing against.
    """
    reason = why_not(model)
    assert reason is None, reason
    made, blocks = copy.copy(model), [*model.get_submodule("blocks").children()]
    made._modules = dict(model._modules)
    made.add_module("blocks", nn.Sequential(*blocks[:-1], FirstToken(blocks[-1])))
    return made


class FirstToken(nn.Module):
    """[B, T, D] → [B, 1, D]: the first token's row of what a timm Block gives."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.block = block
        self.eval()
        if type(block.attn) is Attention:
            self.q, self.k, self.v = (_rows(block.attn.qkv, i, block.attn.attn_dim) for i in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """The block on the class token, which asks all of them."""
        block, first = self.block, x[:, :1]
        if type(block.attn) is NoAttention:  # every token by itself
            alone: Tensor = block(first)
            return alone
        z: Tensor = first + block.ls1(self.attended(block.norm1(x)))
        return z + block.ls2(block.mlp(block.norm2(z)))

    def attended(self, x: Tensor) -> Tensor:
        """What the attention gives for the first token, [B, 1, D]."""
        attn, first = self.block.attn, x[:, :1]
        q, k, v = (
            layer(given).unflatten(2, (attn.num_heads, attn.head_dim)).transpose(1, 2)
            for layer, given in ((self.q, first), (self.k, x), (self.v, x))
        )
        out = F.scaled_dot_product_attention(attn.q_norm(q), attn.k_norm(k), v)
        out = attn.norm(out.transpose(1, 2).flatten(2))
        if attn.gate is not None:
            out = out * attn.gate(first).sigmoid()
        written: Tensor = attn.proj(out)
        return written


def _rows(layer: nn.Linear, part: int, size: int) -> nn.Linear:
    """The layer's part-th `size` outputs as a layer, on the same memory."""
    made = nn.Linear(layer.in_features, size, bias=layer.bias is not None, device="meta")
    own = slice(part * size, (part + 1) * size)
    made.weight = nn.Parameter(layer.weight.detach()[own], requires_grad=False)
    if layer.bias is not None:
        made.bias = nn.Parameter(layer.bias.detach()[own], requires_grad=False)
    return made
