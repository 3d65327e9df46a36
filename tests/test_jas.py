"""JAS against an independent replica, and against closed forms that need no replica at all."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import reference
import timm
import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from vitprune import models
from vitprune.criteria.jas import jas
from vitprune.criteria.jas_plain import jas_plain
from vitprune.errors import UserError

Engine = Callable[[nn.Module, Tensor, Tensor, int, int], list[Tensor]]


def fast(model: nn.Module, images: Tensor, labels: Tensor, t: int, nodes: int) -> list[Tensor]:
    return jas(model, models.ffn_sites(model), images, labels, ts=[t], nodes=nodes)[t]


def plain(model: nn.Module, images: Tensor, labels: Tensor, t: int, nodes: int) -> list[Tensor]:
    return jas_plain(model, models.ffn_sites(model), images, labels, t=t, nodes=nodes)


both = pytest.mark.parametrize("engine", [fast, plain])


class Square(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x


class OwnBlock(Block):
    """A block that the engine in halves must not take for timm's own."""


def vectors(blocks: list[Tensor]) -> np.ndarray:
    return np.concatenate([np.asarray(block, dtype=np.float64) for block in blocks], axis=1)


def assert_equals_replica(engine: Engine, model: nn.Module, images: Tensor, t: int, nodes: int) -> None:
    labels = torch.tensor([3, 0, 4, 1])[: len(images)]
    expected, _ = reference.jas(model, images, labels.tolist(), t, nodes)
    scores = engine(model, images, labels, t, nodes)
    assert [tuple(block.shape) for block in scores] == [block.shape for block in expected]
    for block, own in zip(scores, expected, strict=True):
        assert np.abs(own).max() > 1e-3
        np.testing.assert_allclose(np.asarray(block), own, rtol=1e-9, atol=1e-9 * np.abs(own).max())


@both
@pytest.mark.parametrize(
    ("changed", "t", "nodes"),
    [
        ({}, 1, 4),
        ({}, 5, 3),
        ({"init_values": 0.1}, 4, 4),
        ({"reg_tokens": 2, "no_embed_class": True}, 2, 3),
        ({"depth": 4, "embed_dim": 24, "mlp_ratio": 1.5, "qkv_bias": False}, 3, 2),
        ({"patch_size": 14}, 32, 1),
        ({"depth": 1}, 2, 5),
    ],
)
def test_scores_are_those_of_the_replica(tiny_vit, make_images, engine: Engine, changed, t, nodes):
    assert_equals_replica(engine, tiny_vit(**changed), make_images(3), t, nodes)


def test_a_family_without_halves_gets_the_same_scores(tiny_vit, make_images):
    model = tiny_vit(block_fn=OwnBlock, depth=2)
    assert models.halves(model) is None
    assert_equals_replica(fast, model, make_images(2), 3, 3)


def test_single_precision_stays_close(tiny_vit, make_images):
    model, images, labels = tiny_vit(init_values=0.1), make_images(3), torch.tensor([3, 0, 4])
    # every unit on the path, so that rounding cannot choose another one
    expected, _ = reference.jas(model, images, labels.tolist(), 32, 4)
    scores = fast(model.float(), images.float(), labels, 32, 4)
    for block, own in zip(scores, expected, strict=True):
        np.testing.assert_allclose(np.asarray(block), own, atol=2e-4 * np.abs(own).max())


@both
def test_the_path_is_the_t_largest_of_each_block(tiny_vit, make_images, engine: Engine):
    """The path read off the returned scores, assigned by hand, gives the next block's scores."""
    model, image, label, nodes, t = tiny_vit(depth=2), make_images(1), torch.tensor([2]), 3, 4
    first, second = engine(model, image, label, t, nodes)
    chosen = sorted(range(32), key=lambda j: -float(first[0, j]))[:t]
    vit = reference.Vit(model)
    clean = [hidden_TN[0] for hidden_TN in vit.hidden(image[0])]
    total = torch.zeros(32, dtype=torch.float64)
    for k in range(1, nodes + 1):
        path_leaf = (clean[0][chosen] * k / nodes).requires_grad_()
        leaf = (clean[1] * k / nodes).requires_grad_()

        def assign(i: int, hidden_TN: Tensor, path_leaf=path_leaf, leaf=leaf) -> Tensor:
            row_N = hidden_TN[0].clone()
            row_N[slice(None) if i else chosen] = leaf if i else path_leaf
            return torch.cat([row_N[None], hidden_TN[1:]])

        p = torch.softmax(vit(image[0], assign), 0)[2]
        path_grad, grad = torch.autograd.grad(p, [path_leaf, leaf])
        total += (path_grad.sum() + grad) / nodes
    expected = (clean[0][chosen].sum() + clean[1]) * total
    np.testing.assert_allclose(np.asarray(second[0]), expected.numpy(), rtol=1e-9, atol=1e-12)
    other = engine(model, image, label, t + 1, nodes)
    np.testing.assert_allclose(np.asarray(other[0]), np.asarray(first), rtol=1e-12)
    assert not np.allclose(np.asarray(other[1]), np.asarray(second), rtol=1e-3)


