"""Every criterion against its formula done again by hand: finite differences, plain loops, numpy."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import reference
import torch
from safetensors.torch import save, save_file
from small import rows_of, scores_of
from torch import Tensor, nn

import vitprune
from vitprune.core.errors import UserError
from vitprune.criteria.attribution.path_scores import path_scores
from vitprune.criteria.attribution.settings import Alone, Chain, Gates, Jas, Rule
from vitprune.criteria.catalog import CRITERIA, how_of
from vitprune.criteria.curves import Curve
from vitprune.criteria.sampling import sampled_labels
from vitprune.criteria.scores import Scores
from vitprune.criteria.settings import Nothing, Seeded
from vitprune.criteria.statistics.elimination import eliminate
from vitprune.criteria.statistics.fisher_obs import root
from vitprune.criteria.statistics.fisher_obs import statistics as fisher_statistics
from vitprune.criteria.weights.settings import Slim
from vitprune.model import families
from vitprune.model import tokens as model_tokens
from vitprune.model.inside import hooks
from vitprune.pruning import masks

LABELS = torch.tensor([3, 1, 4, 0, 2])
wholes = pytest.mark.parametrize("name", sorted(n for n, row in CRITERIA.items() if row.whole))


def scored(name: str, model: nn.Module, images: Tensor, how: Any) -> list[Tensor]:
    score = CRITERIA[name].score
    assert score is not None
    return score(model, families.ffn_sites(model), images, LABELS[: len(images)], ts=[1], how=how)[1]


def whole(name: str, model: nn.Module, images: Tensor, how: Any = None, size: int = 2) -> list[Tensor]:
    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        yield from zip(images.split(size), LABELS[: len(images)].split(size), strict=True)

    score = CRITERIA[name].whole
    assert score is not None
    return rows_of(score(model, families.ffn_sites(model), batches, how=how or how_of(name)))


def probability(vit: reference.Vit, image: Tensor, label: int, edit: reference.Edit = reference.unchanged) -> float:
    return float(torch.softmax(vit(image, edit), 0)[label])


# ---- image by image


@pytest.mark.parametrize("changed", [{}, {"init_values": 0.2, "reg_tokens": 1}])
def test_knowledge_attribution_is_what_a_unit_is_worth(tiny_vit, make_images, changed):
    """With many nodes: p(clean) − p(that unit of the class token zeroed), in every block."""
    model, images = tiny_vit(mlp_ratio=0.25, **changed), make_images(2)
    vit = reference.Vit(model)
    found = scored("knowledge-attribution", model, images, Alone(nodes=20))
    for row, image in enumerate(images):
        label = int(LABELS[row])
        for block, scores in enumerate(found):
            for j in range(scores.shape[1]):

                def without(i: int, hidden_TN: Tensor, block: int = block, j: int = j) -> Tensor:
                    out = hidden_TN.clone()
                    if i == block:
                        out[0, j] = 0
                    return out

                worth = probability(vit, image, label) - probability(vit, image, label, without)
                assert float(scores[row, j]) == pytest.approx(worth, rel=1e-5, abs=1e-9)


def test_knowledge_attribution_without_halves_is_the_same(tiny_vit, make_images, monkeypatch):
    model, images, how = tiny_vit(mlp_ratio=0.25), make_images(2), Alone(nodes=2)
    for tokens in ("cls", "patches", "all"):
        fast = scored("knowledge-attribution", model, images, replace(how, tokens=tokens))
        with monkeypatch.context() as patch:
            patch.setattr(model_tokens, "halves", lambda _: None)
            slow = scored("knowledge-attribution", model, images, replace(how, tokens=tokens))
        for a, b in zip(fast, slow, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-14)


def test_influence_pattern_is_the_chain_of_derivatives(tiny_vit, make_images):
    """Eq. 9 by central differences: every factor at every α, the greedy chain, the mean over α."""
    model, images, nodes, step = tiny_vit(mlp_ratio=0.25), make_images(2), 3, 1e-5
    vit = reference.Vit(model)
    found = scored("influence-pattern", model, images, Chain(quadrature="midpoint", nodes=nodes))
    alphas = [(k + 0.5) / nodes for k in range(nodes)]
    for row, image in enumerate(images):

        def units(alpha: float, push: tuple[int, int, float] | None = None, image: Tensor = image) -> list[Tensor]:
            seen = []

            def edit(i: int, hidden_TN: Tensor) -> Tensor:
                out = hidden_TN.clone()
                seen.append(hidden_TN[0])
                if push and i == push[0]:
                    out[0, push[1]] += push[2]
                return out

            vit(alpha * image, edit)
            return seen

        chain = np.ones(nodes)
        factors = np.array([((units(a + step)[0] - units(a - step)[0]) / (2 * step)).numpy() for a in alphas])
        for block in range(3):
            products = chain[:, None] * factors
            expected = products.mean(0)
            np.testing.assert_allclose(found[block][row].numpy(), expected, rtol=1e-5, atol=1e-7)
            best = int(expected.argmax())
            chain = products[:, best]
            if block < 2:
                ends = [[units(a, (block, best, s))[block + 1] for s in (step, -step)] for a in alphas]
                factors = np.array([((up - down) / (2 * step)).numpy() for up, down in ends])


def test_influence_gradient_is_a_mean_of_gradients(tiny_vit, make_images):
    model, images, step = tiny_vit(mlp_ratio=0.25), make_images(2), 1e-5
    vit = reference.Vit(model)
    found = scored("influence-gradient", model, images, Rule(quadrature="right", nodes=2))
    for row, image in enumerate(images):
        for block in range(3):
            for j in range(4):
                total = 0.0
                for alpha in (0.5, 1.0):
                    ends = []
                    for push in (step, -step):

                        def edit(i: int, hidden_TN: Tensor, push=push, block=block, j=j) -> Tensor:
                            out = hidden_TN.clone()
                            if i == block:
                                out[0, j] += push
                            return out

                        ends.append(probability(vit, alpha * image, int(LABELS[row]), edit))
                    total += (ends[0] - ends[1]) / (2 * step) / 2
                assert float(found[block][row, j]) == pytest.approx(total, rel=1e-4, abs=1e-8)


def test_fisher_is_the_squared_gate_gradient_of_a_drawn_label(tiny_vit, make_images):
    model, images = tiny_vit(mlp_ratio=0.25), make_images(3)
    drawn = sampled_labels(model, images, 7)
    found = scored("fisher", model, images, Seeded(seed=7))
    for row, image in enumerate(images):
        own = reference.joint_gates(model, image, int(drawn[row]), [(1.0, 1.0)], "log-probability")
        for block, expected in zip(found, own, strict=True):
            np.testing.assert_allclose(block[row].numpy(), expected**2, rtol=1e-4, atol=1e-9)


def test_mean_activation_is_over_all_tokens(tiny_vit, make_images):
    model, images = tiny_vit(), make_images(2)
    for row, image in enumerate(images):
        own = reference.Vit(model).hidden(image)
        for block, hidden_TN in zip(scored("mean-activation", model, images, Nothing()), own, strict=True):
            torch.testing.assert_close(block[row], hidden_TN.abs().mean(0))


# ---- weights, statistics, training


def ffn(model: nn.Module, i: int) -> tuple[Tensor, Tensor]:
    mlp = model.blocks[i].mlp
    return mlp.fc1.weight.detach(), mlp.fc2.weight.detach()


@pytest.mark.parametrize("p", [1, 2])
def test_magnitude_of_a_units_row_and_column(tiny_vit, make_images, p):
    model = tiny_vit()
    for i, score in enumerate(whole(f"magnitude-l{p}", model, make_images(1))):
        first, second = ffn(model, i)
        expected = (first.abs().pow(p).sum(1) + second.abs().pow(p).sum(0)) / 2
        torch.testing.assert_close(score[0].double(), expected, rtol=1e-5, atol=1e-6)


def by_image(model: nn.Module, images: Tensor) -> list[list[tuple[Tensor, Tensor]]]:
    """∂(cross-entropy)/∂(fc1, fc2) per image and block."""
    found = []
    for image, label in zip(images, LABELS, strict=False):
        weights = [w for block in model.blocks for w in (block.mlp.fc1.weight, block.mlp.fc2.weight)]
        for w in weights:
            w.requires_grad_(True)
        loss = -torch.log_softmax(model(image[None]), 1)[0, label]
        grads = torch.autograd.grad(loss, weights)
        found.append(list(zip(grads[::2], grads[1::2], strict=True)))
        for w in weights:
            w.requires_grad_(False)
    return found


def test_taylor_is_the_mean_gradient_times_the_weight(tiny_vit, make_images):
    model, images = tiny_vit(), make_images(5)
    grads = by_image(model, images)
    for i, score in enumerate(whole("taylor", model, images)):
        first, second = ffn(model, i)
        g1, g2 = (torch.stack([image[i][k] for image in grads]).mean(0) for k in (0, 1))
        expected = ((first * g1).abs().sum(1) + (second * g2).abs().sum(0)) / 2
        torch.testing.assert_close(score[0].double(), expected, rtol=1e-5, atol=1e-9)


def test_hessian_is_the_mean_squared_gradient_of_every_image(tiny_vit, make_images):
    model, images = tiny_vit(), make_images(5)
    grads = by_image(model, images)
    for i, score in enumerate(whole("hessian", model, images)):
        first, second = ffn(model, i)
        g1, g2 = (torch.stack([image[i][k] for image in grads]).square().mean(0) for k in (0, 1))
        expected = ((first.square() * g1).sum(1) + (second.square() * g2).sum(0)) / 2
        torch.testing.assert_close(score[0].double(), expected, rtol=1e-5, atol=1e-9)


def test_variance_and_its_weight(tiny_vit, make_images):
    model, images = tiny_vit(init_values=0.2), make_images(5)
    rows = reference.stacked(model, images)
    pairs = zip(whole("variance", model, images), whole("variance-weight", model, images), strict=True)
    for i, (plain, weighted) in enumerate(pairs):
        expected = rows[i].var(0)
        np.testing.assert_allclose(plain[0].numpy(), expected, rtol=1e-5)
        norm = ffn(model, i)[1].square().sum(0).numpy()
        np.testing.assert_allclose(weighted[0].numpy(), expected * norm, rtol=1e-5)


def test_obs_removes_what_the_others_make_up_for(tiny_vit, make_images):
    """Brute force: at every turn the unit whose removal leaves the least error after the best linear repair."""
    generator = torch.Generator().manual_seed(3)
    n, d = 7, 3
    mix = torch.randn(40, 4, generator=generator, dtype=torch.float64) @ torch.randn(
        4, n, generator=generator, dtype=torch.float64
    )
    rows = mix + 0.3 * torch.randn(40, n, generator=generator, dtype=torch.float64)
    weight = torch.randn(d, n, generator=generator, dtype=torch.float64)
    covariance = torch.cov(rows.T, correction=0)
    ridged = covariance + 1e-3 * covariance.diagonal().mean() * torch.eye(n, dtype=torch.float64)
    left, expected = list(range(n)), []
    while left:

        def error(j: int) -> float:
            kept = [k for k in left if k != j]
            rest = ridged.clone()
            if kept:
                rest -= ridged[:, kept] @ torch.linalg.solve(ridged[kept][:, kept], ridged[kept])
            return float(torch.trace(weight @ rest @ weight.T))

        worst = min(left, key=error)
        expected.append(worst)
        left.remove(worst)
    order, costs = eliminate(weight, covariance)
    assert order.tolist() == expected
    assert float(costs.sum()) == pytest.approx(float(torch.trace(weight @ ridged @ weight.T)), rel=1e-9)
    model, images = tiny_vit(), make_images(5)
    for i, score in enumerate(whole("obs", model, images)):
        stacked = torch.from_numpy(reference.stacked(model, images)[i])
        order, costs = eliminate(ffn(model, i)[1], torch.cov(stacked.T, correction=0))
        assert (score[0].argsort() == order).float().mean() > 0.9  # near ties may fall either way in another summation
        torch.testing.assert_close(score[0].sort().values, costs.cummax(0).values.float(), rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize(("d", "n", "block"), [(4, 30, 4), (40, 30, 64), (12, 150, 64), (16, 768, 64)])
def test_delayed_updates_give_the_order_and_the_costs_of_updates_made_at_once(monkeypatch, d, n, block):
    generator = torch.Generator().manual_seed(5)
    rows = torch.randn(3 * n, n, generator=generator, dtype=torch.float64)
    rows = rows * torch.linspace(0.1, 2, n, dtype=torch.float64) @ torch.randn(n, n, generator=generator).double()
    weight, covariance = torch.randn(d, n, generator=generator, dtype=torch.float64), rows.T @ rows / (3 * n)
    expected, expected_costs = reference.eliminate(weight, covariance)
    monkeypatch.setattr("vitprune.criteria.statistics.elimination.BLOCK", block)
    order, costs = eliminate(weight, covariance)
    assert order.tolist() == expected
    np.testing.assert_allclose(costs, expected_costs, rtol=1e-8)


@pytest.mark.parametrize(("name", "unit"), [("obs", "squared stream units"), ("fisher-obs", "nats per image")])
def test_curves_are_kept_with_the_scores_and_files_without_them_are_read(tiny_vit, make_images, tmp_path, name, unit):
    model, images = tiny_vit(), make_images(5)
    found = vitprune.discover(model, images, LABELS, criterion=name)
    assert found.curves and {curve.unit for curve in found.curves.values()} == {unit}
    (tmp_path / "made").write_bytes(found.to_bytes())
    again = Scores.from_file(tmp_path / "made", name, list(found.sites))
    assert again.curves and list(again.curves) == list(again.sites) == list(found.sites)
    for site, curve in again.curves.items():
        mine = found.curves[site]
        assert torch.equal(curve.order, mine.order) and torch.equal(curve.costs, mine.costs) and curve.unit == unit
        assert torch.equal(again.sites[site], found.sites[site]) and torch.equal(curve.scores[None], found.sites[site])
        assert curve.order.tolist() == found.sites[site][0].argsort().tolist()  # one order, of the costs as they were
    save_file({f"scores.{site}": block for site, block in found.sites.items()}, tmp_path / "old")
    old = Scores.from_file(tmp_path / "old", name, list(found.sites))
    assert old.curves is None and all(map(torch.equal, old.rows, found.rows))


def test_scores_without_curves_leave_their_file_as_it_was():
    scores = spread()
    assert scores.to_bytes() == save({f"scores.{site}": block for site, block in scores.sites.items()})


def test_a_curve_among_units_that_are_gone_already():
    gone = torch.tensor([False, True, False, True, False])
    wide = Curve(torch.tensor([1, 2, 0]), torch.tensor([0.5, 0.1, 2.0], dtype=torch.float64), "nats per image").behind(
        gone, -1.0
    )
    assert wide.order.tolist() == [1, 3, 2, 4, 0] and wide.costs.tolist() == [-1, -1, 0.5, 0.1, 2]
    assert wide.unit == "nats per image"


def test_a_cost_curve_rises_strictly_in_the_order_of_removal():
    order = torch.tensor([2, 0, 3, 1, 4])
    scores = Curve(order, torch.tensor([0.5, 0.2, 0.2, 3.0, 0.0], dtype=torch.float64)).scores
    assert scores.argsort().tolist() == order.tolist()
    torch.testing.assert_close(scores[order], torch.tensor([0.5, 0.5, 0.5, 3.0, 3.0]))
    assert bool((scores[order].diff() > 0).all())
    zero = Curve(order, torch.zeros(5, dtype=torch.float64)).scores
    assert zero.argsort().tolist() == order.tolist() and float(zero.max()) < 1e-30


@pytest.mark.parametrize("changed", [{}, {"init_values": 0.2, "reg_tokens": 1, "global_pool": "avg"}], ids=str)
def test_fisher_obs_statistics_by_finite_differences_and_its_curve(tiny_vit, make_images, changed):
    """G from the change of log p(drawn label) when fc2's output is nudged, token by token; then OBS on G^½·W2."""
    model, images = tiny_vit(depth=2, **changed), make_images(3)
    labels = LABELS[:3].tolist()  # the classes that are met, among which the prediction is taken
    among = sorted(set(labels))
    p = model(images)[:, among].double().softmax(-1)
    drawn = [int((np.cumsum(p[i].numpy()) <= u).sum()) for i, u in enumerate(draws(images))]
    sites = families.ffn_sites(model)

    def batches():
        yield from zip(images.split(2), LABELS[:3].split(2), strict=True)

    covariances, fishers, tokens = fisher_statistics(model, sites, batches, 0)
    stacked = reference.stacked(model, images)
    step, width = 1e-5, 16
    for block, site in enumerate(sites):
        T = tokens[block]
        assert 17 + changed.get("reg_tokens", 0) == T
        np.testing.assert_allclose(
            covariances[block].numpy(), np.cov(stacked[block].T, bias=True), rtol=1e-8, atol=1e-10
        )
        G = np.zeros((width, width))
        for i, image in enumerate(images):
            for token in range(T):
                g = np.zeros(width)
                for d in range(width):

                    def nudged(
                        by: float, token: int = token, d: int = d, site: str = site.fc2, image=image, i=i
                    ) -> float:
                        def hook(_, __, out):
                            out = out.clone()
                            out[0, token, d] += by
                            return out

                        handle = model.get_submodule(site).register_forward_hook(hook)
                        try:
                            return float(model(image[None])[0, among].log_softmax(-1)[drawn[i]])
                        finally:
                            handle.remove()

                    g[d] = (nudged(step) - nudged(-step)) / (2 * step)
                G += np.outer(g, g)
        np.testing.assert_allclose(fishers[block].numpy(), G / (3 * T), rtol=1e-4, atol=1e-9)
        half = root(fishers[block])
        torch.testing.assert_close(half @ half, fishers[block], rtol=1e-7, atol=1e-12)
    found = whole("fisher-obs", model, images)
    for block, score in enumerate(found):
        order, costs = eliminate(root(fishers[block]) @ ffn(model, block)[1], covariances[block])
        torch.testing.assert_close(
            score[0].sort().values, (0.5 * tokens[block] * costs.cummax(0).values).float(), rtol=1e-3, atol=1e-10
        )
        assert (score[0].argsort() == order).float().mean() > 0.8


