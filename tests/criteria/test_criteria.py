"""The contract of every row of the table of criteria; a new row is tested by being there."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest
import reference
import torch
from torch import Tensor, nn

from vitprune.core.errors import UserError
from vitprune.criteria.attribution.settings import Gates
from vitprune.criteria.catalog import CRITERIA, how_of
from vitprune.criteria.sampling import sampled_labels
from vitprune.criteria.statistics.random import random
from vitprune.model import families
from vitprune.model.inside import hooks

every = pytest.mark.parametrize("name", sorted(n for n, row in CRITERIA.items() if row.score))
wholes = pytest.mark.parametrize("name", sorted(n for n, row in CRITERIA.items() if row.whole))
TS = (1, 4)
ANY_HEAD = {"joint-gates", "fisher", "mean-activation"}
LABELS = torch.tensor([0, 3, 1, 3, 2])


def score(
    name: str, model: nn.Module, images: Tensor, labels: Tensor, ts=TS, nodes: int = 3
) -> dict[int, list[Tensor]]:
    return CRITERIA[name].score(
        model,
        families.ffn_sites(model),
        images,
        labels,
        ts=list(ts),
        how=how_of(name, nodes=nodes, quadrature="midpoint"),
    )


class Broken(nn.Module):
    def forward(self, *_: Tensor, **__: object) -> Tensor:
        raise RuntimeError("broken on purpose")


def test_every_function_of_the_table_is_there() -> None:
    """The table names them, so that it is read without torch; a name that is wrong would be seen on first use only."""
    for name, row in CRITERIA.items():
        assert (row.score is None) != (row.whole is None), name
        for found in filter(None, (row.score, row.whole, row.trains)):
            file, function = found.args
            assert callable(getattr(import_module(f"vitprune.criteria.{file}"), function)), name


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shapes(tiny_vit, make_images, name, dtype):
    model = tiny_vit(dtype=dtype, depth=2)
    model.blocks[1].mlp = type(model.blocks[1].mlp)(16, 24, 16).to(dtype).requires_grad_(False)
    result = score(name, model.eval(), make_images(5, dtype=dtype), LABELS)
    assert set(result) == set(TS)
    for blocks in result.values():
        assert [tuple(block.shape) for block in blocks] == [(5, 32), (5, 24)]
        assert all(torch.isfinite(block).all() and not block.requires_grad for block in blocks)
        assert all(len(row.unique()) > 1 for block in blocks for row in block)


@every
def test_deterministic(tiny_vit, make_images, name):
    results = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        np.random.seed(seed)
        results.append(score(name, tiny_vit(), make_images(5), LABELS))
    for t in TS:
        assert all(torch.equal(a, b) for a, b in zip(*(result[t] for result in results), strict=True))


@every
def test_batch_size_and_order_do_not_matter(tiny_vit, make_images, name):
    model, images = tiny_vit(), make_images(5)
    whole = score(name, model, images, LABELS)
    order = torch.tensor([3, 0, 4, 2, 1])
    for parts in (order.split(2), order.split(1)):
        pieces = [score(name, model, images[part], LABELS[part]) for part in parts]
        for t in TS:
            for i, block in enumerate(whole[t]):
                together = torch.cat([piece[t][i] for piece in pieces])
                torch.testing.assert_close(together, block[order], rtol=1e-9, atol=1e-12)


@every
def test_what_the_row_says_it_needs(tiny_vit, make_images, name):
    """A row that does not name labels gives the same without them; t and nodes matter only where the row says so."""
    model, images, row = tiny_vit(), make_images(5), CRITERIA[name]
    base = score(name, model, images, LABELS)
    relabelled = score(name, model, images, (LABELS + 1) % 5)
    assert ("labels" in row.needs) != all(map(torch.equal, base[4], relabelled[4]))
    assert row.path_dependent != all(map(torch.equal, base[1], base[4]))
    finer = score(name, model, images, LABELS, nodes=6)
    assert row.integrates != all(map(torch.equal, base[4], finer[4]))
    assert torch.equal(base[1][0], base[4][0])  # no path yet in the first block


@every
@pytest.mark.parametrize("where", ["head", "norm", "blocks.2.mlp.fc2", "blocks.1.attn", "blocks.2.norm2"])
def test_nothing_is_left_behind_when_forward_raises(tiny_vit, make_images, name, where):
    if name == "influence-pattern" and where in ("head", "norm"):
        pytest.skip("it never goes that far")
    model = tiny_vit()
    sites = families.ffn_sites(model)
    sound = model.get_submodule(where)
    before = reference.hook_count(model)
    if where == "blocks.2.mlp.fc2":
        sound.weight.data = sound.weight.data[:, :-1]  # the width no longer fits: raises wherever it is used
    else:
        parent, _, child = where.rpartition(".")
        setattr(model.get_submodule(parent), child, Broken())
    with pytest.raises(RuntimeError):
        CRITERIA[name].score(model, sites, make_images(2), LABELS[:2], ts=[2], how=how_of(name, nodes=2))
    assert reference.hook_count(model) == before
    assert torch.is_grad_enabled()
    assert not any(weight.grad is not None or weight.requires_grad for weight in model.parameters())


@every
def test_the_model_and_the_images_are_left_as_they_were(tiny_vit, make_images, name):
    model, images = tiny_vit(), make_images(2)
    before, kept = reference.snapshot(model), images.clone()
    score(name, model, images, LABELS[:2])
    assert reference.same_state(before, reference.snapshot(model))
    assert torch.equal(images, kept)


@every
def test_a_head_that_reads_no_class_token_is_refused(tiny_vit, make_images, name):
    for changed in ({"global_pool": "avg"}, {"global_pool": "avg", "class_token": False}):
        if name in ANY_HEAD:
            assert len(score(name, tiny_vit(**changed), make_images(2), LABELS[:2])[4]) == 3
            continue
        with pytest.raises(UserError, match="class token"):
            score(name, tiny_vit(**changed), make_images(2), LABELS[:2])


def test_activation_is_the_class_tokens_hidden_value(tiny_vit, make_images):
    model, images = tiny_vit(init_values=0.2, reg_tokens=1), make_images(3)
    blocks = score("activation", model, images, LABELS[:3])[4]
    for row, image in enumerate(images):
        for block, hidden_TN in zip(blocks, reference.Vit(model).hidden(image), strict=True):
            torch.testing.assert_close(block[row], hidden_TN[0], rtol=1e-12, atol=1e-12)


def test_random_is_a_function_of_the_seed_alone(tiny_vit):
    sites = families.ffn_sites(tiny_vit())
    torch.manual_seed(1)
    first = random(sites, seed=7)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    again, other = random(sites, seed=7), random(sites, seed=8)
    assert torch.equal(state, torch.get_rng_state())
    assert [tuple(block.shape) for block in first.rows] == [(1, 32)] * 3
    assert all(map(torch.equal, first.rows, again.rows))
    assert not any(map(torch.equal, first.rows, other.rows))
    assert not torch.equal(first.rows[0], first.rows[1])
    pooled = torch.cat([block for seed in range(40) for block in random(sites, seed=seed).rows], 1)
    assert pooled.min() >= 0 and pooled.max() <= 1
    assert abs(pooled.mean() - 0.5) < 0.03 and abs(pooled.std() - 12**-0.5) < 0.02


def test_hidden_units_reads_and_replaces(tiny_vit, make_images):
    model, images = tiny_vit(init_values=0.3), make_images(2)
    sites = families.ffn_sites(model)
    vit = reference.Vit(model)
    seen: dict[int, Tensor] = {}
    with hooks.hidden_units(model, sites, lambda i, hidden_BTN: seen.update({i: hidden_BTN}) or None):
        untouched = model(images)
    for row, image in enumerate(images):
        for i, hidden_TN in enumerate(vit.hidden(image)):
            torch.testing.assert_close(seen[i][row], hidden_TN, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(untouched, vit.logits(images))

    def doubled(i: int, hidden: Tensor) -> Tensor:
        return hidden * 2 if i == 0 else hidden  # position 0 of the sites handed over, which is block 1

    with hooks.hidden_units(model, sites[1:], lambda i, hidden_BTN: doubled(i, hidden_BTN)):
        changed = model(images)
    torch.testing.assert_close(changed, vit.logits(images, lambda i, hidden_TN: doubled(i - 1, hidden_TN)))
    assert reference.hook_count(model) == 0


def test_masks_by_hook(tiny_vit, make_images):
    model, images = tiny_vit(), make_images(3)
    sites, vit = families.ffn_sites(model), reference.Vit(model)
    generator = torch.Generator().manual_seed(5)
    keep_BN = [torch.rand(3, 32, generator=generator) < 0.5 for _ in sites]
    with hooks.masked(model, sites, [keep[0] for keep in keep_BN]):
        everywhere = model(images)
    torch.testing.assert_close(everywhere, vit.logits(images, reference.masking([keep[0] for keep in keep_BN])))
    with hooks.masked_class_token(model, sites, keep_BN):
        class_token = model(images)
    for row, image in enumerate(images):
        own = reference.masking([keep[row] for keep in keep_BN], class_token_only=True)
        torch.testing.assert_close(class_token[row], vit(image, own))
    assert reference.hook_count(model) == 0
    torch.testing.assert_close(model(images), vit.logits(images))


def test_hooks_go_when_the_body_or_the_entry_raises(tiny_vit, make_images):
    model = tiny_vit()
    sites = families.ffn_sites(model)
    keep = [torch.ones(32, dtype=torch.bool)] * 3
    contexts = [
        lambda: hooks.hidden_units(model, sites, lambda i, hidden: None),
        lambda: hooks.masked(model, sites, keep),
        lambda: hooks.masked_class_token(model, sites, [row[None] for row in keep]),
    ]
    counted: list[int] = []
    for context in contexts:
        with pytest.raises(ZeroDivisionError), context():
            counted.append(reference.hook_count(model)) or 1 / 0
        assert reference.hook_count(model) == 0
    assert len(counted) == 3 and min(counted) > 0
    missing = type(sites[0])(block=9, fc1="blocks.9.mlp.fc1", act="blocks.9.mlp.act", fc2="blocks.9.mlp.fc2", size=3)
    with pytest.raises(AttributeError), hooks.hidden_units(model, [*sites, missing], lambda i, hidden: None):
        pass
    assert reference.hook_count(model) == 0


def after_first_block(model: nn.Module, image: Tensor) -> Tensor:
    vit = reference.Vit(model)
    x = vit.embed(image)
    x = x + vit.attention(0, vit.norm("blocks.0.norm1", x))
    hidden = vit.act(0, vit.linear("blocks.0.mlp.fc1", vit.norm("blocks.0.norm2", x)))
    return x + vit.linear("blocks.0.mlp.fc2", hidden)


def test_the_input_of_a_module_ends_the_pass_there(tiny_vit, make_images):
    model, images = tiny_vit(), make_images(2)
    model.blocks[1] = Broken()  # never reached
    stream = hooks.input_of(model.blocks[1], lambda: model(images))
    torch.testing.assert_close(stream[0], after_first_block(tiny_vit(), images[0]))
    model.blocks[0] = Broken()
    with pytest.raises(RuntimeError, match="on purpose"):
        hooks.input_of(model.blocks[1], lambda: model(images))
    assert reference.hook_count(model) == 0


GATES = Gates(quadrature="midpoint", nodes=2)


def gates(model: nn.Module, images: Tensor, labels: Tensor, how: Gates) -> list[Tensor]:
    return CRITERIA["joint-gates"].score(model, families.ffn_sites(model), images, labels, ts=[1], how=how)[1]


@pytest.mark.parametrize("changed", [{}, {"global_pool": "avg"}, {"init_values": 0.3, "reg_tokens": 1}])
@pytest.mark.parametrize("kind", ["probability", "log-probability"])
def test_joint_gates_are_derivatives_at_every_token(tiny_vit, make_images, changed, kind):
    model, images, labels = tiny_vit(mlp_ratio=0.25, **changed), make_images(2), torch.tensor([3, 1])
    found = gates(model, images, labels, replace(GATES, objective=kind))
    for row, image in enumerate(images):
        expected = reference.joint_gates(model, image, int(labels[row]), reference.rule("midpoint", 2), kind)
        for block, own in zip(found, expected, strict=True):
            np.testing.assert_allclose(block[row].numpy(), own, rtol=1e-5, atol=1e-8)


def test_joint_gates_sum_to_what_all_units_are_worth(tiny_vit, make_images):
    model, images, labels = tiny_vit(), make_images(3), torch.tensor([3, 1, 0])
    vit = reference.Vit(model)
    dense, none = (
        torch.softmax(vit.logits(images, edit), 1)[range(3), labels]
        for edit in (reference.unchanged, lambda i, hidden_TN: 0 * hidden_TN)
    )
    found = torch.cat(gates(model, images, labels, Gates(nodes=60)), 1)
    np.testing.assert_allclose(found.sum(1).numpy(), (dense - none).numpy(), rtol=1e-4, atol=1e-6)


def test_joint_gates_of_the_dense_model_and_their_forms(tiny_vit, make_images):
    model, images, labels = tiny_vit(mlp_ratio=0.25), make_images(2), torch.tensor([2, 4])
    local = replace(GATES, low=1.0)
    signed = gates(model, images, labels, local)
    for row, image in enumerate(images):
        own = reference.joint_gates(model, image, int(labels[row]), [(1.0, 1.0)])
        for block, expected in zip(signed, own, strict=True):
            np.testing.assert_allclose(block[row].numpy(), expected, rtol=1e-5, atol=1e-8)
    for form, change in (("absolute", torch.abs), ("squared", torch.square)):
        for block, base in zip(gates(model, images, labels, replace(local, form=form)), signed, strict=True):
            torch.testing.assert_close(block, change(base))
    almost = gates(model, images, labels, replace(GATES, low=1 - 1e-7))
    torch.testing.assert_close(torch.cat(almost, 1), torch.cat(signed, 1), rtol=1e-4, atol=1e-7)


def test_sampled_labels_follow_the_prediction_and_the_image(tiny_vit, make_images):
    model, images = tiny_vit(), make_images(600)
    drawn = sampled_labels(model, images, 0)
    assert torch.equal(drawn[100:], sampled_labels(model, images[100:], 0))  # whatever the batch
    assert not torch.equal(drawn, sampled_labels(model, images, 1))
    expected = torch.softmax(model(images), 1).mean(0)
    share = torch.bincount(drawn, minlength=5) / len(drawn)
    np.testing.assert_allclose(share.numpy(), expected.numpy(), atol=4 * (0.25 / 600) ** 0.5)
    how = replace(GATES, labels="sampled")
    few = images[:3]
    torch.testing.assert_close(
        torch.cat(gates(model, few, torch.zeros(3, dtype=torch.int64), how), 1),
        torch.cat(gates(model, few, drawn[:3], replace(how, labels="true")), 1),
    )