@both
def test_mixed_classes_in_a_batch_equal_one_by_one(tiny_vit, make_images, engine: Engine):
    model, images, labels = tiny_vit(init_values=0.2), make_images(4), torch.tensor([4, 0, 2, 0])
    together = vectors(engine(model, images, labels, 3, 3))
    apart = np.concatenate([vectors(engine(model, images[i : i + 1], labels[i : i + 1], 3, 3)) for i in range(4)])
    np.testing.assert_allclose(together, apart, rtol=1e-9, atol=1e-12)
    one_label = vectors(engine(model, images, torch.full((4,), 4), 3, 3))
    assert not np.allclose(one_label[1], together[1], rtol=1e-2)


def test_several_t_at_once_equal_each_alone(tiny_vit, make_images):
    model, images, labels = tiny_vit(), make_images(2), torch.tensor([1, 3])
    sites = models.ffn_sites(model)
    together = jas(model, sites, images, labels, ts=[7, 1, 3], nodes=3)
    assert set(together) == {1, 3, 7}
    for t in together:
        np.testing.assert_allclose(vectors(together[t]), vectors(fast(model, images, labels, t, 3)), rtol=1e-12)


@both
def test_first_block_telescopes(tiny_vit, make_images, engine: Engine):
    """Scores of the first block sum to p(clean) − p(its class-token units zeroed) as the nodes grow."""
    model, images, labels = tiny_vit(depth=2), make_images(3), torch.tensor([2, 0, 4])
    vit = reference.Vit(model)

    def zeroed(i: int, hidden_TN: Tensor) -> Tensor:
        return hidden_TN if i else torch.cat([torch.zeros_like(hidden_TN[:1]), hidden_TN[1:]])

    drop = torch.softmax(vit.logits(images), 1) - torch.softmax(vit.logits(images, zeroed), 1)
    expected = drop[range(3), labels].numpy()
    assert np.abs(expected).min() > 1e-2
    coarse, fine = (vectors([engine(model, images, labels, 1, m)[0]]).sum(1) for m in (100, 200))
    # the error of a right Riemann sum is c/m + O(1/m²): it halves, and what is left after taking it out is tiny
    np.testing.assert_allclose((coarse - expected) / (fine - expected), 2, rtol=0.05)
    np.testing.assert_allclose(2 * fine - coarse, expected, rtol=1e-3, atol=1e-5)


@both
def test_one_neuron_telescopes(tiny_vit, make_images, engine: Engine):
    """A block with one hidden unit: its score is F(w̄) − F(0)."""
    model, images, label = tiny_vit(depth=2, mlp_ratio=1 / 16), make_images(2), torch.tensor([2, 2])
    vit = reference.Vit(model)

    def zeroed(i: int, hidden_TN: Tensor) -> Tensor:
        return hidden_TN if i else torch.cat([0 * hidden_TN[:1], hidden_TN[1:]])

    drop = torch.softmax(vit.logits(images), 1)[:, 2] - torch.softmax(vit.logits(images, zeroed), 1)[:, 2]
    coarse, fine = (vectors([engine(model, images, label, 1, m)[0]])[:, 0] for m in (100, 200))
    assert drop.abs().min() > 1e-5
    np.testing.assert_allclose(2 * fine - coarse, drop.numpy(), rtol=1e-3)