def draws(images: Tensor, seed: int = 0) -> list[float]:
    return [zlib.crc32(image.contiguous().numpy().tobytes(), seed) / 2**32 for image in images]


def test_class_alignment_raw_and_normed(tiny_vit, make_images):
    model = tiny_vit(init_values=0.2)
    raw, normed = (whole(name, model, make_images(1)) for name in ("class-alignment", "class-alignment-normed"))
    for i in range(3):
        value_ND = (ffn(model, i)[1] * model.blocks[i].ls2.gamma.detach()[:, None]).T
        torch.testing.assert_close(raw[i], (value_ND @ model.head.weight.T).T)
        centred = value_ND - value_ND.mean(1, keepdim=True)
        spread = (centred.square().mean(1, keepdim=True) + model.norm.eps).sqrt()
        expected = (centred / spread * model.norm.weight + model.norm.bias) @ model.head.weight.T + model.head.bias
        torch.testing.assert_close(normed[i], expected.T)


def test_vit_slims_first_step_goes_against_the_gradient(tiny_vit, make_images):
    """Adam's first step is rate · sign(gradient), with the L1 pressure in the gradient."""
    model, images = tiny_vit(), make_images(5)
    for pressure in (0.0, 1e3):
        how = Slim(epochs=1, rate=1e-3, pressure=pressure)
        found = whole("vit-slim", model, images, how, size=5)
        grads = np.mean(
            [np.concatenate(reference.joint_gates(model, x, int(y), [(1.0, 1.0)], "log-probability")) for x, y in
             zip(images, LABELS, strict=True)], 0,
        )  # fmt: skip
        expected = 1 - 1e-3 * np.sign(pressure - grads)
        sure = np.abs(pressure - grads) > 1e-6
        np.testing.assert_allclose(torch.cat(found, 1)[0].numpy()[sure], expected[sure], rtol=1e-5)


