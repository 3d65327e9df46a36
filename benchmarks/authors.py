"""The authors' procedure for TopK JAS, rebuilt from its description, as the yardstick of benchmarks/discovery.py.

For every block l: one forward of images × nodes in which the class token's hidden vector of every earlier block is held
at its clean value with the path's unit scaled by α, and that of block l is scaled whole; then a separate backward to
block l and to every earlier block. Left Riemann sum, one unit per block (t = 1).
"""

from __future__ import annotations

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor


def scores(model: VisionTransformer, images: Tensor, labels: Tensor, nodes: int) -> list[Tensor]:
    """Candidate scores per block, [B, N], along the greedy path of one unit per block."""
    batch = len(images)
    alpha = (torch.arange(nodes) / nodes).repeat_interleave(batch)[:, None].to(images)
    images_R, labels_R = images.repeat(nodes, 1, 1, 1), labels.repeat(nodes)
    clean: list[Tensor] = []
    _forward(model, images, lambda i, hidden: clean.append(hidden[:, 0].detach()))
    path: list[Tensor] = []
    found: list[Tensor] = []
    for block in range(len(model.blocks)):
        given: list[Tensor] = []
        for i in range(block + 1):
            value = clean[i].repeat(nodes, 1)
            if i == block:
                value = alpha * value
            else:
                unit = path[i].repeat(nodes)[:, None]
                value = value.scatter(1, unit, alpha * value.gather(1, unit))
            given.append(value.requires_grad_())

        def hold(i: int, hidden: Tensor, given: list[Tensor] = given) -> Tensor | None:
            return torch.cat([given[i][:, None], hidden[:, 1:]], 1) if i < len(given) else None

        with torch.enable_grad():
            p = _forward(model, images_R, hold).softmax(-1).gather(1, labels_R[:, None]).sum()
        value_B = torch.zeros(batch).to(images)
        gradient_B = torch.zeros(batch).to(images)
        for i in range(block):
            (grad,) = torch.autograd.grad(p, given[i], retain_graph=True)
            unit = path[i][:, None]
            value_B = value_B + clean[i].gather(1, unit)[:, 0]
            gradient_B = gradient_B + grad.view(nodes, batch, -1).mean(0).gather(1, unit)[:, 0]
        (grad,) = torch.autograd.grad(p, given[block])
        own = grad.view(nodes, batch, -1).mean(0)
        found.append((value_B[:, None] + clean[block]) * (gradient_B[:, None] + own))
        path.append(found[-1].argmax(1))
    return found


def _forward(model: VisionTransformer, images: Tensor, edit) -> Tensor:  # type: ignore[no-untyped-def]
    """Logits; `edit(block, hidden)` may return what takes the hidden units' place."""
    handles = []
    for i, block in enumerate(model.blocks):

        def hook(_, inputs, i=i):  # type: ignore[no-untyped-def]
            changed = edit(i, inputs[0])
            return None if changed is None else (changed,)

        handles.append(block.mlp.fc2.register_forward_pre_hook(hook))
    try:
        return model(images)
    finally:
        for handle in handles:
            handle.remove()
