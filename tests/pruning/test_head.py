"""The classifier's repair against scipy's minimum of the same function, and what it leaves alone."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from torch import nn

from vitprune.core.errors import UserError
from vitprune.pruning.repair import head, repair

N, D, C = 60, 5, 3


def case(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    features, weight = (torch.randn(*shape, generator=draw, dtype=torch.float64) for shape in ((N, D), (C, D)))
    true = torch.randn(C, D, generator=draw, dtype=torch.float64)
    target = (features @ (weight + 0.5 * true).T + 0.3 * torch.randn(N, C, generator=draw)).softmax(-1)
    return 2 * features + 1, target, weight, torch.randn(C, generator=draw, dtype=torch.float64)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("ridge", [1e-3, 1e-1])
def test_the_minimum_is_scipys(seed: int, ridge: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "RIDGES", (ridge,))
    features, target, weight, bias = case(seed)
    made = head.fitted(features, target, weight, bias)
    x, p, w0 = features.numpy(), target.numpy(), weight.numpy()
    spread = x.std(0, ddof=1)

    def loss(flat: np.ndarray) -> float:
        w, b = flat[: C * D].reshape(C, D), flat[C * D :]
        q = log_softmax(x @ w.T + b, 1)
        return float(ridge / 2 * (((w - w0) * spread) ** 2).sum() - (p * q).sum(1).mean())

    best = minimize(loss, np.concatenate([w0.ravel(), bias.numpy()]), method="BFGS", options={"gtol": 1e-9})
    ours = np.concatenate([made[0].numpy().ravel(), made[1].numpy()])
    assert loss(ours) == pytest.approx(best.fun, abs=1e-9)
    assert softmax(x @ made[0].numpy().T + made[1].numpy(), 1) == pytest.approx(
        softmax(x @ best.x[: C * D].reshape(C, D).T + best.x[C * D :], 1), abs=1e-4
    )


def test_what_is_right_already_is_left_to_the_bit() -> None:
    features, _, weight, bias = case(0)
    made = head.fitted(features, (features @ weight.T + bias).softmax(-1), weight, bias)
    assert torch.equal(made[0], weight) and torch.equal(made[1], bias)


def test_the_strength_is_what_every_fifth_image_likes_best() -> None:
    features, target, weight, bias = case(1)
    held, every = torch.arange(N) % 5 == 4, torch.arange(N)
    z, zero = (features - features.mean(0)) / features.std(0), (0 * weight, 0 * bias)
    seen = head.Seen(z, features @ weight.T + bias, target)

    def error(ridge: float) -> float:
        w, b = head._solve(seen, every[~held], ridge, zero)
        log_q = (features @ weight.T + bias + z @ w.T + b)[held].log_softmax(-1)
        return -float((target[held] * log_q).sum(-1).mean())

    errors = {ridge: error(ridge) for ridge in head.RIDGES}
    best = min(errors, key=errors.__getitem__)
    w, _ = head._solve(seen, every, best, zero)
    torch.testing.assert_close(
        head.fitted(features, target, weight, bias)[0], weight + w / features.std(0), atol=1e-5, rtol=1e-5
    )


def test_the_gradients_of_a_few_images_at_a_time_are_autograds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "TOGETHER", 7)
    features, target, weight, bias = case(2)
    w, b = (torch.randn(part.shape, dtype=torch.float64).requires_grad_() for part in (weight, bias))
    rows, start = torch.arange(N)[5:50:2], features @ weight.T
    whole = -(target * (start + features @ w.T + b).log_softmax(-1)).sum(-1)[rows].mean()
    whole.backward()
    found = head.Seen(features, start, target).kl(rows, w.detach(), b.detach())
    assert found[0] == pytest.approx(float(whole), rel=1e-12)
    for made, expected in zip(found[1:], (w.grad, b.grad), strict=True):
        torch.testing.assert_close(made, expected, rtol=1e-12, atol=1e-12)


def test_a_slim_model_comes_closer_to_the_dense_one(tiny_vit, make_images) -> None:
    model, images = tiny_vit(dtype=torch.float32), make_images(80, dtype=torch.float32)
    slim = copy.deepcopy(model)
    with torch.no_grad():
        for block in slim.blocks:
            block.mlp.fc2.weight *= 0.3
    before = copy.deepcopy(slim)

    def distance(made: nn.Module) -> float:
        p = model(images).log_softmax(-1)
        return float((p.exp() * (p - made(images).log_softmax(-1))).sum(1).mean())

    head.refit(slim, model, images.split(16))
    assert distance(slim) < 0.8 * distance(before)
    changed = {k for k, v in slim.state_dict().items() if not torch.equal(v, before.state_dict()[k])}
    assert changed == {"head.weight", "head.bias"}


def test_auto_takes_it_under_a_budget_of_the_whole_model_where_it_can(tiny_vit) -> None:
    model = tiny_vit()
    assert (repair.chosen("auto", model), repair.chosen("auto", model, True)) == ("layerwise", "layerwise+head")
    model.head = nn.Linear(model.head.in_features, model.head.out_features, bias=False)
    assert repair.chosen("auto", model, True) == "layerwise"
    with pytest.raises(UserError, match=r"no bias; take layerwise without head"):
        head.refit(model, model, [])
