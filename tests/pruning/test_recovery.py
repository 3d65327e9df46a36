"""Moments and refits against numpy on the stacked hidden units."""

from __future__ import annotations

import numpy as np
import pytest
import reference
import torch
from small import mend, plan_of
from torch import Tensor, nn

from vitprune.core import least_squares
from vitprune.core.least_squares import Moments
from vitprune.model import families
from vitprune.model.inside import moments as inside_moments
from vitprune.pruning import surgery
from vitprune.pruning.repair import fold

N, D = 32, 16
RECOVERIES = ("none", "mean", "affine")


def moments(model: nn.Module, batches) -> list[Moments]:
    return inside_moments.moments(model, families.ffn_sites(model), batches)


def keep_of(seed: int, width: int = 20) -> Tensor:
    keep = torch.zeros(N, dtype=torch.bool)
    keep[torch.randperm(N, generator=torch.Generator().manual_seed(seed))[:width]] = True
    return keep


def stat_of(hidden: np.ndarray) -> Moments:
    mean = hidden.sum(0) / len(hidden)
    return Moments(torch.tensor(mean), torch.tensor((hidden - mean).T @ (hidden - mean) / len(hidden)), len(hidden))


@pytest.fixture(name="block")
def one_block() -> tuple[np.ndarray, Tensor, Tensor, Tensor]:
    """Correlated hidden units with means far from zero, an fc2, and a mask."""
    draw = np.random.default_rng(0)
    hidden = draw.normal(size=(400, 12)) @ draw.normal(size=(12, N)) + 0.3 * draw.normal(size=(400, N))
    hidden += draw.normal(size=N) * 3
    return hidden, torch.tensor(draw.normal(size=(D, N))), torch.tensor(draw.normal(size=D)), keep_of(1)


# --- moments