def test_vit_slim_presses_what_the_loss_does_not_need(tiny_vit, make_images):
    model, images = tiny_vit(dtype=torch.float32), make_images(5, dtype=torch.float32)
    how = Slim(epochs=60, rate=0.02, pressure=0.0)
    free, pressed = (torch.cat(whole("vit-slim", model, images, replace(how, pressure=p)), 1) for p in (0.0, 0.05))
    assert float(pressed.abs().mean()) < 0.6 * float(free.abs().mean())
    trained = torch.cat(whole("vit-slim", model, images, replace(how, train_weights=True)), 1)
    assert not torch.allclose(trained, free)


@wholes
def test_the_contract_of_criteria_that_look_at_the_whole(tiny_vit, make_images, name):
    """Shapes, finite, the same again, the model and the random state left alone, images only where they are named."""
    row = CRITERIA[name]
    for dtype in (torch.float32, torch.float64):
        model = tiny_vit(dtype=dtype, depth=2)
        images = make_images(5, dtype=dtype)
        before, state = reference.snapshot(model), torch.get_rng_state()
        first, again = whole(name, model, images), whole(name, model, images)
        assert reference.same_state(before, reference.snapshot(model)), name
        assert torch.equal(state, torch.get_rng_state())
        assert all(b.shape[0] in (1, 5) and b.shape[1] == 32 and not b.requires_grad for b in first) and len(first) == 2
        assert all(torch.isfinite(b).all() for b in first)
        assert all(map(torch.equal, first, again))
        others = whole(name, model, images.flip(0) * 1.3)
        assert ("images" in row.needs) != all(map(torch.equal, first, others))


