"""Names and their scores: slow replicas, oracles by hand, and tables of attributes that are none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from scipy.optimize import nnls
from small import tiny_model
from torch import nn

from vitprune.core.errors import UserError
from vitprune.model import families
from vitprune.model.inside import hooks
from vitprune.runs.seeing.parts.naming import collect
from vitprune.see.naming import concepts, marked, scores, sparse, wpmi
from vitprune.see.naming.scores import Sums


def drawn(n: int = 60, k: int = 5, units: int = 30, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Concepts of images that overlap, and units of which some follow them."""
    generator = np.random.default_rng(seed)
    table = (generator.random((n, k)) < 0.4).astype(np.float32)
    weights = generator.normal(size=(k, units)) * (generator.random((k, units)) < 0.5)
    return table, table @ weights + 0.4 * generator.normal(size=(n, units))


# ---- names from concepts


def slow_fit(table: np.ndarray, y: np.ndarray) -> list[tuple[int, float]]:
    """The same by trying: every concept in turn by scipy's own non-negative least squares."""
    n, k = table.shape
    x, y = table.astype(np.float64) - table.mean(0), y - y.mean()

    def left(chosen: list[int]) -> float:
        inside = x[:, chosen]
        solved = np.linalg.lstsq(inside, y, rcond=None)[0]
        return float(((y - inside @ solved) ** 2).sum())

    def fitted(chosen: list[int]) -> tuple[np.ndarray, float]:
        weights, norm = nnls(x[:, chosen], y)
        return weights, float(norm**2)

    chosen: list[int] = []
    rest, price = float((y**2).sum()), np.log(n) + 2 * np.log(k)
    while len(chosen) < 3:
        useful = [
            c for c in range(k) if c not in chosen and np.linalg.lstsq(x[:, [*chosen, c]], y, rcond=None)[0][-1] > 0
        ]
        if not useful:
            break
        best = min(useful, key=lambda c: left([*chosen, c]))
        weights, after = fitted([*chosen, best])
        if n * np.log(rest / after) <= price or weights[-1] <= 0:
            break
        chosen, rest = [*chosen, best], after
    weights = fitted(chosen)[0] if chosen else np.zeros(0)
    return [(c, float(w)) for c, w in zip(chosen, weights, strict=True) if w > 0]


def test_a_concept_that_others_make_needless_goes() -> None:
    """One that speaks for both of two others, and a little more, is taken first; with both of them its weight would be below
    zero, so it goes, and the others have the weights that they have without it."""
    generator = np.random.default_rng(0)
    place = generator.random(80)
    one, other, more = place < 0.3, (place >= 0.3) & (place < 0.6), place < 0.7
    table = np.stack([one, other, more, generator.random(80) < 0.5], 1).astype(np.float32)
    values = table[:, :1] + table[:, 1:2] - 0.2 * table[:, 2:3] + 0.05 * generator.normal(size=(80, 1))
    found, expected = sparse.fit(table, values), slow_fit(table, values[:, 0])
    assert sorted(c for c, _ in expected) == [0, 1]
    assert found.concepts[0].tolist() == [expected[0][0], expected[1][0], -1]
    np.testing.assert_allclose(found.weights[0], [expected[0][1], expected[1][1], 0], rtol=1e-8)


def test_names_are_those_of_trying_every_concept() -> None:
    table, values = drawn()
    found = sparse.fit(table, values)
    lengths = set()
    for j in range(values.shape[1]):
        expected = slow_fit(table, values[:, j])
        mine = [(int(c), float(w)) for c, w in zip(found.concepts[j], found.weights[j], strict=True) if c >= 0]
        assert [c for c, _ in mine] == [c for c, _ in expected]
        np.testing.assert_allclose([w for _, w in mine], [w for _, w in expected], rtol=1e-8)
        lengths.add(len(mine))
    assert lengths >= {0, 1, 2}
    dense = np.zeros((5, 30))
    for j, c in np.argwhere(found.concepts >= 0):
        dense[found.concepts[j, c], j] = found.weights[j, c]
    np.testing.assert_allclose(found.predicted(table), table @ dense)


def test_names_do_not_hang_on_how_many_units_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    table, values = drawn()
    whole = sparse.fit(table, values)
    monkeypatch.setattr(sparse, "CHUNK", 1)
    one = sparse.fit(table, values)
    np.testing.assert_array_equal(one.concepts, whole.concepts)
    np.testing.assert_allclose(one.weights, whole.weights, rtol=1e-9)