@pytest.mark.parametrize("sizes", [(7,), (1,) * 7, (3, 4), (4, 3), (6, 1), (1, 6)], ids=str)
@pytest.mark.parametrize(
    "changed",
    [{}, {"init_values": 0.2, "reg_tokens": 1}, {"reg_tokens": 2, "global_pool": "avg"}, {"depth": 1}],
    ids=str,
)
def test_moments_are_those_of_the_stack(tiny_vit, make_images, sizes, changed):
    model, images = tiny_vit(**changed), make_images(7)
    found = moments(model, images.split(sizes))
    tokens = 16 + 1 + changed.get("reg_tokens", 0)
    read = 16 if "global_pool" in changed else 1
    assert [stat.tokens for stat in found] == [7 * tokens] * (len(model.blocks) - 1) + [7 * read]
    for stat, hidden in zip(found, reference.stacked(model, images), strict=True):
        assert stat.mean.dtype == stat.covariance.dtype == torch.float64
        assert stat.tokens == len(hidden)
        np.testing.assert_allclose(stat.mean.numpy(), hidden.mean(0), rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(stat.covariance.numpy(), np.cov(hidden.T, bias=True), rtol=1e-9, atol=1e-11)


def test_moments_of_single_precision_with_large_means(tiny_vit, make_images):
    """Means a thousand times the spread: sums of raw squares in float32 would leave nothing of the covariance."""
    model, images = tiny_vit(dtype=torch.float32, depth=2), make_images(12, dtype=torch.float32)
    model.blocks[0].mlp.fc1.bias.add_(1000)
    hidden, _ = reference.stacked(model, images)
    stat, _ = moments(model, iter(images.split(3)))  # any iterable will do
    truth = np.cov(hidden.T, bias=True)
    assert 0.1 < truth.diagonal().mean() < 10
    assert np.abs(stat.covariance.numpy() - truth).max() < 1e-3 * np.abs(truth).max()
    np.testing.assert_allclose(stat.mean.numpy(), hidden.mean(0), rtol=1e-6)


def test_moments_leave_the_model_alone(tiny_vit, make_images):
    model = tiny_vit()
    before = reference.snapshot(model)
    moments(model, [make_images(2)])
    with pytest.raises(Exception, match=r"."):
        moments(model, [make_images(2), torch.zeros(1, 3, 5, 5, dtype=torch.float64)])
    assert reference.same_state(before, reference.snapshot(model))


# --- refit


def test_none_is_the_slice(block):
    hidden, weight, bias, keep = block
    new_weight, new_bias = fold.refit(weight, bias, keep, stat_of(hidden), "none", 1e-3)
    assert torch.equal(new_weight, weight[:, keep]) and torch.equal(new_bias, bias)


def test_mean_is_the_formula(block):
    hidden, weight, bias, keep = block
    new_weight, new_bias = fold.refit(weight, bias, keep, stat_of(hidden), "mean", 1e-3)
    expected = bias.numpy().copy()
    for d in range(D):
        for j in range(N):
            if not keep[j]:
                expected[d] += float(weight[d, j]) * hidden[:, j].mean()
    assert torch.equal(new_weight, weight[:, keep])
    np.testing.assert_allclose(new_bias.numpy(), expected, rtol=1e-10)


def test_affine_without_ridge_is_least_squares(block):
    """Regress the pruned units on the centred kept ones; and, from scratch, fc2's output on [kept units, 1]."""
    hidden, weight, bias, keep = block
    new_weight, new_bias = fold.refit(weight, bias, keep, stat_of(hidden), "affine", 0.0)
    kept, gone = hidden[:, keep.numpy()], hidden[:, ~keep.numpy()]
    slope = np.linalg.lstsq(kept - kept.mean(0), gone - gone.mean(0), rcond=None)[0]
    W, b = weight.numpy(), bias.numpy()
    np.testing.assert_allclose(
        new_weight.numpy(), W[:, keep.numpy()] + W[:, ~keep.numpy()] @ slope.T, rtol=1e-7, atol=1e-8
    )
    shift = gone.mean(0) - kept.mean(0) @ slope
    np.testing.assert_allclose(new_bias.numpy(), b + W[:, ~keep.numpy()] @ shift, rtol=1e-7, atol=1e-7)
    ones = np.concatenate([kept, np.ones((len(kept), 1))], 1)
    whole = np.linalg.lstsq(ones, hidden @ W.T + b, rcond=None)[0]
    np.testing.assert_allclose(new_weight.numpy(), whole[:-1].T, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(new_bias.numpy(), whole[-1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("ridge", [1e-3, 0.5, 20.0])
def test_affine_ridge_is_the_formula(block, ridge):
    hidden, weight, bias, keep = block
    new_weight, new_bias = fold.refit(weight, bias, keep, stat_of(hidden), "affine", ridge)
    kept = [j for j in range(N) if keep[j]]
    gone = [j for j in range(N) if not keep[j]]
    mu = [sum(column) / len(hidden) for column in hidden.T.tolist()]

    def cov(a: int, b: int) -> float:
        return float(((hidden[:, a] - mu[a]) * (hidden[:, b] - mu[b])).sum() / len(hidden))

    c_ss = np.array([[cov(a, b) for b in kept] for a in kept])
    c_ps = np.array([[cov(a, b) for b in kept] for a in gone])
    lam = ridge * sum(c_ss[i, i] for i in range(len(kept))) / len(kept)
    slope = c_ps @ np.linalg.inv(c_ss + lam * np.eye(len(kept)))
    W = weight.numpy()
    np.testing.assert_allclose(new_weight.numpy(), W[:, kept] + W[:, gone] @ slope, rtol=1e-8, atol=1e-9)
    shift = np.array(mu)[gone] - slope @ np.array(mu)[kept]
    np.testing.assert_allclose(new_bias.numpy(), bias.numpy() + W[:, gone] @ shift, rtol=1e-8, atol=1e-9)


def test_the_default_ridge(tiny_vit, make_images):
    dense, images = tiny_vit(), make_images(4)
    stats = moments(dense, [images])
    mask = plan_of([keep_of(i) for i in range(3)])
    found = []
    for ridge in ({}, {"ridge": least_squares.RIDGE}, {"ridge": 0.2}):
        slim = surgery.slim(dense, mask)
        mend(slim, dense, mask, "affine", moments=stats, **ridge)
        found.append(slim.blocks[1].mlp.fc2.weight)
    assert least_squares.RIDGE == 1e-3
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


# --- repair


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("how", RECOVERIES)
@pytest.mark.parametrize("qkv_bias", [True, False])
def test_repair_writes_each_blocks_refit(tiny_vit, make_images, dtype, how, qkv_bias):
    dense = tiny_vit(dtype=dtype, init_values=0.3, qkv_bias=qkv_bias)
    images = make_images(6, dtype=dtype)
    mask = plan_of([keep_of(i, width) for i, width in enumerate((20, 7, 31))])
    slim = surgery.slim(dense, mask)
    before = reference.snapshot(dense)
    other = {name: value.clone() for name, value in slim.state_dict().items() if "fc2" not in name}
    mend(slim, dense, mask, how, moments=moments(dense, [images]), images=lambda: [images])
    for i, hidden in enumerate(reference.stacked(dense, images)):
        fc2, original = slim.blocks[i].mlp.fc2, dense.blocks[i].mlp.fc2
        weight, bias = original.weight.double(), original.bias.double()
        expected = weight[:, mask.masks[i]], bias
        if how != "none":
            expected = fold.refit(weight, bias, mask.masks[i], stat_of(hidden), how, least_squares.RIDGE)
        assert fc2.weight.dtype == fc2.bias.dtype == dtype and fc2.in_features == list(mask.widths.values())[i]
        tolerance = 1e-8 if dtype == torch.float64 else 2e-4
        np.testing.assert_allclose(fc2.weight.numpy(), expected[0].numpy(), rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(fc2.bias.numpy(), expected[1].numpy(), rtol=tolerance, atol=tolerance)
    assert all(torch.equal(slim.state_dict()[name], value) for name, value in other.items())
    assert reference.same_state(before, reference.snapshot(dense))
    assert not slim.training and reference.hook_count(slim) == 0


def test_repair_reduces_the_error_of_fc2(tiny_vit, make_images):
    """On the calibration images: affine below mean below none, in every block and at the logits."""
    dense, images = tiny_vit(init_values=0.3), make_images(10)
    mask = plan_of([keep_of(i) for i in range(3)])
    stats = moments(dense, [images])
    errors: dict[str, list[float]] = {}
    for how in RECOVERIES:
        slim = surgery.slim(dense, mask)
        mend(slim, dense, mask, how, moments=stats)
        errors[how] = []
        for i, hidden in enumerate(reference.stacked(dense, images)):
            units, full, short = torch.tensor(hidden), dense.blocks[i].mlp.fc2, slim.blocks[i].mlp.fc2
            gap = full(units) - short(units[:, mask.masks[i]])
            errors[how].append(float((gap**2).mean()))
            if how != "none":
                assert gap.mean(0).abs().max() < 1e-9  # nothing left on average
        errors[how].append(float(((slim(images) - dense(images)) ** 2).mean()))
    for none, mean, affine in zip(*(errors[how] for how in RECOVERIES), strict=True):
        assert affine < 0.7 * mean < 0.7 * none


@pytest.mark.parametrize("how", RECOVERIES)
def test_keep_all_changes_nothing(tiny_vit, make_images, how):
    for dtype in (torch.float64, torch.float32):
        dense, images = tiny_vit(dtype=dtype), make_images(3, dtype=dtype)
        everything = plan_of([torch.ones(N, dtype=torch.bool)] * 3)
        slim = surgery.slim(dense, everything)
        mend(slim, dense, everything, how, moments=moments(dense, [images]))
        assert all(map(torch.equal, slim.state_dict().values(), dense.state_dict().values()))


@pytest.mark.parametrize("how", RECOVERIES)
def test_blocks_that_were_not_pruned_stay_bit_for_bit(tiny_vit, make_images, how):
    dense, images = tiny_vit(dtype=torch.float32), make_images(3, dtype=torch.float32)
    mask = plan_of([torch.ones(N, dtype=torch.bool), keep_of(1), torch.ones(N, dtype=torch.bool)])
    slim = surgery.slim(dense, mask)
    mend(slim, dense, mask, how, moments=moments(dense, [images]), images=lambda: [images])
    for i in (0, 2):
        assert all(map(torch.equal, slim.blocks[i].state_dict().values(), dense.blocks[i].state_dict().values()))
    assert torch.equal(slim.blocks[1].mlp.fc2.bias, dense.blocks[1].mlp.fc2.bias) == (how == "none")


def test_dead_and_duplicate_units_are_no_trouble(block):
    """A singular covariance of the kept units: the ridge keeps the refit finite, and a twin takes over in full."""
    hidden, weight, bias, keep = block
    hidden = hidden.copy()
    kept, gone = torch.nonzero(keep).flatten().tolist(), torch.nonzero(~keep).flatten().tolist()
    hidden[:, gone] = hidden[:, kept[: len(gone)]]  # every pruned unit has a twin that stays
    hidden[:, kept[-1]] = 4.0  # a unit that never changes
    new_weight, new_bias = fold.refit(weight, bias, keep, stat_of(hidden), "affine", 1e-9)
    truth = hidden @ weight.numpy().T + bias.numpy()
    np.testing.assert_allclose(hidden[:, kept] @ new_weight.numpy().T + new_bias.numpy(), truth, atol=1e-4)


@pytest.mark.parametrize("kept", [1, 2, 5])
def test_kept_units_that_are_all_dead_give_the_mean(kept):
    """Nothing to regress on: the best that is left is the mean of what went."""
    hidden = np.random.default_rng(0).normal(size=(50, kept + 4))
    hidden[:, :kept] = 0.0
    weight, bias = torch.ones(3, kept + 4, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    arguments = weight, bias, torch.arange(kept + 4) < kept, stat_of(hidden)
    found = fold.refit(*arguments, "affine", 1e-3)
    np.testing.assert_allclose(found[1].numpy(), fold.refit(*arguments, "mean", 1e-3)[1].numpy(), rtol=1e-9)
