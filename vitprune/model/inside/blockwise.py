"""A block in two halves around its FFN, so that a pass can start anywhere: x → attend → ffn → … → head.

For blocks that are x + γ₁·attention(norm1(x)), then z + γ₂·ffn(norm2(z)), under whatever name a family keeps its γ; what a
block is given beside the stream (rotary embeddings, a position bias) is the same for every image and read off once.
Legend: R rows (images × nodes), T tokens, D width, N hidden units. Weights are used as they are, in eval mode.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, cast

import torch
import torch.nn.functional as F
from timm.layers import GluMlp, Mlp, SwiGLU
from timm.layers.attention import Attention, AttentionRope
from timm.layers.diff_attention import DiffAttention
from timm.models import beit, eva
from timm.models import vision_transformer as vit
from timm.models import vision_transformer_relpos as relpos
from torch import Tensor, nn

from vitprune.model import families, plain
from vitprune.model.inside import hooks
from vitprune.model.sites.own_attention import OwnAttention

IN_HALVES = (vit.Block, relpos.RelPosBlock, beit.Block, eva.EvaBlock)
ATTENTIONS = (
    Attention, AttentionRope, DiffAttention, relpos.RelPosAttention, beit.Attention, eva.EvaAttention, OwnAttention,
)  # fmt: skip
PASSED_BY = {"drop_path1": plain.IDLE, "drop_path2": plain.IDLE, "ls1": plain.SCALES, "ls2": plain.SCALES,
             "mlp.drop2": plain.IDLE}  # fmt: skip
Part = Literal["attention", "ffn"]


class Timm(Protocol):
    """A model of timm's, whose pass can begin and end around the blocks."""

    def forward_features(self, x: Tensor) -> Tensor: ...

    def forward_head(self, x: Tensor) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Halves:
    """The halves of every block of `model`; `beside` per block what its attention is given beside the stream; `changed`:
    why a layer of an attention (by its path) is not what its class says, so that it is only ever called, never refitted."""

    model: nn.Module
    beside: list[dict[str, Any]]
    changed: dict[str, str] = field(default_factory=dict)

    @property
    def blocks(self) -> nn.ModuleList:
        return cast("nn.ModuleList", self.model.get_submodule("blocks"))

    @property
    def timm(self) -> Timm:
        """The model by its own methods, which every kind in halves has."""
        return cast("Timm", self.model)

    def stream_into_blocks(self, images: Tensor) -> Tensor:
        """[B, C, H, W] → the stream into the first block, [B, T, D]."""
        return hooks.input_of(self.blocks[0], lambda: self.timm.forward_features(images))

    def attention(self, i: int, x_RTD: Tensor) -> Tensor:
        """What block i's attention gives for the stream, before its γ."""
        block = self.blocks[i]
        normed: Tensor = block.get_submodule("norm1")(x_RTD)
        attended: Tensor = block.get_submodule("attn")(normed, **self.beside[i])
        return attended

    def attend(self, i: int, x_RTD: Tensor) -> Tensor:
        """The stream after block i's attention."""
        return x_RTD + self.scaled(i, "attention", self.attention(i, x_RTD))

    def project(self, i: int, x_RTD: Tensor, mixed_RTD: Tensor) -> Tensor:
        """The stream after block i's attention, given what goes into its projection."""
        return x_RTD + self.scaled(i, "attention", self.blocks[i].get_submodule("attn.proj")(mixed_RTD))

    def attend_first(self, i: int, x_RTD: Tensor) -> Tensor:
        """The first token's row of `attend`, [R, 1, D]: one query instead of T."""
        block = self.blocks[i]
        attn: Any = block.attn
        if type(attn) is not Attention or any(path.startswith(f"blocks.{i}.attn") for path in self.changed):
            return self.attend(i, x_RTD)[:, :1]
        normed, split = block.get_submodule("norm1")(x_RTD), attn.attn_dim
        weight, bias = attn.qkv.weight, attn.qkv.bias
        q = F.linear(normed[:, :1], weight[:split], None if bias is None else bias[:split])
        kv = F.linear(normed, weight[split:], None if bias is None else bias[split:])
        q, k, v = (
            y.unflatten(2, (attn.num_heads, attn.head_dim)).transpose(1, 2)
            for y in (q, kv[..., :split], kv[..., split:])
        )
        out = F.scaled_dot_product_attention(attn.q_norm(q), attn.k_norm(k), v, scale=attn.scale)
        out = attn.norm(out.transpose(1, 2).flatten(2))
        if attn.gate is not None:
            out = out * attn.gate(normed[:, :1]).sigmoid()
        return x_RTD[:, :1] + self.scaled(i, "attention", attn.proj(out))

    def hidden(self, i: int, z_RTD: Tensor) -> Tensor:
        """Hidden units of block i as fc2 reads them, [R, T, N]."""
        block = self.blocks[i]
        mlp: Any = block.mlp
        x = block.get_submodule("norm2")(z_RTD)
        if isinstance(mlp, SwiGLU):
            return mlp.norm(mlp.act(mlp.fc1_g(x)) * mlp.fc1_x(x))
        if isinstance(mlp, GluMlp):
            first, second = mlp.fc1(x).chunk(2, -1)
            return mlp.norm(first * mlp.act(second) if mlp.gate_last else mlp.act(first) * second)
        assert isinstance(mlp, Mlp)
        return mlp.norm(mlp.act(mlp.fc1(x)))

    def fc2(self, i: int) -> nn.Linear:
        """Block i's second FFN layer."""
        return cast("nn.Linear", self.blocks[i].get_submodule("mlp.fc2"))

    def add_ffn(self, i: int, z_RTD: Tensor, hidden_RTN: Tensor) -> Tensor:
        """The stream after block i, given its hidden units."""
        return z_RTD + self.scaled(i, "ffn", self.fc2(i)(hidden_RTN))

    def through_ffn(self, i: int, hidden_RTN: Tensor) -> Tensor:
        """What a change of block i's hidden units adds to the stream: γ⊙(W2·h), no bias."""
        return self.scaled(i, "ffn", F.linear(hidden_RTN, self.fc2(i).weight))

    def back_through_ffn(self, i: int, grad_RTD: Tensor) -> Tensor:
        """The gradient at block i's hidden units from that at the stream after it: W2ᵀ·(γ⊙g)."""
        return self.scaled(i, "ffn", grad_RTD) @ self.fc2(i).weight

    def ffn_columns(self, i: int) -> Tensor:
        """What each hidden unit of block i writes to the stream, [N, D]."""
        return self.scaled(i, "ffn", self.fc2(i).weight.T)

    def mixed_columns(self, i: int) -> Tensor:
        """What each dimension of block i's mixed values writes to the stream, [heads · dimensions, D]."""
        return self.scaled(i, "attention", cast("nn.Linear", self.blocks[i].get_submodule("attn.proj")).weight.T)

    def scaled(self, i: int, part: Part, written_RTD: Tensor) -> Tensor:
        """What a half writes, times its γ."""
        gamma = self.scale(i, part)
        return written_RTD if gamma is None else written_RTD * gamma

    def scale(self, i: int, part: Part) -> Tensor | None:
        """The γ [D] of block i's half, or None."""
        block, k = self.blocks[i], 1 if part == "attention" else 2
        gamma = getattr(getattr(block, f"ls{k}", None), "gamma", None)
        gamma = getattr(block, f"gamma_{k}", None) if gamma is None else gamma
        return None if gamma is None else gamma.detach()

    def logits(self, x_RTD: Tensor) -> Tensor:
        """The head on the stream after the last block; only the rows that the pooling reads need be there."""
        return self.timm.forward_head(self.model.get_submodule("norm")(x_RTD))


