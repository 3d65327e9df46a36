"""JAS against an independent replica, and against closed forms that need no replica at all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import reference
import timm
import torch
from torch import Tensor, nn

from vitprune.core.errors import UserError
from vitprune.criteria.attribution import quadrature
from vitprune.criteria.attribution.jas import jas
from vitprune.criteria.attribution.jas_plain import jas_plain
from vitprune.criteria.attribution.path_scores import path_scores
from vitprune.criteria.attribution.settings import Jas
from vitprune.model import families
from vitprune.model import tokens as model_tokens

Engine = Callable[[nn.Module, Tensor, Tensor, int, int], list[Tensor]]


def fast(model: nn.Module, images: Tensor, labels: Tensor, t: int, nodes: int) -> list[Tensor]:
    return jas(model, families.ffn_sites(model), images, labels, ts=[t], how=paper(nodes))[t]


def plain(model: nn.Module, images: Tensor, labels: Tensor, t: int, nodes: int) -> list[Tensor]:
    return jas_plain(model, families.ffn_sites(model), images, labels, t=t, how=paper(nodes))


def paper(nodes: int) -> Jas:
    """Eq. 3: a right Riemann sum."""
    return Jas(quadrature="right", nodes=nodes)


both = pytest.mark.parametrize("engine", [fast, plain])


class Square(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x


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


def test_a_family_without_halves_gets_the_same_scores(tiny_vit, make_images, monkeypatch):
    monkeypatch.setattr(model_tokens, "halves", lambda _: None)
    model = tiny_vit(depth=2)
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
    sites = families.ffn_sites(model)
    together = jas(model, sites, images, labels, ts=[7, 1, 3], how=paper(3))
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


SETTINGS = [
    Jas(formula=f, candidates=c, quadrature="gauss-legendre", nodes=n, tokens=t, objective=o)
    for f, c, n, t, o in [
        ("joint-ig", "parallel", 3, "cls", "probability"),
        ("jas", "parallel", 2, "all", "probability"),
        ("joint-ig", "parallel", 2, "all", "log-probability"),
        ("jas", "parallel", 2, "patches", "logit"),
        ("jas", "each", 1, "cls", "probability"),
        ("joint-ig", "each", 2, "all", "logit"),
        ("jas", "each", 1, "patches", "log-probability"),
    ]
] + [Jas(quadrature="left", nodes=3, reference=True), Jas(quadrature="midpoint", nodes=2)]


@both
@pytest.mark.parametrize("how", SETTINGS, ids=lambda h: f"{h.formula}-{h.candidates}-{h.tokens}-{h.objective}")
@pytest.mark.parametrize("changed", [{}, {"reg_tokens": 1, "init_values": 0.2}, {"global_pool": "avg"}])
def test_every_setting_is_that_of_the_replica(tiny_vit, make_images, engine: Engine, how: Jas, changed):
    model, images, labels = tiny_vit(mlp_ratio=0.5, **changed), make_images(2), torch.tensor([3, 0])
    if changed.get("global_pool") and how.tokens == "cls":
        pytest.skip("the head reads no class token")
    expected, _ = reference.jas(
        model, images, labels.tolist(), 2, how.nodes, quadrature=how.quadrature, formula=how.formula,
        tokens=how.tokens, kind=how.objective, each=how.candidates == "each", authors=how.reference,
    )  # fmt: skip
    sites = families.ffn_sites(model)
    if engine is fast:
        scores = jas(model, sites, images, labels, ts=[2], how=how)[2]
    else:
        scores = jas_plain(model, sites, images, labels, t=2, how=how)
    for block, own in zip(scores, expected, strict=True):
        np.testing.assert_allclose(np.asarray(block), own, rtol=1e-8, atol=1e-9 * np.abs(own).max() + 1e-18)


@pytest.mark.parametrize(
    ("formula", "candidates", "tokens", "rest"),
    product(
        ("jas", "joint-ig"),
        ("parallel", "each"),
        ("cls", "patches", "all"),
        ({}, {"quadrature": "left", "reference": True}, {"shortlist": 3}, {"nodes": 5, "objective": "logit"}),
    ),
)
def test_the_engine_is_the_plain_one_at_every_setting(tiny_vit, make_images, formula, candidates, tokens, rest):
    for changed in ({"qk_norm": True}, {"reg_tokens": 2, "no_embed_class": True, "init_values": 0.1}):
        model, images, labels = tiny_vit(mlp_ratio=0.5, **changed), make_images(2), torch.tensor([1, 4])
        sites = families.ffn_sites(model)
        how = Jas(formula=formula, candidates=candidates, tokens=tokens, **({"nodes": 2} | rest))
        own = jas_plain(model, sites, images, labels, t=2, how=how)
        for block, plain_block in zip(jas(model, sites, images, labels, ts=[2], how=how)[2], own, strict=True):
            atol = 1e-11 * float(plain_block.abs().max())
            torch.testing.assert_close(block, plain_block, rtol=1e-9, atol=atol)


def test_a_given_path_is_followed(tiny_vit, make_images):
    """Along its own path the engine gives its own scores; along another path, others, and the last unit counts too."""
    model, images, labels = tiny_vit(), make_images(3), torch.tensor([2, 0, 1])
    sites, how = families.ffn_sites(model), Jas(nodes=2)
    own = jas(model, sites, images, labels, ts=[3], how=how)[3]
    path = torch.stack([block.topk(3, 1).indices for block in own], 1)
    for engine in (
        lambda along: jas(model, sites, images, labels, ts=[3], how=how, along=along)[3],
        lambda along: jas_plain(model, sites, images, labels, t=3, how=how, along=along),
    ):
        torch.testing.assert_close(torch.cat(engine(path), 1), torch.cat(own, 1))
        assert not torch.allclose(torch.cat(engine(path.flip(0)), 1), torch.cat(own, 1), rtol=1e-3)


@pytest.mark.parametrize("tokens", ["cls", "patches", "all"])
@pytest.mark.parametrize("changed", [{}, {"global_pool": "avg", "reg_tokens": 1}])
def test_the_score_of_a_path_is_what_the_engine_gave_its_last_unit(tiny_vit, make_images, tokens, changed):
    """Alone in its block, a path's last unit has the path's own score: the definition, from two directions."""
    if changed and tokens == "cls":
        pytest.skip("the head reads no class token")
    model, images, labels = tiny_vit(**changed), make_images(3), torch.tensor([4, 1, 2])
    sites = families.ffn_sites(model)
    for formula in ("jas", "joint-ig"):
        how = Jas(formula=formula, candidates="each", nodes=3, tokens=tokens)
        scores = jas(model, sites, images, labels, ts=[1], how=how)[1]
        units = torch.stack([block.topk(1, 1).indices for block in scores], 1)
        for depth in (1, 2, 3):
            found = path_scores(model, sites, images, labels, units[:, :depth], how)
            own = found.jas if formula == "jas" else found.joint_ig
            torch.testing.assert_close(own, scores[depth - 1].max(1).values, rtol=1e-9, atol=1e-12)


def test_joint_ig_is_complete_and_says_how_far_it_is_from_it(tiny_vit, make_images):
    model, images, labels = tiny_vit(), make_images(3), torch.tensor([0, 3, 2])
    sites, vit = families.ffn_sites(model), reference.Vit(model)
    units = torch.stack([torch.randperm(32, generator=torch.Generator().manual_seed(i))[:5] for i in range(3)])
    units = units[None].repeat(3, 1, 1)

    def zeroed(i: int, hidden_TN: Tensor) -> Tensor:
        out = hidden_TN.clone()
        out[0, units[0, i]] = 0
        return out

    def held(clean: list[Tensor]) -> reference.Edit:
        def edit(i: int, hidden_TN: Tensor) -> Tensor:
            out = hidden_TN.clone()
            out[0, units[0, i]] = clean[i][0, units[0, i]]
            return out

        return edit

    drop = []
    for image, label in zip(images, labels.tolist(), strict=True):
        ends = [torch.softmax(vit(image, edit), 0)[label] for edit in (held(vit.hidden(image)), zeroed)]
        drop.append(float(ends[0] - ends[1]))
    fine = path_scores(model, sites, images, labels, units, Jas(nodes=40))
    np.testing.assert_allclose(fine.joint_ig.numpy(), drop, rtol=1e-6)
    assert float(fine.gap.abs().max()) < 1e-7
    coarse = path_scores(model, sites, images, labels, units, Jas(quadrature="left", nodes=2))
    np.testing.assert_allclose(coarse.gap.numpy(), coarse.joint_ig.numpy() - np.array(drop), rtol=1e-9, atol=1e-12)
    assert float(coarse.gap.abs().max()) > 1e-4


def test_parallel_equals_each_in_a_block_that_adds_up(make_images):
    """Parallel candidates are exact when the block is additively separable: here a linear model."""
    model, images, labels = toy(2.0, -0.5, product=False), make_images(1), torch.tensor([0])
    sites = families.ffn_sites(model)
    one, other = (
        jas(model, sites, images, labels, ts=[1], how=Jas(candidates=c, nodes=2))[1] for c in ("parallel", "each")
    )
    torch.testing.assert_close(torch.cat(one, 1), torch.cat(other, 1), rtol=1e-9, atol=1e-18)


def pair_toy() -> nn.Module:
    """Units a = 3.5, b = 0.1 (block 1) and d = 3, e = 0 (block 2); logit 0 is tiny · (a + 10·b·d)."""
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=28, patch_size=14, in_chans=1, embed_dim=6, depth=3, num_heads=1,
        num_classes=2, mlp_ratio=1 / 3, norm_layer=nn.Identity, act_layer=nn.Identity,
    ).double()  # fmt: skip
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
        model.cls_token[..., 0] = 1  # stream: 0 constant, 1 holds a, 2 holds b, 3 holds d, 4 the product
        first, second, third = (block.mlp for block in model.blocks)
        first.fc1.weight[:, 0] = torch.tensor([3.5, 0.1])
        first.fc2.weight[1, 0] = first.fc2.weight[2, 1] = 1
        second.fc1.weight[0, 0], second.fc2.weight[3, 0] = 3, 1
        third.act = Square()
        third.fc1.weight[0, 2:4] = torch.tensor([1.0, 1.0])
        third.fc1.weight[1, 2:4] = torch.tensor([1.0, -1.0])
        third.fc2.weight[4] = torch.tensor([0.25, -0.25])
        model.head.weight[0, 1], model.head.weight[0, 4] = TINY, 10 * TINY
    return model.eval().requires_grad_(False)


def test_greedy_misses_a_pair_that_only_counts_together(make_images):
    """Brute force over all paths of two blocks finds (b, d); greedy takes a first and cannot go back."""
    model, image, label = pair_toy(), make_images(1), torch.tensor([0])
    sites, how = families.ffn_sites(model), Jas(nodes=3)
    every = {
        pair: float(path_scores(model, sites, image, label, torch.tensor([[[pair[0]], [pair[1]]]]), how).jas)
        / (TINY / 4)
        for pair in product(range(2), range(2))
    }
    np.testing.assert_allclose(every[1, 0], 10 * 3.1**2 / 2, rtol=1e-8)  # (b + d) · ∫ 10·α(b + d)
    np.testing.assert_allclose(every[0, 0], (3.5 + 3) * (1 + 10 * 0.1), rtol=1e-8)  # b stays live at 0.1
    assert max(every, key=lambda pair: every[pair]) == (1, 0)
    first, second, _ = jas(model, sites, image, label, ts=[1], how=how)[1]
    greedy = (int(first.argmax()), int(second.argmax()))
    assert greedy == (0, 0) and every[greedy] < 0.3 * every[1, 0]


@pytest.mark.parametrize("name", ["left", "right", "midpoint", "gauss-legendre"])
def test_a_quadrature_rule_is_a_mean(name):
    for count, low in product((1, 2, 3, 7), (0.0, 0.4, 1.0)):
        at, weights = quadrature.rule(name, count, low)
        np.testing.assert_allclose(weights.sum(), 1, rtol=1e-12)
        assert (at >= low - 1e-12).all() and (at <= 1 + 1e-12).all()
    for count in (1, 2, 3):
        at, weights = quadrature.rule(name, count)
        np.testing.assert_allclose(np.stack([at, weights], 1), reference.rule(name, count), rtol=1e-12, atol=1e-15)
    exact = {"left": 0, "right": 0, "midpoint": 1, "gauss-legendre": 7}[name]
    at, weights = quadrature.rule(name, 4)
    for power in range(exact + 1):
        np.testing.assert_allclose((weights * at**power).sum(), 1 / (power + 1), rtol=1e-12)
    assert abs((weights * at ** (exact + 1)).sum() - 1 / (exact + 2)) > 1e-6


@pytest.mark.parametrize("wrong", [("simpson", 3, 0.0), ("left", 0, 0.0), ("left", 2, 1.5), ("left", 2, -0.1)])
def test_a_rule_that_is_none_is_refused(wrong):
    with pytest.raises(UserError):
        quadrature.rule(*wrong)


def test_the_shortlist_ranks_first(tiny_vit, make_images):
    model, images, labels = tiny_vit(), make_images(3), torch.tensor([0, 3, 2])
    sites, how = families.ffn_sites(model), Jas(candidates="each", nodes=2)
    parallel = jas(model, sites, images, labels, ts=[2], how=replace(how, candidates="parallel"))[2][0]
    every = jas(model, sites, images, labels, ts=[2], how=how)[2][0]
    short = jas(model, sites, images, labels, ts=[2], how=replace(how, shortlist=4))[2][0]
    for row in range(3):
        listed = parallel[row].topk(4).indices
        torch.testing.assert_close(short[row, listed], every[row, listed])
        assert set(short[row].topk(4).indices.tolist()) == set(listed.tolist())


def test_half_precision_stays_near(tiny_vit, make_images):
    model, images, labels = tiny_vit(init_values=0.1).float(), make_images(3).float(), torch.tensor([3, 0, 4])
    sites, how = families.ffn_sites(model), Jas(nodes=3)
    exact = jas(model, sites, images, labels, ts=[32], how=how)[32]  # every unit on the path: rounding cannot choose
    for block, own in zip(
        jas(model, sites, images, labels, ts=[32], how=replace(how, precision="bfloat16"))[32], exact, strict=True
    ):
        assert block.dtype == torch.float32
        error = float((block - own).abs().max() / own.abs().max())
        assert 0 < error < 0.1
