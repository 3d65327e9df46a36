"""A few label-free steps from the dense teacher on probe images: the last resort of the repair, after the closed forms.

loss = KL(p_dense ‖ p_slim) per image, AdamW on the FFNs and norms of the slim model, cosine to zero. Labels play no part
and nothing is stopped early: the number of epochs is a setting.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitprune.core.device import device_of
from vitprune.model import families
from vitprune.model.inside import pieces

RATE = 2e-4


def distill(
    slim: nn.Module, dense: nn.Module, batches: Callable[[], Iterable[Tensor]], *, epochs: int, rate: float = RATE
) -> None:
    """Train `slim` in place on batches of images [B, C, H, W]; it is left in eval mode with frozen weights."""
    trained = _trained(slim)
    device = device_of(slim)
    part = pieces.size(pieces.footprint(dense, families.ffn_sites(dense)), device)  # what one backward pass may take
    steps = epochs * sum(1 for _ in batches())
    optimiser = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0)
    done = 0
    for parameter in trained:
        parameter.requires_grad_(True)
    try:
        with torch.enable_grad():
            for _ in range(epochs):
                for images in batches():
                    for group in optimiser.param_groups:
                        group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * done / max(steps, 1)))
                    optimiser.zero_grad()
                    for x in images.split(part):
                        given = x.to(device)
                        with torch.no_grad():
                            target = dense(given).log_softmax(-1)
                        loss = F.kl_div(slim(given).log_softmax(-1), target, reduction="batchmean", log_target=True)
                        (loss * (len(x) / len(images))).backward()
                    optimiser.step()
                    done += 1
    finally:
        slim.eval().requires_grad_(False)
        for parameter in trained:
            parameter.grad = None


def _trained(slim: nn.Module) -> list[nn.Parameter]:
    """Weights and biases of the FFNs and of every norm."""
    found: dict[int, nn.Parameter] = {}
    for site in families.ffn_sites(slim):
        for name in site.layers:
            found |= {id(p): p for p in slim.get_submodule(name).parameters()}
    for module in slim.modules():
        if isinstance(module, nn.LayerNorm):
            found |= {id(p): p for p in module.parameters(recurse=False)}
    return list(found.values())
