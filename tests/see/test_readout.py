"""How well classes can be read off tokens: by hand, against a slow replica, and against what chance gives."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import timm
import torch

from vitprune.model.inside import blockwise
from vitprune.see import alignment, readout


def test_identifiability_by_hand() -> None:
    """Of four classes: first 1, second 3/4, last 1/4; equal logits share their ranks."""
    logits = torch.tensor([[[3.0, 2, 1, 0], [2, 3, 1, 0], [0, 1, 2, 3], [5, 5, 0, 0]]])
    assert readout.identifiability(logits, torch.tensor([0])).tolist() == [[1, 0.75, 0.25, 0.875]]
    mean = np.mean([[readout.identifiability(torch.tensor([[p]]), torch.tensor([0])).item()]
                    for p in itertools.permutations([0.0, 1, 2, 3])])  # fmt: skip
    assert mean == pytest.approx(readout.identifiability_by_chance(4)) == 5 / 8


def test_a_class_rises_where_its_probability_does_not_its_logit() -> None:
    before, after = torch.tensor([[[0.0, 0], [0, 0]]]), torch.tensor([[[1.0, 5], [-1, -5]]])
    assert readout.rises(before, after, torch.tensor([0])).tolist() == [[False, True]]


def test_keys_agree_with_the_values_of_the_image_s_own_class() -> None:
    values, head = torch.eye(12), torch.zeros(2, 12)
    head[0, :5], head[1, 7:] = 1, 1
    top = readout.top_values(values, head)
    assert top.tolist() == [[0, 1, 2, 3, 4], [7, 8, 9, 10, 11]]
    keys = torch.zeros(2, 3, 12)
    keys[:, 0, 4:9] = torch.tensor([1.0, 2, 3, 4, 5])  # one of class 0's, two of class 1's
    keys[:, 1, [5, 6]], keys[:, 1, 7:10] = 9.0, 8.0
    keys[:, 2, :] = -torch.arange(12.0)  # before the activation a negative key can be among the strongest
    assert readout.agrees(keys, top, torch.tensor([0, 1])).tolist() == [[True, False, True], [True, True, False]]


@pytest.mark.parametrize(("units", "chance"), [(3072, 0.0081), (384, 0.0638), (5, 1.0), (3, 1.0)])
def test_the_share_that_agrees_by_chance(units: int, chance: float) -> None:
    assert readout.agrees_by_chance(units) == pytest.approx(chance, abs=5e-5)


def test_the_share_by_chance_is_that_of_random_keys() -> None:
    generator = torch.Generator().manual_seed(0)
    keys, top = torch.randn(40, 500, 30, generator=generator), torch.arange(5)[None]
    found = readout.agrees(keys, top, torch.zeros(40, dtype=torch.long)).float().mean()
    assert found == pytest.approx(readout.agrees_by_chance(30), abs=0.01)


def test_class_value_agreement_tells_units_that_write_classes_from_random_ones() -> None:
    generator = torch.Generator().manual_seed(1)
    head, values = torch.randn(20, 32, generator=generator), torch.randn(200, 32, generator=generator)
    chance = readout.class_value(values, head, 0)
    assert chance.p is not None and chance.p > 0.01 and chance.found == pytest.approx(chance.random, abs=0.05)
    values[:20] = 3 * head
    found = readout.class_value(values, head, 0)
    assert found.found == pytest.approx(1, abs=1e-6) and found.random == chance.random
    assert found.p is not None and found.p < 1e-4
    assert readout.class_value(values, head[:1], 0).p is None


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_the_last_block_is_read_as_the_model_reads_it(pool: str) -> None:
    """Of the class token these are the logits; of averaged patches each is read by itself. The model stays as it is."""
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=28, patch_size=7, embed_dim=16, depth=2, num_heads=2, num_classes=5, global_pool=pool
    ).eval()  # fmt: skip
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        stream = model.blocks(model.norm_pre(model._pos_embed(model.patch_embed(x))))
        found = alignment.read(model, stream)
        norm = model.norm if pool == "token" else model.fc_norm
        slow = torch.stack([torch.stack([model.head(norm(token)) for token in image]) for image in stream])
        torch.testing.assert_close(found, slow)
        if pool == "token":
            torch.testing.assert_close(found[:, 0], model(x))
    assert all((value == before[name]).all() for name, value in model.state_dict().items())


def test_what_the_dimensions_of_mixed_values_write() -> None:
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=28, patch_size=7, embed_dim=16, depth=1, num_heads=2, init_values=0.5
    ).eval()  # fmt: skip
    parts = blockwise.halves(model)
    assert parts is not None
    mixed, proj = torch.zeros(1, 1, 16), model.blocks[0].attn.proj
    mixed[..., 3] = 1
    with torch.no_grad():
        torch.testing.assert_close(parts.mixed_columns(0)[3], (model.blocks[0].ls1(proj(mixed) - proj.bias))[0, 0])
