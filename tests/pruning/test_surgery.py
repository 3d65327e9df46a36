"""Surgery: the slim model computes what the masked one does, and nothing else changes."""

from __future__ import annotations

import copy

import pytest
import reference
import torch
from small import plan_of
from torch import Tensor, nn

from vitprune.core.errors import UserError
from vitprune.model import families
from vitprune.pruning import surgery
from vitprune.pruning.plan import Plan

N = 32
SITES = [f"blocks.{i}.mlp.{part}" for i in range(3) for part in ("fc1", "fc2")]


def ragged(seed: int = 0, widths: tuple[int, ...] = (5, 32, 17)) -> Plan:
    generator = torch.Generator().manual_seed(seed)
    blocks = []
    for width in widths:
        keep = torch.zeros(N, dtype=torch.bool)
        keep[torch.randperm(N, generator=generator)[:width]] = True
        blocks.append(keep)
    return plan_of(blocks)


def single(block: int) -> Plan:
    return plan_of(
        [keep if i == block else torch.ones(N, dtype=torch.bool) for i, keep in enumerate(ragged(7, (9, 9, 9)).masks)]
    )


MASKS = {
    "first": single(0), "middle": single(1), "last": single(2), "all": ragged(), "thin": ragged(2, (1, 1, 1)),
    "even": ragged(3, (16, 16, 16)),
}  # fmt: skip


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).abs().max() / expected.double().abs().max())


def sliced_by_hand(model: nn.Module, mask: Plan) -> dict[str, Tensor]:
    """The slim model's state dict: rows of fc1 and columns of fc2, one unit at a time."""
    state = dict(model.state_dict())
    for i, keep in enumerate(mask.masks):
        at = f"blocks.{i}.mlp"
        kept = [j for j, value in enumerate(keep.tolist()) if value]
        state[f"{at}.fc1.weight"] = torch.stack([state[f"{at}.fc1.weight"][j] for j in kept])
        state[f"{at}.fc1.bias"] = torch.stack([state[f"{at}.fc1.bias"][j] for j in kept])
        state[f"{at}.fc2.weight"] = torch.stack([state[f"{at}.fc2.weight"][:, j] for j in kept], 1)
    return state


@pytest.mark.parametrize("changed", [{}, {"init_values": 0.3}, {"reg_tokens": 2, "global_pool": "avg"}], ids=str)
@pytest.mark.parametrize("name", MASKS)
def test_slim_equals_masked(tiny_vit, make_images, name, changed):
    model, images, mask = tiny_vit(**changed), make_images(3), MASKS[name]
    expected = reference.Vit(model).logits(images, reference.masking(mask.masks))
    found = surgery.slim(model, mask)(images)
    assert relative(found, expected) < 1e-10
    assert relative(model(images), expected) > 1e-3  # the mask does something
    single_precision = surgery.slim(model.float(), mask)(images.float())
    assert single_precision.dtype == torch.float32
    assert relative(single_precision, expected) < 1e-5


@pytest.mark.parametrize("name", MASKS)
def test_slim_weights_are_direct_slices(tiny_vit, name):
    model, mask = tiny_vit(init_values=0.3), MASKS[name]
    slim = surgery.slim(model, mask)
    expected, found = sliced_by_hand(model, mask), slim.state_dict()
    assert list(found) == list(expected)
    for key in expected:
        assert torch.equal(found[key], expected[key]), key
    for i, width in enumerate(list(mask.widths.values())):
        mlp = slim.blocks[i].mlp
        assert (mlp.fc1.in_features, mlp.fc1.out_features) == (16, width)
        assert (mlp.fc2.in_features, mlp.fc2.out_features) == (width, 16)
    assert [site.size for site in families.ffn_sites(slim)] == list(mask.widths.values())
    surgery.check_widths(slim, mask.widths)


def test_the_original_is_untouched_and_shares_nothing(tiny_vit, make_images):
    model, images = tiny_vit(init_values=0.3), make_images(2)
    model.train()
    model.blocks[1].eval()
    model.head.weight.requires_grad_(True)
    before = reference.snapshot(model)
    slim = surgery.slim(model, ragged())
    assert reference.same_state(before, reference.snapshot(model))
    assert not any(module.training for module in slim.modules())
    assert reference.hook_count(slim) == 0
    with torch.no_grad():
        for weight in slim.parameters():
            weight.add_(1)
    slim(images)
    assert reference.same_state(before, reference.snapshot(model))