# ---- one threshold across blocks


def spread(seed: int = 0) -> Scores:
    generator = torch.Generator().manual_seed(seed)
    return scores_of("s", [torch.rand(1, 12, generator=generator) * scale for scale in (1.0, 0.5, 0.01)])


@pytest.mark.parametrize("keep", [0.5, 3, 1, 0.25, 1.0])
def test_a_global_threshold_keeps_the_best_of_all_blocks(keep):
    scores = spread()
    mask = masks.build(scores, keep, allocation="global")
    budget = sum(masks.width(keep, 12) for _ in range(3))
    assert sum(list(mask.widths.values())) == budget and min(list(mask.widths.values())) >= 1
    flat = sorted(
        ((float(v), i, j) for i, b in enumerate(scores.sites.values()) for j, v in enumerate(b[0])), reverse=True
    )
    firsts = {i: max((v, j) for v, k, j in flat if k == i)[1] for i in range(3)}
    chosen = set(firsts.items())
    for _, i, j in flat:
        if len(chosen) < budget:
            chosen.add((i, j))
    assert {(i, j) for i, keep_N in enumerate(mask.masks) for j in keep_N.nonzero().flatten().tolist()} == chosen


def test_a_global_threshold_rounds_every_block():
    mask = masks.build(spread(), 0.6, allocation="global", round_to=4)
    assert all(w % 4 == 0 and w >= 4 for w in list(mask.widths.values()))


