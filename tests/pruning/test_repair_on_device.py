"""Repairs on a device have the processor's bits, and ask it for nothing that it has not (helpers/simulated)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import simulated
import torch
from torch import Tensor, nn

from vitprune.core import memory
from vitprune.criteria.heads import scores as of_heads
from vitprune.criteria.statistics.random import random
from vitprune.model import families
from vitprune.model.sites.attention import attention_sites
from vitprune.pruning.repair.names import Recovery
from vitprune.pruning.repair.repair import Repairer
from vitprune.pruning.slimming import slim
from vitprune.pruning.whole import allocation
from vitprune.pruning.whole.pricing import Macs


@pytest.mark.sample(3)
@pytest.mark.parametrize("how", ["layerwise+head", "affine", "mean", "none"])
@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_a_repair_on_a_device_has_the_processors_bits(
    tiny_vit: Callable[..., nn.Module],
    make_images: Callable[..., Tensor],
    monkeypatch: pytest.MonkeyPatch,
    how: Recovery,
    kind: str,
) -> None:
    monkeypatch.setattr(memory, "free", lambda _: 1 << 34)

    def made(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
        curves = [one.curve for one in of_heads.random(attention_sites(model), seed=0)]
        plan = allocation.plan(model, random(families.ffn_sites(model), seed=0), curves, 0.5, Macs(model))
        repairer = Repairer(how)
        done = slim(plan, repairer, repairer.prepare(model, lambda: list(images.split(4))))
        return {key: value.cpu() for key, value in done.state_dict().items()}

    images = make_images(8, dtype=torch.float32)
    here = made(tiny_vit(depth=2, dtype=torch.float32), images)
    with simulated.device(kind) as own:
        there = made(simulated.there(tiny_vit(depth=2, dtype=torch.float32)), images.to(own))
    assert here.keys() == there.keys() and all(torch.equal(here[key], there[key]) for key in here)