def test_keep_all_is_the_identity(tiny_vit, make_images):
    model, images = tiny_vit(), make_images(3)
    everything = plan_of([torch.ones(N, dtype=torch.bool)] * 3)
    slim = surgery.slim(model, everything)
    assert torch.equal(slim(images), model(images))
    assert all(map(torch.equal, slim.state_dict().values(), model.state_dict().values()))


def test_pruned_twice_equals_pruned_once(tiny_vit, make_images):
    model, images = tiny_vit(), make_images(2)
    first = ragged(1, (20, 12, 32))
    generator = torch.Generator().manual_seed(3)
    second = plan_of([torch.rand(width, generator=generator) < 0.6 for width in list(first.widths.values())])
    both = []
    for outer, inner in zip(first.masks, second.masks, strict=True):
        keep = torch.zeros(N, dtype=torch.bool)
        keep[torch.nonzero(outer).flatten()[inner]] = True
        both.append(keep)
    twice = surgery.slim(surgery.slim(model, first), second)
    assert torch.equal(twice(images), surgery.slim(model, plan_of(both))(images))


def named(*widths: int) -> dict[str, int]:
    return {f"blocks.{i}.mlp": width for i, width in enumerate(widths)}


def test_widths_that_do_not_fit_are_noticed(tiny_vit):
    model = tiny_vit()
    surgery.check_widths(model, named(N, N, N))
    for widths in ([N, N, N - 1], [N, N, N, N]):
        with pytest.raises((AssertionError, UserError)):
            surgery.check_widths(model, named(*widths))
    model.blocks[1].mlp.fc2.in_features = 31  # metadata that no longer says what the weight is
    with pytest.raises((AssertionError, UserError)):
        surgery.check_widths(model, named(N, N, N))
    with pytest.raises(ValueError, match="plan has"):
        surgery.slim(tiny_vit(), plan_of([torch.ones(N - 1, dtype=torch.bool)] * 3))
    with pytest.raises(UserError, match=r"site `blocks\.3\.mlp`: this model has no such site"):
        surgery.slim(tiny_vit(), plan_of([torch.ones(N, dtype=torch.bool)] * 4))


def test_masked_vs_sliced_is_small_and_notices_a_wrong_slim(tiny_vit, make_images, monkeypatch):
    model, images, mask = tiny_vit(), make_images(3), ragged()
    before = reference.snapshot(model)
    assert surgery.masked_vs_sliced(model, mask, images) < 1e-10
    assert surgery.masked_vs_sliced(tiny_vit(dtype=torch.float32), mask, images.float()) < 1e-5
    assert reference.same_state(before, reference.snapshot(model))
    other = ragged(9)
    wrong = surgery.slim(model, other)
    logits = reference.Vit(model).logits(images, reference.masking(mask.masks))
    monkeypatch.setattr(surgery, "slim", lambda *_: wrong)
    share = float((logits - wrong(images)).abs().max() / logits.abs().max())
    assert surgery.masked_vs_sliced(model, mask, images) == pytest.approx(share, rel=1e-6)
    assert share > 1e-2


@pytest.mark.parametrize("changed", [{}, {"init_values": 0.3, "reg_tokens": 2}], ids=str)
def test_torch_prunings_graph_removes_the_same(tiny_vit, make_images, changed):
    """An independent surgeon: torch-pruning's dependency graph of the whole model, started at fc1's outputs."""
    import torch_pruning as tp

    model, mask = tiny_vit(**changed), MASKS["all"]
    theirs = copy.deepcopy(model).requires_grad_(True)
    graph = tp.DependencyGraph().build_dependency(theirs, example_inputs=make_images(1))
    for i, keep in enumerate(mask.masks):
        gone = (~keep).nonzero().flatten().tolist()
        if gone:
            fc1 = theirs.blocks[i].mlp.fc1
            graph.get_pruning_group(fc1, tp.prune_linear_out_channels, idxs=gone).prune()
    expected, found = theirs.state_dict(), surgery.slim(model, mask).state_dict()
    assert {key: value.shape for key, value in found.items()} == {key: value.shape for key, value in expected.items()}
    for key, value in expected.items():
        assert torch.equal(found[key], value), key
