"""What units write: hand-made cases, a slow replica in float64, the model's own derivative, and the test against chance."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import timm
import torch
from torch import nn

from vitprune.core.errors import UserError
from vitprune.model.load import opening
from vitprune.recipe.inputs import Model
from vitprune.runs.seeing.parts import alignment as part
from vitprune.see import alignment, firing

FORMS = ("folded", "raw", "normed", "cos")


def small(**changed) -> nn.Module:
    torch.manual_seed(0)
    made = timm.create_model(
        "vit_tiny_patch16_224", img_size=28, patch_size=7, embed_dim=16, depth=2, num_heads=2, num_classes=5, **changed
    )
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(torch.randn(weight.shape) * 0.3)
    return made.double().eval().requires_grad_(False)


@pytest.mark.parametrize("changed", [{}, {"init_values": 0.1}, {"global_pool": "avg"}], ids=str)
def test_the_forms_against_a_slow_replica(changed) -> None:
    model = small(**changed)
    written = alignment.written(model)
    norm = model.fc_norm if changed.get("global_pool") == "avg" else model.norm
    for b, block in enumerate(model.blocks):
        gamma = block.ls2.gamma if "init_values" in changed else torch.ones(16).double()
        values = (gamma[:, None] * block.mlp.fc2.weight).T
        found = {form: written.aligned(b, form) for form in FORMS}
        for j in (0, 7, 63):
            v = values[j]
            for c in range(5):
                e = model.head.weight[c]
                folded = sum((v[d] - v.mean()) * e[d] * norm.weight[d] for d in range(16))
                assert float(found["raw"][j, c]) == pytest.approx(float(v @ e), rel=1e-9)
                assert float(found["folded"][j, c]) == pytest.approx(float(folded), rel=1e-9)
                assert float(found["cos"][j, c]) == pytest.approx(float(v @ e / v.norm() / e.norm()), rel=1e-9)
                assert float(found["normed"][j, c]) == pytest.approx(float(model.head(norm(v))[c]), rel=1e-9)


def test_the_folded_form_is_the_derivative_of_the_logits() -> None:
    """JVP of head(norm(z)) along v = (folded − (E⊙w)·x̂ (x̂·v)/D)/σ, x̂ the normalised z, without the norm's epsilon."""
    model = small()
    model.norm.eps = 0.0
    written, z = alignment.written(model), torch.randn(16, dtype=torch.float64)
    sigma = z.std(correction=0)
    ahead = (z - z.mean()) / sigma
    folded = written.aligned(1, "folded")
    for j in (0, 31, 63):
        v = written.values[1][j]
        _, jvp = torch.func.jvp(lambda x: model.head(model.norm(x)), (z,), (v,))
        through = (model.head.weight * model.norm.weight) @ ahead
        torch.testing.assert_close(jvp, (folded[j] - through * (ahead @ v) / 16) / sigma, rtol=1e-9, atol=1e-12)


def test_what_leaves_the_forms_as_they_are() -> None:
    model = small()
    written = alignment.written(model)
    before = {form: written.aligned(0, form) for form in FORMS}
    fc2 = model.blocks[0].mlp.fc2
    fc2.weight.add_(0.75)  # v + k·1
    moved = alignment.written(model)
    torch.testing.assert_close(moved.aligned(0, "folded"), before["folded"])
    fc2.weight.sub_(0.75).mul_(3)
    scaled = alignment.written(model)
    for form, factor in (("raw", 3), ("folded", 3), ("cos", 1)):
        torch.testing.assert_close(scaled.aligned(0, form), before[form] * factor)
    order = torch.randperm(64)
    fc2.weight.copy_(fc2.weight[:, order])
    torch.testing.assert_close(alignment.written(model).aligned(0, "raw"), 3 * before["raw"][order])


def test_a_unit_that_writes_one_class_is_found_and_dead_ones_are_not() -> None:
    model = small()
    model.norm.weight.fill_(1.0)
    model.head.weight.copy_(torch.eye(5, 16))
    model.blocks[1].mlp.fc2.weight[:, 10] = 50 * torch.eye(16)[:, 3].double()
    model.blocks[1].mlp.fc2.weight[:, 11] = 0.0
    written = alignment.written(model)
    dead = alignment.dead(written.values[1])
    assert dead.nonzero().flatten().tolist() == [11]
    alive = [~alignment.dead(values) for values in written.values]
    for form in ("folded", "raw"):
        best = alignment.best_units([None, written.aligned(1, form)], alive)
        assert (best[3][0].block, best[3][0].unit) == (1, 10) and len(best[3]) == 3
        assert best[3][0].margin == pytest.approx(best[3][0].value - best[3][1].value)
        assert all(one.unit != 11 for units in best for one in units)
    assert alignment.best_units([None, None], alive) == []


