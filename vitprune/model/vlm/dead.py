"""Vision blocks that no logit depends on, found by asking, and taken out.

LLaVA reads its vision tower before the last block (`vision_feature_layer` −2), so the last block is computed for nothing.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from vitprune.core.errors import UserError
from vitprune.model.inside import hooks
from vitprune.model.vlm import sites
from vitprune.model.vlm.opening import Vlm
from vitprune.model.vlm.tokens import Batch, call


def dead_blocks(model: nn.Module, batch: Batch) -> list[int]:
    """The vision blocks (from 0) whose FFN no logit of a batch depends on: the graph of the computation does not reach it."""
    found = sites.ffns(model, "vision")
    outputs: dict[int, Tensor] = {}

    def keep(position: int, out: Tensor) -> Tensor:
        outputs[position] = out if out.requires_grad else out.detach().requires_grad_()
        return outputs[position]

    with torch.enable_grad(), hooks.layers(model, [site.fc2 for site in found], written=keep):
        grads = torch.autograd.grad(
            call(model, batch).sum(), [outputs[i] for i in range(len(found))], allow_unused=True
        )
    return [site.block for site, grad in zip(found, grads, strict=True) if grad is None]


@torch.no_grad()
def without(vlm: Vlm, blocks: list[int], batch: Batch) -> Vlm:
    """A copy of the model without these vision blocks, which must be its last ones and dead: the logits of `batch` are held
    against the model's, and must be the same to the bit. Raises UserError where they are not."""
    total = len(sites.ffns(vlm.model, "vision"))
    if not blocks or blocks != list(range(total - len(blocks), total)) or len(blocks) == total:
        raise UserError(f"vision blocks {blocks}: only the last ones of {total} can be taken out whole, and not all")
    if not set(blocks) <= set(dead_blocks(vlm.model, batch)):
        raise UserError(f"vision blocks {blocks}: logits depend on them, so they stay")
    model: Any = copy.deepcopy(vlm.model)
    path, layers = _layers(model, total)
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, nn.ModuleList(list(layers)[: total - len(blocks)]))
    part = model.config.vision_config
    setattr(part, "depth" if hasattr(part, "depth") else "num_hidden_layers", total - len(blocks))
    read = getattr(model.config, "vision_feature_layer", None)
    if isinstance(read, int) and read < 0:
        model.config.vision_feature_layer = read + len(blocks)
    elif isinstance(read, list):
        model.config.vision_feature_layer = [i + len(blocks) if i < 0 else i for i in read]
    if not torch.equal(call(model, batch), call(vlm.model, batch)):
        raise UserError(f"vision blocks {blocks}: the logits change without them, so they stay")
    return replace(vlm, model=model)


def _layers(model: nn.Module, total: int) -> tuple[str, nn.ModuleList]:
    root = sites.tower(model, "vision")
    for path, module in model.get_submodule(root).named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == total:
            return f"{root}.{path}", module
    raise UserError("model: the blocks of its vision tower are not in one list")
