"""Every figure of a backbone's exam against a slow replica in float64, image by image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import logsumexp
from small import tiny_model
from torch import Tensor

from vitprune.core import least_squares
from vitprune.exam import features, probes
from vitprune.model.inside import backbone
from vitprune.model.inside.backbone import Features

N, T, D = 9, 5, 4


def told(seed: int, near: Features | None = None) -> Features:
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randn(N, T, D, generator=draw) + 1
    tokens = tokens if near is None else near.tokens + 0.3 * tokens
    return Features(tokens[:, 0].clone(), tokens)


def cos(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / (np.sqrt(a @ a) * np.sqrt(b @ b)))


def found(reads: str = "tokens") -> backbone.Backbone:
    model = tiny_model(outputs=0)
    backbone.read(model, reads)  # type: ignore[arg-type]
    made = backbone.of(model)
    assert made is not None
    return made


def as_numpy(of: Features) -> tuple[np.ndarray, np.ndarray]:
    return of.pooled.double().numpy(), of.tokens.double().numpy()


@pytest.mark.parametrize("reads", ["tokens", "pooled"])
def test_the_spread_of_dense_features(reads: str) -> None:
    one, whole = told(0), found(reads)
    parts = [Features(one.pooled[rows], one.tokens[rows]) for rows in (slice(0, 4), slice(4, N))]
    sums = None
    for part in parts:
        sums = least_squares.plus(sums, features.spread_sums(whole, part))
    assert sums is not None
    made = features.spread_of(whole, sums)
    pooled, tokens = as_numpy(one)
    patches = tokens[:, 1:].reshape(-1, D)
    assert np.allclose(made.pooled, pooled.mean(0)) and np.allclose(made.patches, patches.mean(0))
    energy = variance = 0.0
    for i in range(N):
        w = T - 1 if reads == "tokens" else 1
        energy += w * float(pooled[i] @ pooled[i])
        variance += w * float(np.sum((pooled[i] - pooled.mean(0)) ** 2))
        for t in range(1, T) if reads == "tokens" else ():
            energy += float(tokens[i, t] @ tokens[i, t])
            variance += float(np.sum((tokens[i, t] - patches.mean(0)) ** 2))
    assert made.energy == pytest.approx(energy / N) and made.variance == pytest.approx(variance / N)
    again = features.Spread.of_tensors(made.tensors())
    assert again.energy == made.energy and torch.equal(again.patches, made.patches)


def test_cosines_errors_and_variance_unexplained() -> None:
    dense = told(0)
    slim, whole = told(1, dense), found()
    spread = features.spread_of(whole, features.spread_sums(whole, dense))
    seen = features.compared(whole, dense, slim, spread)
    (p, t), (q, s) = as_numpy(dense), as_numpy(slim)
    mean, centre = p.mean(0), t[:, 1:].reshape(-1, D).mean(0)
    for i in range(N):
        patches = range(1, T)
        assert float(seen["pooled.cosine"][i]) == pytest.approx(cos(p[i], q[i]))
        assert float(seen["pooled.centred"][i]) == pytest.approx(cos(p[i] - mean, q[i] - mean))
        assert float(seen["tokens.cosine"][i]) == pytest.approx(np.mean([cos(t[i, k], s[i, k]) for k in patches]))
        centred = [cos(t[i, k] - centre, s[i, k] - centre) for k in patches]
        assert float(seen["tokens.centred"][i]) == pytest.approx(np.mean(centred))
        error = (T - 1) * np.sum((p[i] - q[i]) ** 2) + sum(np.sum((t[i, k] - s[i, k]) ** 2) for k in patches)
        assert float(seen["output.error"][i]) == pytest.approx(error)
        lost = (1 - cos(p[i], q[i]) + np.mean([1 - cos(t[i, k], s[i, k]) for k in patches])) / 2
        assert float(seen["output.lost"][i]) == pytest.approx(lost)
    for name, a, b in (("pooled", p[:, None], q[:, None]), ("tokens", t[:, 1:], s[:, 1:])):
        made = features.fvu(seen[f"{name}.error"], seen[f"{name}.square"], seen[f"{name}.sum"], a.shape[1])
        assert made == pytest.approx(np.sum((a - b) ** 2) / np.sum((a - a.mean((0, 1))) ** 2))


def test_where_the_pooled_vector_is_read_the_rows_count_nothing() -> None:
    dense = told(0)
    slim, whole = told(1, dense), found("pooled")
    seen = features.compared(whole, dense, slim, features.spread_of(whole, features.spread_sums(whole, dense)))
    assert torch.allclose(seen["output.error"], seen["pooled.error"])
    assert torch.allclose(seen["output.lost"], 1 - seen["pooled.cosine"])


def test_neighbours_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    dense, slim = draw.standard_normal((30, 6)), draw.standard_normal((30, 6))
    slim = dense + 0.5 * slim
    shares = []
    for i in range(30):
        near = []
        for x in (dense, slim):
            others = sorted((j for j in range(30) if j != i), key=lambda j: -cos(x[i], x[j]))
            near.append(set(others[:10]))
        shares.append(len(near[0] & near[1]) / 10)
    given = torch.from_numpy(dense), torch.from_numpy(slim)
    assert features.overlap(*given) == pytest.approx(np.mean(shares))
    monkeypatch.setattr(features, "AT_ONCE", 70)  # two queries at a time
    assert features.overlap(*given) == pytest.approx(np.mean(shares))
    assert features.overlap(given[0], given[0]) == 1.0 and features.overlap(given[0][:3], given[1][:3]) == 1.0
    assert np.isnan(features.overlap(given[0][:1], given[1][:1]))


def samples(count: int, seed: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    return torch.randn(count, 5, generator=draw) + 0.8 * torch.eye(5)[labels], labels


def test_the_vote_of_the_nearest() -> None:
    bank, labels = samples(40, 0)
    queries, _ = samples(15, 1)
    made = probes.vote(bank, labels, queries, 3, k=7)
    for i, query in enumerate(queries.double().numpy()):
        alike = [cos(query, other) for other in bank.double().numpy()]
        votes = [0.0, 0.0, 0.0]
        for j in sorted(range(40), key=lambda j: -alike[j])[:7]:
            votes[int(labels[j])] += np.exp(alike[j] / 0.07)
        assert int(made[i]) == int(np.argmax(votes))
    assert len(probes.vote(bank[:4], labels[:4], queries, 3)) == 15  # fewer than k


def test_the_linear_probe_is_the_minimum_of_its_objective() -> None:
    bank, labels = samples(40, 0)
    queries, _ = samples(15, 1)
    x = bank.double().numpy()
    x = (x - x.mean(0)) / x.std(0)

    def lost(flat: np.ndarray) -> float:
        w, b = flat[:15].reshape(5, 3), flat[15:]
        logits = x @ w + b
        told = logsumexp(logits, 1) - logits[np.arange(40), labels.numpy()]
        return float(told.mean() + 1e-3 / 2 * np.sum(w**2))

    best = minimize(lost, np.zeros(18), tol=1e-9).x  # by differences, without a gradient
    w, b = best[:15].reshape(5, 3), best[15:]
    found = probes.fitted(torch.from_numpy(x), labels, 3).numpy()
    assert np.allclose(found[:-1], w, atol=2e-3) and np.allclose(found[-1] - found[-1].mean(), b - b.mean(), atol=2e-3)
    q = (queries.double().numpy() - bank.double().numpy().mean(0)) / bank.double().numpy().std(0)
    assert np.array_equal(probes.probe(bank, labels, queries, 3).numpy(), (q @ w + b).argmax(1))
    flat = (
        torch.cat([bank, torch.ones(40, 1)], 1),
        torch.cat([queries, torch.ones(15, 1)], 1),
    )  # a number that never changes
    assert torch.equal(probes.probe(flat[0], labels, flat[1], 3), probes.probe(bank, labels, queries, 3))


def test_paired_differences() -> None:
    one, other = np.array([0.9, 0.8, 0.7]), np.array([0.8, 0.8, 0.5])
    mean, (low, high) = features.difference(one, other)
    assert (
        mean == pytest.approx(0.1)
        and high - mean == pytest.approx(1.96 * 0.1 / 3**0.5)
        and low == pytest.approx(2 * 0.1 - high)
    )
    assert features.difference(one[:1], other[:1])[1] is None


def test_what_has_no_variance_has_no_fraction_of_it() -> None:
    """One image, or images with equal features: nothing is said, and nothing is divided by rounding."""
    f = torch.randn(1, 7, dtype=torch.float64).repeat(3, 1)
    for rows in (f[:1], f):
        error, square = torch.full((len(rows),), 0.1, dtype=torch.float64), rows.square().sum(1)
        assert np.isnan(features.fvu(error, square, rows, 1))
    spread = features.Spread(f[0], f[0], 1.0, 1e-16)
    assert spread.unexplained(0.1) is None and features.Spread(f[0], f[0], 1.0, 0.5).unexplained(0.1) == 0.2


def test_features_are_told_in_pieces_to_the_same_bits() -> None:
    model = tiny_model(outputs=0)
    x = torch.randn(6, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    told_ = features.teller(model)(x)
    with torch.no_grad():
        assert torch.equal(told_.tokens, model.forward_features(x)) and torch.equal(told_.pooled, model(x))  # type: ignore[operator]