def test_of_equal_units_the_lower_block_and_number_come_first() -> None:
    same = torch.ones(4, 2)
    alive = [torch.ones(4, dtype=torch.bool)] * 2
    best = alignment.best_units([same, same], alive)
    five = alignment.best_units([same, same], alive, 5)
    assert [[(u.block, u.unit) for u in units[:3]] for units in five] == [
        [(u.block, u.unit) for u in units] for units in best
    ]
    assert all(len(units) == 5 and units[1].margin == best[c][1].margin for c, units in enumerate(five))
    assert [(one.block, one.unit) for one in best[0]] == [(0, 0), (0, 1), (0, 2)] and best[0][0].margin == 0


def test_random_units_are_at_chance_and_those_that_write_classes_are_not() -> None:
    torch.manual_seed(1)
    head = torch.randn(10, 64)
    found = [alignment.chance(torch.randn(200, 64), head, seed) for seed in range(5)]
    assert all(abs(one.z) < alignment.ENOUGH and not one.carries for one in found)
    written = torch.randn(200, 64)
    written[:10] = head + 0.3 * torch.randn(10, 64)
    assert alignment.chance(written, head, 0).carries
    assert alignment.chance(written, head, 0) == alignment.chance(written, head, 0)


def test_the_bundled_model_carries_classes_in_its_last_two_blocks() -> None:
    """Weights alone. The top unit of nearly every class is in the last block in every form; blocks 0 to 2 are at chance."""
    model = opening.open_model(Model(), torch.device("cpu")).model
    written = alignment.written(model)
    found = [alignment.chance(values, written.head, i) for i, values in enumerate(written.values)]
    assert [one.carries for one in found] == [False] * 4 + [True] * 2
    assert all(one.mean == pytest.approx(0.287, abs=0.01) and 0.008 < one.sd < 0.02 for one in found)
    assert found[4].z > 10 and found[5].z > 15
    alive = [~alignment.dead(values) for values in written.values]
    for form in FORMS:
        best = alignment.best_units([written.aligned(i, form) for i in range(6)], alive)
        assert sum(units[0].block == 5 for units in best) >= 9
        assert len({(units[0].block, units[0].unit) for units in best}) >= 9


def test_what_cannot_be_held_against_classes_says_why() -> None:
    swin = timm.create_model(
        "swin_tiny_patch4_window7_224",
        img_size=28,
        window_size=7,
        embed_dim=16,
        depths=(1, 1),
        num_heads=(2, 2),
        num_classes=3,
    )
    assert "needs blocks of one FFN after attention" in str(alignment.why_not(swin))
    assert "attention of its own" in str(alignment.why_not(small(global_pool="map", class_token=False)))
    assert "linear head" in str(alignment.why_not(_headless()))
    with pytest.raises(UserError):
        alignment.written(swin)


def _headless() -> nn.Module:
    model = small()
    model.head = nn.Sequential(nn.Linear(16, 5))
    return model


def test_removed_evidence_by_hand() -> None:
    mean, written, kept = np.array([1.0, 2.0, 3.0]), np.array([2.0, -1.0, 1.0]), np.array([True, False, False])
    assert firing.removed_evidence(mean, written, kept) == (1.0, 7.0)
    assert firing.removed_evidence(mean, written, np.ones(3, bool)) == (0.0, 7.0)


def test_selectivity_by_hand_and_at_chance() -> None:
    """The class is chosen on every second image of each class and judged on the others: 16 of 16 pairs, a constant, and of
    many units that know no class one half, though each was given the class that it was highest for."""
    generator = np.random.default_rng(0)
    labels = np.repeat([3, 5], 8)
    values = np.zeros((16, 2))
    values[labels == 5, 0] = 1 + np.arange(8)
    assert firing.selectivity(values, labels)[0] == 1 and np.isnan(firing.selectivity(values, labels)[1])
    values[1, 0] = 4.5  # a judged image of class 3 above two of the judged 2, 4, 6, 8
    assert firing.selectivity(values, labels)[0] == pytest.approx(1 - 2 / 16)
    many = firing.selectivity(generator.normal(size=(200, 500)), np.arange(200) % 10)
    assert np.median(many) == pytest.approx(0.5, abs=0.02)
    assert np.isnan(firing.selectivity(values, labels * 0)).all()


@pytest.mark.parametrize("form", ["folded", "raw", "normed", "cos"])
def test_a_sign_that_is_nobodys_choice_changes_nothing_of_what_is_written(form: alignment.Form) -> None:
    """Every second value vector the other way round: the ranks and the test against random heads are the same to the bit; with
    a sign of its own they are not."""
    written = alignment.written(small())
    signs = torch.tensor([1.0, -1.0]).repeat(len(written.values[0]) // 2)[:, None]
    other = dataclasses.replace(written, values=[values * signs for values in written.values])
    free, own = ([part.against(one, form, [any_sign] * 2, 0) for one in (written, other)] for any_sign in (True, False))
    for i in (0, 1):
        assert torch.equal(free[0].ranked[i], free[1].ranked[i]) and free[0].null[i] == free[1].null[i]
        assert not torch.equal(own[0].ranked[i], own[1].ranked[i]) and torch.equal(own[0].ranked[i], own[0].aligned[i])