def test_a_class_token_criterion_refuses_a_head_that_reads_none(tiny_vit, make_images):
    for name in ("influence-pattern", "influence-gradient", "knowledge-attribution"):
        with pytest.raises(UserError, match="class token"):
            scored(name, tiny_vit(global_pool="avg"), make_images(1), how_of(name))


# ---- captum and torch-pruning as oracles


def gauss(f: Callable[[Tensor], Tensor], end: Tensor, nodes: int) -> Tensor:
    """captum's integrated gradients from 0 to `end`."""
    from captum.attr import IntegratedGradients

    return IntegratedGradients(f).attribute(end, baselines=torch.zeros_like(end), n_steps=nodes, method="gausslegendre")


def test_joint_gates_are_captums_integrated_gradients_of_the_gates(tiny_vit, make_images):
    model, images, nodes = tiny_vit(mlp_ratio=0.5), make_images(2), 4
    sites = families.ffn_sites(model)
    found = torch.cat(scored("joint-gates", model, images, Gates(nodes=nodes)), 1)
    for row, image in enumerate(images):

        def f(gates: Tensor, image: Tensor = image, label: int = int(LABELS[row])) -> Tensor:
            parts = gates.split(8, dim=1)
            with hooks.hidden_units(model, sites, lambda i, hidden: hidden * parts[i][:, None]):
                return torch.softmax(model(image.expand(len(gates), -1, -1, -1)), 1)[:, label]

        oracle = gauss(f, torch.ones(1, 24, dtype=torch.float64), nodes)
        torch.testing.assert_close(found[row], oracle[0], rtol=1e-6, atol=1e-9)


