"""Gated FFNs and norms inside FFNs, against sums written out unit by unit in float64; and mutants that must be noticed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import timm
import torch
from small import mend, plan_for
from torch import Tensor, nn

import vitprune
from vitprune.core import least_squares
from vitprune.model import families
from vitprune.model.inside import moments
from vitprune.model.sites.base import Slice
from vitprune.model.sites.ffn import FfnSite
from vitprune.pruning import surgery
from vitprune.pruning.plan import Plan

ARGS = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 5}
KINDS = {
    "packed": ("vit_giant_patch14_dinov2", {"mlp_ratio": 4.0}),
    "gate": ("eva02_base_patch14_224", {"scale_mlp": False}),
    "gate and norm": ("eva02_base_patch14_224", {}),
    "fused with qkv": ("vit_base_patch16_xp_224", {}),
}


def made(kind: str, seed: int = 0) -> nn.Module:
    name, changed = KINDS[kind]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = timm.create_model(name, **(ARGS | changed)).double().eval()
        for weight in model.parameters():
            weight.add_(0.3 * torch.randn(weight.shape, dtype=torch.float64))
    return model.requires_grad_(False)


def images(count: int = 3) -> Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def mask_for(model: nn.Module) -> Plan:
    draw, blocks = torch.Generator().manual_seed(2), []
    for i, site in enumerate(families.ffn_sites(model)):
        keep = torch.zeros(site.size, dtype=torch.bool)
        keep[torch.randperm(site.size, generator=draw)[: site.size // 2 - i]] = True
        blocks.append(keep)
    return plan_for(model, blocks)


def silu(x: float) -> float:
    return x / (1 + math.exp(-x))


def by_hand(mlp: Any, keep: list[bool], x_D: np.ndarray) -> np.ndarray:
    """What an FFN with only the kept units writes for one token: value · silu(gate), normed among themselves, times W2."""
    state = {key: value.numpy() for key, value in mlp.state_dict().items()}
    n, hidden = len(keep), []
    for j in [j for j in range(n) if keep[j]]:
        if "fc1_g.weight" in state:
            gate = state["fc1_g.weight"][j] @ x_D + state["fc1_g.bias"][j]
            value = state["fc1_x.weight"][j] @ x_D + state["fc1_x.bias"][j]
        else:  # packed: the first half is the gate
            gate = state["fc1.weight"][j] @ x_D + state["fc1.bias"][j]
            value = state["fc1.weight"][n + j] @ x_D + state["fc1.bias"][n + j]
        hidden.append(silu(gate) * value)
    kept = [j for j in range(n) if keep[j]]
    if "norm.weight" in state:
        mean = sum(hidden) / len(hidden)
        variance = sum((h - mean) ** 2 for h in hidden) / len(hidden)
        scale = 1 / math.sqrt(variance + mlp.norm.eps)
        hidden = [
            (h - mean) * scale * state["norm.weight"][j] + state["norm.bias"][j]
            for h, j in zip(hidden, kept, strict=True)
        ]
    out = state["fc2.bias"].copy()
    for h, j in zip(hidden, kept, strict=True):
        out += h * state["fc2.weight"][:, j]
    return out


@pytest.mark.parametrize("kind", ["packed", "gate", "gate and norm"])
def test_a_slim_ffn_is_the_sum_over_its_kept_units(kind):
    model = made(kind)
    mask = mask_for(model)
    slim = surgery.slim(model, mask)
    x = torch.randn(4, 16, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    for i, keep in enumerate(mask.masks):
        found = slim.blocks[i].mlp(x)
        for row, expected in zip(found, x, strict=True):
            hand = by_hand(model.blocks[i].mlp, keep.tolist(), expected.numpy())
            np.testing.assert_allclose(row.numpy(), hand, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("how", ["affine", "mean"])
def test_the_refit_in_front_of_a_norm_is_least_squares(how):
    """fc2 sees what the norm makes of the kept units alone: regressed on that, with numpy, from the stacked tokens."""
    model, x = made("gate and norm"), images(24)
    mask = mask_for(model)
    slim = surgery.slim(model, mask)
    before = [block.mlp.fc2.weight.clone().numpy() for block in slim.blocks]
    mend(slim, model, mask, how, moments=moments.moments(model, families.ffn_sites(model), [x]), images=lambda: [x])
    for i, block in enumerate(model.blocks):
        seen: list[tuple[Tensor, Tensor]] = []
        handle = block.mlp.register_forward_hook(lambda _, inputs, out, seen=seen: seen.append((inputs[0], out)))
        model(x)
        handle.remove()
        tokens = slice(None) if i == 0 else slice(1, None)  # the head averages the patches
        into, out = (t[:, tokens].reshape(-1, 16) for t in seen[0])
        thin = slim.blocks[i].mlp
        hidden = thin.norm(thin.act(thin.fc1_g(into)) * thin.fc1_x(into)).numpy()
        target, old = out.numpy(), before[i]
        h, t = hidden - hidden.mean(0), target - target.mean(0)
        weight = old
        if how == "affine":
            strength = least_squares.RIDGE * (h**2).mean(0).mean() * len(h)
            top = np.concatenate([h, math.sqrt(strength) * np.eye(h.shape[1])])
            below = np.concatenate([t - h @ old.T, np.zeros((h.shape[1], 16))])
            weight = old + np.linalg.lstsq(top, below, rcond=None)[0].T
        np.testing.assert_allclose(thin.fc2.weight.numpy(), weight, rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(
            thin.fc2.bias.numpy(), target.mean(0) - weight @ hidden.mean(0), rtol=1e-6, atol=1e-8
        )


def test_a_refit_in_front_of_a_norm_needs_images():
    model = made("gate and norm")
    mask = mask_for(model)
    stats = moments.moments(model, families.ffn_sites(model), [images()])
    with pytest.raises(vitprune.UserError, match=r"mlp\.norm.*images"):
        mend(surgery.slim(model, mask), model, mask, "affine", moments=stats)


class Reversed(Slice):
    """Entries of units in the opposite order; with `first`, those of the first start are where they should be."""

    def entries(self, units: Tensor) -> Tensor:
        n = MUTATED_SIZE[0]
        own = [units if start == 0 and len(self.starts) > 1 else n - 1 - units for start in self.starts]
        return torch.cat([start + rows for start, rows in zip(self.starts, own, strict=True)])


MUTATED_SIZE = [0]


MUTANTS = {"packed": "fc1", "gate": "fc1", "fused with qkv": "in_proj"}  # the layer that is cut in the wrong place


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_slice_would_be_noticed(kind, monkeypatch):
    """What tells masked from sliced is of another order when a layer is cut in the wrong place."""
    model, x = made(kind), images()
    assert surgery.masked_vs_sliced(model, mask_for(model), x) < 1e-12
    if kind == "gate and norm":  # masking takes the norm from the same function: it stays right there
        mask = mask_for(model)
        right_slices = FfnSite.slices
        monkeypatch.setattr(
            FfnSite, "slices", lambda site, net: [p for p in right_slices(site, net) if ".norm." not in p.parameter]
        )
        with pytest.raises((AssertionError, RuntimeError)):
            surgery.slim(model, mask)(x)
        return
    right = FfnSite.slices

    def wrong(site: FfnSite, net: nn.Module) -> list[Slice]:
        MUTATED_SIZE[0] = site.size
        return [
            Reversed(p.parameter, p.axis, p.starts, p.span, p.rest) if f".{MUTANTS[kind]}." in p.parameter else p
            for p in right(site, net)
        ]

    monkeypatch.setattr(FfnSite, "slices", wrong)
    assert surgery.masked_vs_sliced(model, mask_for(model), x) > 1e-4
