"""What the rest needs to know of a model: its FFN sites, its token layout, its blocks in halves.

The only file that knows model families. Supported: timm's VisionTransformer made of plain `Block`s with `Mlp`s
(ViT, DeiT-III, DINOv2 with its LayerScale, …). A model that does not fit is refused by the name of the module.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from timm.layers import Mlp
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block, LayerScale, VisionTransformer
from torch import Tensor, nn

from vitprune import hooks
from vitprune.errors import UserError
from vitprune.types import FfnSite, TokenLayout


def ffn_sites(model: nn.Module) -> list[FfnSite]:
    """The model's FFNs in the order of the forward pass. Raises UserError naming the module that does not fit."""
    if not isinstance(model, VisionTransformer):
        raise UserError(f"model: {type(model).__name__} is not supported; a timm VisionTransformer is needed")
    sites = []
    for i, block in enumerate(model.blocks):
        if not isinstance(block, Block):
            raise UserError(f"blocks.{i}: {type(block).__name__} is not supported; timm's plain Block is needed")
        mlp = block.mlp
        if type(mlp) is not Mlp or not isinstance(mlp.fc1, nn.Linear) or not isinstance(mlp.fc2, nn.Linear):
            raise UserError(f"blocks.{i}.mlp: {type(mlp).__name__} is not supported; a plain fc1-act-fc2 Mlp is needed")
        if not isinstance(mlp.norm, nn.Identity):
            raise UserError(f"blocks.{i}.mlp.norm: a norm between the hidden units and fc2 is not supported")
        if mlp.fc2.bias is None:
            raise UserError(f"blocks.{i}.mlp.fc2: has no bias, recovery needs one")
        path = f"blocks.{i}.mlp"
        sites.append(FfnSite(i, f"{path}.fc1", f"{path}.act", f"{path}.fc2", mlp.fc1.out_features))
    if not sites:
        raise UserError("model: has no blocks, there is nothing to prune")
    return sites


def token_layout(model: nn.Module) -> TokenLayout:
    """Where the class token is and what the head reads. Raises UserError for a pooling that is not known."""
    pooling = getattr(model, "global_pool", None)
    if getattr(model, "attn_pool", None) is not None or pooling not in ("token", "avg"):
        raise UserError(f"model.global_pool: `{pooling}` is not supported; `token` or `avg` is")
    return TokenLayout(
        int(getattr(model, "num_prefix_tokens", 0)), bool(getattr(model, "has_class_token", False)), pooling
    )


def tokens_read(model: nn.Module) -> slice:
    """The tokens of the last block that the head reads; what the last FFN does to the others is never seen."""
    layout = token_layout(model)
    if layout.pooling == "token":
        return slice(0, 1)
    return slice(0 if getattr(model, "pool_include_prefix", False) else layout.prefix, None)


def scored_tokens(model: nn.Module, tokens: str, criterion: str) -> slice:
    """Where hidden units are assigned: the class token, the patches, or every token."""
    if tokens == "cls":
        require_class_token(model, criterion)
        return slice(0, 1)
    return slice(0, None) if tokens == "all" else slice(token_layout(model).prefix, None)


def require_class_token(model: nn.Module, criterion: str) -> None:
    """Class-token criteria need a head that reads the class token."""
    layout = token_layout(model)
    if not layout.has_class_token or layout.pooling != "token":
        raise UserError(f"criterion `{criterion}`: scores the class token, but this model's head does not read one")


