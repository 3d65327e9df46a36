"""What stands beside ours in the benchmarks is what it is said to be: Torch-Pruning's own model, the published weights."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from vitprune.model.sites import attention

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(name="script")
def importing(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.syspath_prepend(str(FOLDER / "models"))
    return importlib.import_module


@pytest.mark.parametrize("setting", ["local heads", "global dims"])
def test_torch_prunings_model_is_read_as_it_is(script: Any, tiny_vit: Any, make_images: Any, setting: str) -> None:
    """In timm's classes it gives the logits that it gives in its own; the repair starts where √(d'/d) is put back."""
    rival = script("torch_pruning_vit")
    dense, images = tiny_vit(dtype=torch.float32), make_images(3, dtype=torch.float32)
    grads = [torch.randn_like(w) for w in dense.parameters()]
    theirs = rival.pruned(dense, grads, "taylor", setting, 0.5)
    made, plan = rival.read(dense, theirs)
    torch.testing.assert_close(made(images), theirs(images), rtol=1e-4, atol=1e-5)
    assert 0 < plan.kept < 1
    site = attention.attention_sites(dense)[0]
    attn, back = made.get_submodule(site.path), rival.scaled(made, dense).get_submodule(site.path)
    width = attn.num_heads * attn.head_dim
    q = attn.qkv.weight[:width] * (attn.head_dim / site.dim) ** 0.5
    torch.testing.assert_close(back.qkv.weight[:width], q)
    assert torch.equal(back.qkv.weight[width:], attn.qkv.weight[width:]) and attn.head_dim < site.dim


def test_rows_that_cannot_be_told_are_refused(script: Any) -> None:
    rows_of, rows = script("torch_pruning_vit").rows_of, torch.arange(6.0).reshape(3, 2)
    assert rows_of(rows[[2, 0]], rows) == [2, 0]
    for wrong in (rows[[0, 0]], rows + 1):
        with pytest.raises(ValueError, match="cannot be told"):
            rows_of(wrong, rows)


def test_the_published_names_are_all_of_timms(script: Any) -> None:
    """Queries, keys and values in this order; the position embeddings resampled, that of the class token as it was."""
    made = script("dinov2_small")
    model = timm.create_model("vit_small_patch14_dinov2", img_size=56, num_classes=10)
    weights = {
        "embeddings.cls_token": torch.randn(1, 1, 384),
        "embeddings.patch_embeddings.projection.weight": torch.zeros(384, 3, 14, 14),
        "embeddings.patch_embeddings.projection.bias": torch.zeros(384),
        "layernorm.weight": torch.zeros(384), "layernorm.bias": torch.zeros(384),
        "position.class": torch.randn(1, 1, 384), "position.patches": torch.ones(1, 37 * 37, 384),
    }  # fmt: skip
    layers = {"attention.attention.query": 384, "attention.attention.key": 384, "attention.attention.value": 384}
    layers |= {"attention.output.dense": 384, "mlp.fc1": 1536, "mlp.fc2": 384}
    for i in range(12):
        of = f"encoder.layer.{i}."
        for n, (name, rows) in enumerate(layers.items()):
            columns = 1536 if name == "mlp.fc2" else 384
            weights |= {
                f"{of}{name}.weight": torch.full((rows, columns), n),
                f"{of}{name}.bias": torch.full((rows,), n),
            }
        for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"):
            weights[of + name] = torch.zeros(384)
        weights |= {f"{of}layer_scale{n}.lambda1": torch.zeros(384) for n in (1, 2)}
    found = made.as_timm(weights, 56)
    expected = {name: value.shape for name, value in model.state_dict().items() if not name.startswith("head.")}
    assert {name: value.shape for name, value in found.items()} == expected
    assert found["blocks.3.attn.qkv.weight"][[0, 384, 768], 0].tolist() == [0, 1, 2]
    assert torch.equal(found["pos_embed"][:, :1], weights["position.class"])
    torch.testing.assert_close(found["pos_embed"][:, 1:], torch.ones(1, 16, 384))


def test_the_head_is_where_the_penalised_loss_is_flat(script: Any) -> None:
    torch.manual_seed(0)
    x, y, penalty = torch.randn(60, 4) * torch.tensor([1.0, 10, 0.1, 3]) + 2, torch.arange(60) % 3, 0.01
    weight, bias = script("dinov2_small").fit(x, y, 3, penalty)
    z = ((x - x.mean(0)) / x.std(0)).double()
    own = (weight * x.std(0)).double()
    left = torch.softmax((x @ weight.T + bias).double(), 1) - torch.eye(3, dtype=torch.float64)[y]
    gradient = left.T @ z / 60 + penalty * own
    assert float(gradient.abs().max()) < 1e-4 and float(left.mean(0).abs().max()) < 1e-4