def test_noise_and_silence_have_no_name() -> None:
    """Of 2,000 units that are noise hardly one has a name, however many concepts there are; nor what never changes."""
    table, _ = drawn(n=100, k=50)
    noise = np.random.default_rng(1).normal(size=(100, 2000))
    assert (sparse.fit(table, noise).concepts[:, 0] >= 0).mean() < 0.05
    flat = np.concatenate([np.full((100, 1), 3.0), table[:, :1].astype(np.float64)], 1)
    assert sparse.fit(table, flat).concepts[:, 0].tolist() == [-1, 0]


def test_attributes_of_images(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("image,striped,round\nb.png,1,0\n\na.png,0,1\nc.png,0,0\n")
    found = concepts.attributes(path, ["a.png", "b.png"])
    assert found.names == ("striped", "round") and found.table.tolist() == [[0, 1], [1, 0]]
    both = concepts.of_classes(np.array([4, 2]), {2: "boot", 4: "bag"}).beside(found)
    assert both.names == ("boot", "bag", "striped", "round") and both.table.tolist() == [[0, 1, 0, 1], [1, 0, 1, 0]]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "its first line is `image`"),
        ("name,a\n", "its first line is `image`"),
        ("image,a,a\n", "attribute `a` is empty, there twice"),
        ("image,a\nx.png,2\n", "line 2: `2` is neither 0 nor 1"),
        ("image,a\nx.png\n", "line 2: has 1 cells, its first line 2"),
        ("image,a\nx.png,1\nx.png,1\n", "line 3: image x.png is there twice"),
        ("image,a\ny.png,1\n", "has no row for the image x.png"),
    ],
)
def test_a_table_of_attributes_that_is_none_is_one_line(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(UserError, match=r"data\.attributes") as error:
        concepts.attributes(tmp_path / "a.csv", ["x.png"])
    assert said in str(error.value)


@pytest.mark.parametrize(("text", "said"), [("\n\n", "has none"), ("a" * 121, "is too long"), ("a\nb\nc\n", "has 3")])
def test_a_list_of_concepts_that_is_none_is_one_line(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "c.txt").write_text(text)
    with pytest.raises(UserError, match=said):
        concepts.listed(tmp_path / "c.txt", 2)


# ---- scores


def test_scores_by_hand() -> None:
    """Real (0, 0, 1, 3), predicted (0, 1, 1, 2): r = 3 / √12, 1 − MSE / mean square = .8; r is the same of a → 3a + 7."""
    true, predicted = np.array([[0.0], [0], [1], [3]]), np.array([[0.0], [1], [1], [2]])
    found = Sums.of(predicted, true)
    assert found.correlation()[0] == pytest.approx(3 / np.sqrt(12), abs=1e-12)
    assert found.explained()[0] == pytest.approx(0.8)
    assert Sums.of(predicted, 3 * true + 7).correlation()[0] == pytest.approx(3 / np.sqrt(12), abs=1e-12)
    assert Sums.of(true, true).correlation()[0] == 1
    pooled = Sums.of(predicted.reshape(2, 2, 1), true.reshape(2, 2, 1))
    assert pooled.correlation()[0] == pytest.approx(3 / np.sqrt(12), abs=1e-12)


def test_places_are_pooled_over_images_as_numpy_does() -> None:
    generator = np.random.default_rng(0)
    true, predicted = generator.normal(size=(20, 9, 3)), generator.normal(size=(20, 9, 3))
    predicted += 0.5 * true
    found = Sums.of(predicted, true)
    expected = [np.corrcoef(predicted[..., j].ravel(), true[..., j].ravel())[0, 1] for j in range(3)]
    np.testing.assert_allclose(found.correlation(), expected, rtol=1e-10)
    counted = np.zeros((1, 20))
    counted[0, [2, 2, 5, 7]] = [2, 2, 1, 1]
    again = [
        np.corrcoef(predicted[[2, 2, 5, 7], :, j].ravel(), true[[2, 2, 5, 7], :, j].ravel())[0, 1] for j in range(3)
    ]
    np.testing.assert_allclose(found.correlation(counted)[0], again, rtol=1e-10)
    low, high = found.interval(3)
    assert (low < expected).all() and (high > expected).all()


def test_what_never_changes_has_no_score() -> None:
    values = np.random.default_rng(0).normal(size=(10, 2))
    flat = np.concatenate([np.full((10, 1), 1e6), values[:, 1:]], 1)
    assert np.isnan(Sums.of(values, flat).correlation()).tolist() == [True, False]
    assert np.isnan(Sums.of(flat, values).correlation()).tolist() == [True, False]
    told = scores.told(float("nan"), 0.1, np.array([0.0, 1.0]))
    assert told["score"] is None and told["ci95"] is None and "never changes" in told["why"]
    assert scores.told(0.5, float("nan"), np.array([0.4, 0.6])) == {
        "score": 0.5, "control": None, "ci95": [0.4, 0.6], "why": None,
    }  # fmt: skip


def test_planted_noise_is_scored_as_it_must() -> None:
    """a = m + ε with P(m) = .25 and sd of ε .433: the class mean reaches 1/√2; others' explanations reach nothing."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 4, 8000)
    values = (labels[:, None] == np.arange(4)).astype(np.float64)
    values += np.sqrt(3) / 4 * generator.normal(size=values.shape)
    fit = np.arange(8000) % 2 == 0
    predicted = scores.by_class(values[fit], labels[fit], labels[~fit])
    score = Sums.of(predicted, values[~fit]).correlation()
    np.testing.assert_allclose(score, 1 / np.sqrt(2), atol=0.02)
    assert (scores.shuffled(predicted, values[~fit], 0) < 0).all()  # 1/3 of the others' means lie below
    low, high = Sums.of(predicted, values[~fit]).interval(0)
    assert (low < score).all() and (high > score).all() and (high - low < 0.06).all()


def test_the_control_is_that_of_other_units_alone() -> None:
    generator = np.random.default_rng(0)
    true = generator.normal(size=(400, 60))
    control = scores.shuffled(true, true, 0)
    assert np.abs(control).max() < 2 / np.sqrt(400) and np.isfinite(control).all()
    drawn_others = scores.others(60, 0)
    assert drawn_others.shape == (60, 20) and (drawn_others != np.arange(60)[:, None]).all()
    assert all(len(set(row)) == 20 and max(row) < 60 for row in drawn_others.tolist())
    slow = np.mean([np.corrcoef(true[:, o], true[:, 5])[0, 1] for o in drawn_others[5]])
    assert control[5] == pytest.approx(slow, abs=1e-12)
    wide = scores.others(100, 1)
    assert wide.shape == (100, 20) and (wide != np.arange(100)[:, None]).all() and wide.max() < 100
    assert scores.others(1, 0).shape == (1, 0) and np.isnan(scores.shuffled(true[:, :1], true[:, :1], 0)).all()


def test_a_class_without_images_is_the_mean_of_all() -> None:
    found = scores.by_class(np.array([[1.0], [3.0], [8.0]]), np.array([0, 0, 1]), np.array([1, 0, 2]))
    assert found[:, 0].tolist() == [8, 2, 4]


def test_images_for_names_are_none_of_those_for_scores() -> None:
    labels = np.repeat([3, 1], [7, 4])
    index, fit = collect.chosen(np.arange(100, 111), labels, 1000, 0)
    assert index.tolist() == list(range(100, 111))
    assert [int(fit[labels == c].sum()) for c in (3, 1)] == [4, 2]
    fewer, some = collect.chosen(np.arange(100, 111), labels, 6, 0)
    assert [int((labels[fewer - 100] == c).sum()) for c in (3, 1)] == [3, 3] and some.sum() == 4
    other = collect.chosen(np.arange(100, 111), labels, 1000, 1)[1]
    assert other.tolist() != fit.tolist()


class Pass:
    """As much of an open run as one part of the collecting pass needs."""

    def __init__(self, model: nn.Module, images: torch.Tensor) -> None:
        self.loaded, self.sites, self.images, self.device = self, families.ffn_sites(model), self, torch.device("cpu")
        self.model, self.pixels = model, images

    def batches(self, index: np.ndarray, _: int) -> Iterator[tuple[torch.Tensor, None]]:
        yield self.pixels[index], None


def collected(model: nn.Module, images: torch.Tensor, where: str) -> dict[str, np.ndarray]:
    made: Any = Pass(model, images)
    prefix = families.token_layout(model).prefix
    return collect._looked(made, np.arange(len(images)), {1: [3, 0]}, prefix, where, 4, [0, len(images)])


def test_activations_are_read_at_the_class_token_or_over_the_patches() -> None:
    model, images = tiny_model(1), torch.randn(6, 1, 28, 28)
    hidden: dict[int, torch.Tensor] = {}
    with (
        torch.no_grad(),
        hooks.hidden_units(model, families.ffn_sites(model), lambda i, h: hidden.update({i: h.clone()})),
    ):
        model(images)
    for where in ("class", "patches", "all"):
        found = collected(model, images, where)
        for i in (0, 1):
            expected = hidden[i][:, 0] if where == "class" else hidden[i][:, where == "patches" :].mean(1)
            np.testing.assert_allclose(found[f"{i}.values"], expected.numpy(), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(found["1.maps"], hidden[1][:, 1:, [3, 0]].relu().numpy(), rtol=1e-4, atol=1e-6)
        assert "0.maps" not in found


def test_the_free_sign_of_a_gated_unit_changes_no_name() -> None:
    """Negate a unit's row of the one half and its column of fc2: the same function, the same activations to be named."""
    model: Any = timm.create_model(
        "vit_small_patch14_reg4_dinov2", img_size=28, patch_size=7, in_chans=1, embed_dim=16, depth=2, num_heads=2,
        num_classes=3, mlp_layer=timm.layers.GluMlp, act_layer=nn.SiLU,
    ).eval()  # fmt: skip
    images = torch.randn(4, 1, 28, 28)
    before = collected(model, images, "patches")
    with torch.no_grad():
        for block in model.blocks:
            half = block.mlp.fc2.in_features
            value = slice(half, None) if block.mlp.gate_last is False else slice(0, half)
            block.mlp.fc1.weight[value] *= -1
            block.mlp.fc1.bias[value] *= -1
            block.mlp.fc2.weight.mul_(-1)
    after = collected(model, images, "patches")
    assert (before["0.values"] >= 0).all() and before["0.values"].std() > 0
    for name, column in before.items():
        np.testing.assert_allclose(after[name], column, rtol=1e-3, atol=1e-6)


# ---- soft-WPMI


def test_wpmi_by_hand() -> None:
    soft = np.array([[0.75, 0.25]])
    images = np.array([[0]])
    assert wpmi.scores(soft, images).tolist() == [[0, 0]]  # the only unit of a layer
    two = np.array([[0.75, 0.25], [0.25, 0.75]])
    found = wpmi.scores(two, np.array([[0], [1]]))
    first = np.log([0.7505 + 1e-7, 0.2515 + 1e-7])
    assert first == pytest.approx([-0.28702, -1.38031], abs=1e-5)
    shared = np.log(np.exp(first).sum() / 2)
    np.testing.assert_allclose(found, [[first[0] - shared, first[1] - shared], [first[1] - shared, first[0] - shared]])


def test_wpmi_is_that_of_its_slow_replica(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    cosines = generator.uniform(-0.3, 0.5, (12, 7))
    cosines[:, 6] = cosines[:, 2]  # a concept that is there twice
    soft = wpmi.soft(cosines)
    np.testing.assert_allclose(soft, np.exp(10 * cosines) / np.exp(10 * cosines).sum(1, keepdims=True))
    images = np.stack([generator.permutation(12)[:5] for _ in range(9)])
    first = np.zeros((9, 7))
    for u, c in np.ndindex(9, 7):
        for i in range(5):
            p = 0.998 - (i / 5) * (0.998 - 0.97)
            first[u, c] += np.log(1 + p * (soft[images[u, i], c] - 1) + 1e-7)
    expected = first - (np.log(np.exp(first).sum(0)) - np.log(9))
    np.testing.assert_allclose(wpmi.scores(soft, images), expected, rtol=1e-9)
    np.testing.assert_allclose(expected[:, 2], expected[:, 6])
    monkeypatch.setattr(wpmi, "CHUNK", 2 * 9)
    names, values = wpmi.best(soft, images, 3)
    np.testing.assert_array_equal(names, np.argsort(-expected, axis=1, kind="stable")[:, :3])
    np.testing.assert_allclose(values, -np.sort(-expected, axis=1)[:, :3], rtol=1e-9)


# ---- pictures for a namer


def test_cells_and_crops_lie_on_each_other() -> None:
    picture = np.zeros((28, 14, 3), np.uint8)
    picture[7:14, 7:] = 200
    cut = marked.crops(picture, 4, 2)
    assert [int(one.max()) for one in cut] == [0, 0, 0, 200, 0, 0, 0, 0] and {one.shape for one in cut} == {(7, 7, 3)}
    maps = picture[..., 0].astype(np.float32)[None, None]
    cells = marked.celled(maps)
    assert cells.shape == (1, 1, 7, 7) and cells[0, 0].argmax() in (2 * 7 + 4, 2 * 7 + 5, 2 * 7 + 6)
    assert all(one.size for one in marked.crops(picture[:3, :2], 7, 7))


def test_a_contour_goes_around_where_a_unit_fires() -> None:
    import io

    from PIL import Image

    grey = np.full((28, 28, 3), 90, np.uint8)
    shape = np.zeros((4, 4), np.float32)
    shape[1, 2] = 1
    found = np.array(Image.open(io.BytesIO(marked.outlined(grey, shape, 0.5))))
    yellow = (found == marked.YELLOW).all(2)
    rows, columns = np.nonzero(yellow)
    assert yellow.any() and 56 <= rows.mean() < 112 and 112 <= columns.mean() < 168 and not yellow[84, 140]
    nowhere = np.array(Image.open(io.BytesIO(marked.outlined(grey, shape, 1.0))))
    assert (nowhere == 90).all()
    lines = np.array(Image.open(io.BytesIO(marked.gridded(grey, 4, 4))))
    assert (lines != 90).any(2).sum() == 3 * 224 * 2 - 9