@dataclass(frozen=True, slots=True)
class Halves:
    """A block in two halves around its FFN, so that a pass can start anywhere: x → attend → ffn → … → head.

    Legend: R rows (images × nodes), T tokens, D width, N hidden units. Weights are used as they are, in eval mode.
    """

    model: VisionTransformer

    def stream_into_blocks(self, images: Tensor) -> Tensor:
        """[B, C, H, W] → the stream into the first block, [B, T, D]."""
        return hooks.input_of(self.model.blocks[0], lambda: self.model.forward_features(images))

    def attend(self, i: int, x_RTD: Tensor) -> Tensor:
        """The stream after block i's attention."""
        block = self.model.blocks[i]
        return x_RTD + block.ls1(block.attn(block.norm1(x_RTD)))

    def attend_first(self, i: int, x_RTD: Tensor) -> Tensor:
        """The first token's row of `attend`, [R, 1, D]: one query instead of T."""
        block, attn = self.model.blocks[i], self.model.blocks[i].attn
        if type(attn) is not Attention:
            return self.attend(i, x_RTD)[:, :1]
        normed, split = block.norm1(x_RTD), attn.attn_dim
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
        return x_RTD[:, :1] + block.ls1(attn.proj(out))

    def hidden(self, i: int, z_RTD: Tensor) -> Tensor:
        """Post-activation hidden units of block i, [R, T, N]."""
        block = self.model.blocks[i]
        return block.mlp.act(block.mlp.fc1(block.norm2(z_RTD)))

    def add_ffn(self, i: int, z_RTD: Tensor, hidden_RTN: Tensor) -> Tensor:
        """The stream after block i, given its hidden units."""
        block = self.model.blocks[i]
        return z_RTD + block.ls2(block.mlp.fc2(hidden_RTN))

    def through_ffn(self, i: int, hidden_RTN: Tensor) -> Tensor:
        """What a change of block i's hidden units adds to the stream: γ⊙(W2·h), no bias."""
        block = self.model.blocks[i]
        return block.ls2(F.linear(hidden_RTN, block.mlp.fc2.weight))

    def back_through_ffn(self, i: int, grad_RTD: Tensor) -> Tensor:
        """The gradient at block i's hidden units from that at the stream after it: W2ᵀ·(γ⊙g)."""
        block = self.model.blocks[i]
        return block.ls2(grad_RTD) @ block.mlp.fc2.weight

    def ffn_columns(self, i: int) -> Tensor:
        """What each hidden unit of block i writes to the stream, [N, D]."""
        block = self.model.blocks[i]
        return block.ls2(block.mlp.fc2.weight.T)

    def scale(self, i: int, part: Literal["attention", "ffn"]) -> Tensor | None:
        """The LayerScale γ [D] of block i's half, or None."""
        layer = self.model.blocks[i].ls1 if part == "attention" else self.model.blocks[i].ls2
        return layer.gamma.detach() if isinstance(layer, LayerScale) else None

    def logits(self, x_RTD: Tensor) -> Tensor:
        """The head on the stream after the last block; only the rows that the pooling reads need be there."""
        return self.model.forward_head(self.model.norm(x_RTD))


def halves(model: nn.Module) -> Halves | None:
    """The model in halves, or None where its blocks are not exactly timm's `Block`."""
    if isinstance(model, VisionTransformer) and all(type(b) is Block for b in model.blocks):
        return Halves(model)
    return None


def input_shape(model: nn.Module) -> tuple[int, int, int]:
    """Channels, height, width the model was built for."""
    embed = model.get_submodule("patch_embed")
    height, width = getattr(embed, "img_size", None) or (224, 224)
    return int(embed.get_submodule("proj").in_channels), int(height), int(width)  # type: ignore[arg-type]


def device_of(model: nn.Module) -> torch.device:
    """The device of the model's first parameter."""
    return next(model.parameters()).device


def resolve_device(name: str) -> torch.device:
    """`auto`, `cpu`, `cuda[:k]` or `mps`; a device that is not there is the user's to mend."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"--device {name}: not a device; use auto, cpu, cuda or mps") from error
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available.get(device.type, False):
        raise UserError(f"--device {name}: not available here; use --device cpu, or see `vitprune doctor`")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {name}: only {torch.cuda.device_count()} CUDA device(s) here")
    return device