def test_joint_ig_is_captums_integrated_gradient_of_a_path(tiny_vit, make_images):
    """Candidates of the first block together, and then a whole given path through all blocks."""
    model, images, nodes = tiny_vit(mlp_ratio=0.5), make_images(2), 4
    sites, how = families.ffn_sites(model), Jas(formula="joint-ig", nodes=nodes)
    first = scored("jas", model, images, how)[0]
    units = torch.tensor([[1, 5], [0, 3], [2, 7]])
    whole_path = path_scores(model, sites, images, LABELS[:2], units[None].expand(2, -1, -1), how)
    for row, image in enumerate(images):
        clean = [hidden_TN[0] for hidden_TN in reference.Vit(model).hidden(image)]
        for chosen in ({0: list(range(8))}, dict(enumerate(units.tolist()))):
            sizes = [len(u) for u in chosen.values()]

            def f(values: Tensor, chosen=chosen, sizes=sizes, image=image, label=int(LABELS[row])) -> Tensor:
                parts = dict(zip(chosen, values.split(sizes, dim=1), strict=True))

                def assign(i: int, hidden: Tensor) -> Tensor:
                    if i not in parts:
                        return hidden
                    index = torch.tensor(chosen[i]).expand(len(hidden), -1)
                    return torch.cat([hidden[:, 0].scatter(1, index, parts[i])[:, None], hidden[:, 1:]], 1)

                with hooks.hidden_units(model, sites, assign):
                    return torch.softmax(model(image.expand(len(values), -1, -1, -1)), 1)[:, label]

            end = torch.cat([clean[block][own] for block, own in chosen.items()])[None]
            oracle = gauss(f, end, nodes)[0]
            if len(chosen) == 1:
                torch.testing.assert_close(first[row], oracle, rtol=1e-6, atol=1e-9)
            else:
                torch.testing.assert_close(whole_path.joint_ig[row], oracle.sum(), rtol=1e-6, atol=1e-9)


def test_wrapped_scores_are_torch_prunings_own(tiny_vit, make_images):
    """Called as its documentation calls it: backward, then the importance of the group of every fc1."""
    import torch_pruning as tp

    model, images = tiny_vit(), make_images(5)
    found = {name: whole(name, model, images, size=5) for name in ("magnitude-l2", "taylor")}
    model.requires_grad_(True)
    (torch.nn.functional.cross_entropy(model(images), LABELS)).backward()
    graph = tp.DependencyGraph().build_dependency(model, example_inputs=images[:1])
    for i, block in enumerate(model.blocks):
        for name, importance in (
            ("magnitude-l2", tp.importance.GroupMagnitudeImportance(p=2, normalizer=None)),
            ("taylor", tp.importance.GroupTaylorImportance(normalizer=None)),
        ):
            group = graph.get_pruning_group(block.mlp.fc1, tp.prune_linear_out_channels, idxs=list(range(32)))
            torch.testing.assert_close(
                found[name][i][0].double(), importance(group).detach().double(), rtol=1e-5, atol=1e-8
            )