def halves(model: nn.Module) -> Halves | None:
    """The model in halves, or None where its blocks are not of exactly this kind (`why_not` says what is not)."""
    if why_not(model) is not None:
        return None
    changed = _changed(model)
    blocks: Any = model.blocks
    if type(blocks[0]) is vit.Block and isinstance(model, vit.VisionTransformer):
        return Halves(model, [{} for _ in blocks], changed)
    example = next(model.parameters()).new_zeros(1, *families.input_shape(model))
    with torch.no_grad(), hooks.keywords_of(list(blocks)) as given:
        cast("Timm", model).forward_features(example)
    beside = [{key: value for key, value in one.items() if value is not None} for one in given]
    return Halves(model, beside, changed)


def why_not(model: nn.Module) -> str | None:
    """Why the model cannot be taken in halves; beyond what `ffn_sites` looks at, what the halves pass by has to do nothing."""
    if not isinstance(model, families.PLAIN):
        return "this model has others"
    for i, block in enumerate(model.blocks):
        if type(block) not in IN_HALVES:
            return f"blocks.{i} is a {type(block).__name__}"
        for name, kinds in PASSED_BY.items():
            owner = block.mlp if name.startswith("mlp.") else block
            part = getattr(owner, name.removeprefix("mlp."), None)
            reason = None if part is None else plain.why_not(part, kinds)
            if reason is not None:
                return f"blocks.{i}.{name}: {reason}"
    return None


def _changed(model: Any) -> dict[str, str]:
    """Path → reason of the attention layers that may not be refitted, nor read past their own forward."""
    found, places = {}, plain.shared(model)
    for i, block in enumerate(model.blocks):
        path, attn = f"blocks.{i}.attn", block.attn
        reason = plain.why_not(attn, ATTENTIONS)
        for part in filter(None, (getattr(attn, "attn_drop", None), getattr(attn, "proj_drop", None))):
            reason = reason or plain.why_not(part, plain.IDLE)
        for name in ("qkv", "proj"):
            layer: Any = getattr(attn, name, None)
            if layer is None and reason is None:
                continue
            why = reason or plain.why_not(layer, plain.LINEAR)
            if why is None and any(id(weight) in places for weight in layer.parameters()):
                why = "shares its weights with another layer"
            if why is not None:
                found[f"{path}.{name}"] = why
    return found