def toy(w1: float, w2: float, *, product: bool) -> nn.Module:
    """Class-token units w1 (block 1) and w2 (block 2); logit 0 is tiny · w1·w2 (product) or tiny · (3·w1 + 5·w2).

    No normalisation, no attention. Logits are so small that softmax is linear: p = 1/2 + (logit 0 − logit 1) / 4.
    """
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=28, patch_size=14, in_chans=1, embed_dim=4, depth=3, num_heads=1,
        num_classes=2, mlp_ratio=0.5, norm_layer=nn.Identity, act_layer=nn.Identity,
    ).double()  # fmt: skip
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
        model.cls_token[..., 0] = 1  # stream: 0 constant, 1 holds w1, 2 holds w2, 3 the answer
        first, second, third = (block.mlp for block in model.blocks)
        first.fc1.weight[0, 0], first.fc2.weight[1, 0] = w1, 1
        second.fc1.weight[0, 0], second.fc2.weight[2, 0] = w2, 1
        if product:  # w1·w2 = ((w1 + w2)² − (w1 − w2)²) / 4
            third.act = Square()
            third.fc1.weight[0, 1:3] = torch.tensor([1.0, 1.0])
            third.fc1.weight[1, 1:3] = torch.tensor([1.0, -1.0])
            third.fc2.weight[3] = torch.tensor([0.25, -0.25])
            model.head.weight[0, 3] = TINY
        else:
            model.head.weight[0, 1:3] = TINY * torch.tensor([3.0, 5.0], dtype=torch.float64)
    return model.eval().requires_grad_(False)


TINY = 1e-7


@both
@pytest.mark.parametrize("nodes", [1, 2, 5, 20])
@pytest.mark.parametrize("path_t", [1, 2])
def test_product_of_two_neurons_is_a_right_riemann_sum(make_images, engine: Engine, nodes: int, path_t: int):
    """F = w1·w2 has joint score (Σw̄)²/2, and a right Riemann sum of m nodes makes it (m+1)/m of that."""
    w1, w2 = 2.0, 3.0
    first, second, _ = engine(toy(w1, w2, product=True), make_images(1), torch.tensor([0]), path_t, nodes)
    np.testing.assert_allclose(float(first[0, 0]) / (TINY / 4), w1 * w2, rtol=1e-9)
    joint = (w1 + w2) ** 2 / 2 * (nodes + 1) / nodes
    np.testing.assert_allclose(float(second[0, 0]) / (TINY / 4), joint, rtol=1e-9)
    alone = w1 * w2 / 2 * (nodes + 1) / nodes  # a dead candidate: the path's sums are all there is
    np.testing.assert_allclose(float(second[0, 1]) / (TINY / 4), alone, rtol=1e-9)


@both
@pytest.mark.parametrize("nodes", [1, 7])
def test_a_linear_function_is_exact_for_any_number_of_nodes(make_images, engine: Engine, nodes: int):
    """F = a·w has joint score (Σw̄)(Σa), and the other label gets the negative."""
    w1, w2 = 2.0, -0.5
    model, images = toy(w1, w2, product=False), make_images(2)
    first, second, _ = engine(model, images, torch.tensor([0, 1]), 2, nodes)  # t = 2: all units, the dead ones too
    for block, unit in ((first, w1 * 3), (second, (w1 + w2) * (3 + 5))):
        np.testing.assert_allclose(block[:, 0].numpy() / (TINY / 4), [unit, -unit], rtol=1e-9)


@both
def test_values_that_cancel_score_zero(make_images, engine: Engine):
    _, second, _ = engine(toy(2.0, -2.0, product=False), make_images(1), torch.tensor([0]), 1, 4)
    assert abs(float(second[0, 0])) < 1e-12 * TINY
    assert abs(float(second[0, 1])) > TINY


def test_a_head_that_reads_no_class_token_is_refused(tiny_vit, make_images):
    for changed in ({"global_pool": "avg"}, {"global_pool": "avg", "class_token": False}):
        with pytest.raises(UserError, match="class token"):
            fast(tiny_vit(**changed), make_images(1), torch.tensor([0]), 1, 2)


@both
def test_the_model_is_left_as_it_was(tiny_vit, make_images, engine: Engine):
    model = tiny_vit(depth=2)
    before = reference.snapshot(model)
    images = make_images(2)
    kept = images.clone()
    scores = engine(model, images, torch.tensor([0, 1]), 2, 2)
    assert reference.same_state(before, reference.snapshot(model))
    assert torch.equal(images, kept)
    assert not any(block.requires_grad for block in scores)
