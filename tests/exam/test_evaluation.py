"""Figures of merit against numpy loops, the split's walls, and the oracle routing of the paper's protocol."""

from __future__ import annotations

import math

import numpy as np
import pytest
import reference
import torch
from PIL import Image
from small import plan_of
from torch import Tensor

from vitprune.exam import metrics
from vitprune.exam.logits import predictor
from vitprune.exam.logits import test_indices as indices_of
from vitprune.exam.logits import test_logits as logits_of
from vitprune.exam.oracle import oracle_logits
from vitprune.images.batches import Images
from vitprune.images.split import Split
from vitprune.model import families, size
from vitprune.pruning import surgery

COUNT, OUTPUTS = 23, 5


class Pixels:
    """A source of noise images; pixel (0, 0) is the image's number."""

    def __init__(self, class_of: np.ndarray) -> None:
        self.pixels = np.random.default_rng(0).integers(0, 256, (COUNT, 28, 28), dtype=np.uint8)
        self.pixels[:, 0, 0] = np.arange(COUNT)
        self.class_of = class_of
        self.classes = ["a", "b", "c"]
        self.names = [str(i) for i in range(COUNT)]

    def image(self, i: int) -> Image.Image:
        return Image.fromarray(self.pixels[i])

    def fingerprint(self) -> str:
        return "noise"


def to_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image, dtype=np.float32))[None] / 64 - 2


def numbers(batch: Tensor) -> list[int]:
    return [round(64 * (value + 2)) for value in batch[:, 0, 0, 0].tolist()]


def make_images(class_of: np.ndarray | None = None) -> Images:
    """Classes a, b, c are the model's outputs 4, 0, 2."""
    return Images(Pixels(np.arange(COUNT) % 3 if class_of is None else class_of), to_tensor, 1, np.array([4, 0, 2]))


def split() -> Split:
    order = np.random.default_rng(1).permutation(COUNT)
    return Split(0, 0.5, order[:9], order[9:])


def some_logits(count: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, OUTPUTS - 1, count)  # the last class has no image
    logits = draw.normal(size=(count, OUTPUTS)) * 2
    logits[np.arange(count), labels] += 1.5
    return logits.astype(np.float32), labels


# --- metrics


@pytest.mark.parametrize("head", [None, [0, 1, 2, 3], [3, 1], [2]])
def test_metrics_are_those_of_a_loop(head):
    logits, labels = some_logits()
    if head is not None:
        logits, labels = logits[np.isin(labels, head)], labels[np.isin(labels, head)]
    allowed = list(range(OUTPUTS)) if head is None else sorted(head)
    right, probability = [], []
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        best = max(allowed, key=lambda c, row=row: row[c])
        right.append(best == label)
        probability.append(reference.softmax([row[c] for c in allowed])[allowed.index(label)])
    found = metrics.metrics(logits, labels, head)
    assert found.n == len(labels)
    assert found.top1 == pytest.approx(sum(right) / len(right), abs=1e-12)
    assert found.mean_true_probability == pytest.approx(sum(probability) / len(probability), rel=1e-6)
    for c in range(OUTPUTS):
        own = [hit for hit, label in zip(right, labels.tolist(), strict=True) if label == c]
        if own:
            assert found.per_class[c] == pytest.approx(sum(own) / len(own), abs=1e-12)
        else:
            assert math.isnan(found.per_class[c])
    assert len(found.per_class) == OUTPUTS
    if head == [2]:
        assert found.top1 == 1 and found.mean_true_probability == pytest.approx(1)


def test_the_head_mask_changes_the_figures():
    logits, labels = some_logits()
    target = labels < 2
    free = metrics.metrics(logits[target], labels[target])
    masked = metrics.metrics(logits[target], labels[target], [0, 1])
    assert masked.top1 > free.top1 and masked.mean_true_probability > free.mean_true_probability
    outside = metrics.metrics(logits[~target], labels[~target], [0, 1])
    assert outside.top1 == 0 and outside.mean_true_probability == 0


@pytest.mark.parametrize("head", [None, [0, 2, 3]])
@pytest.mark.parametrize("part", [1, 13, 997])
def test_parts_of_the_logits_leave_no_trace(part, head, monkeypatch):
    """Every figure, to the bit, from one image to hundreds; more classes than images and fewer."""
    draws = np.random.default_rng(0)
    for n, c in ((1, 5), (2, 5), (3, 7), (101, 11), (257, 130)):
        labels = draws.integers(0, c, n) if head is None else draws.choice(head, n)
        dense = draws.normal(size=(n, c)).astype(np.float32) * 3
        slim = dense + draws.normal(size=(n, c)).astype(np.float32)
        made = []
        for most in (1 << 40, part):
            monkeypatch.setattr(metrics, "PART", most)
            one = metrics.metrics(slim, labels, head)
            of_class = np.array(one.per_class).tobytes()
            figures = one.top1, one.top1_ci95, one.mean_true_probability, of_class, metrics.kl(dense, slim, head)
            made.append((*figures, metrics.hits(slim, labels, head).tolist()))
        assert made[0] == made[1]


@pytest.mark.parametrize("share", [0.5, 0.8, 0.95])
def test_the_interval(share):
    """It holds the point, is the same again, follows the seed, and is as wide as a binomial's."""
    count = 400
    labels = np.arange(count) % 2
    logits = np.zeros((count, 2), np.float32)
    logits[np.arange(count), labels] = np.where(np.arange(count) < share * count, 1, -1)
    found = metrics.metrics(logits, labels)
    low, high = found.top1_ci95
    assert found.top1 == pytest.approx(share)
    assert low < found.top1 < high
    half = 1.96 * math.sqrt(share * (1 - share) / count)
    assert (high - low) / 2 == pytest.approx(half, rel=0.15)
    assert (high + low) / 2 == pytest.approx(share, abs=half / 4)
    np.random.seed(3)
    assert metrics.metrics(logits, labels) == found
    assert metrics.metrics(logits, labels, seed=0).top1_ci95 == found.top1_ci95
    widths = {metrics.metrics(logits, labels, seed=seed).top1_ci95 for seed in range(6)}
    assert len(widths) > 1


@pytest.mark.parametrize("seed", range(8))
def test_the_interval_holds_the_point(seed):
    logits, labels = some_logits(30, seed)
    found = metrics.metrics(logits, labels, seed=seed)
    assert 0 <= found.top1_ci95[0] <= found.top1 <= found.top1_ci95[1] <= 1


def test_all_right_and_all_wrong():
    logits = np.eye(3, dtype=np.float32)
    assert metrics.metrics(logits, np.arange(3)).top1_ci95 == metrics.wilson(3, 3)
    assert metrics.metrics(logits, (np.arange(3) + 1) % 3).top1_ci95 == metrics.wilson(0, 3)


def test_large_logits_do_not_overflow():
    found = metrics.metrics(np.array([[1e4, 0], [-1e4, 0]], np.float32), np.array([0, 0]))
    assert (found.top1, found.mean_true_probability) == (0.5, 0.5)


def test_no_images_and_numbers_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="no "):
        metrics.metrics(np.zeros((0, 3), np.float32), np.zeros(0, np.int64))
    for bad in (np.nan, np.inf, -np.inf):
        with pytest.raises(ValueError, match="finite"):
            metrics.metrics(np.array([[0, bad], [1, 0]], np.float32), np.array([0, 1]))


# --- the test split


def test_only_the_test_split_is_read_and_in_its_order():
    images, parts = make_images(), split()
    seen: list[int] = []

    def predict(batch: Tensor) -> Tensor:
        seen.extend(numbers(batch))
        return torch.tensor([[float(number)] * OUTPUTS for number in numbers(batch)])

    for batch in (1, 4, 100):
        seen.clear()
        logits, labels = logits_of(predict, images, parts, batch)
        assert logits.dtype == np.float32 and logits.shape == (len(parts.test), OUTPUTS)
        assert sorted(seen) == sorted(parts.test.tolist())
        assert not set(seen) & set(parts.probe.tolist())
        index = indices_of(images, parts)
        assert logits[:, 0].tolist() == index.tolist()
        assert labels.tolist() == [[4, 0, 2][i % 3] for i in index]


@pytest.mark.parametrize("only", [[4], [0, 2], [1]])
def test_only_some_labels(only):
    images, parts = make_images(), split()
    expected = [i for i in parts.test.tolist() if [4, 0, 2][i % 3] in only]
    index = indices_of(images, parts, np.array(only))
    assert sorted(index.tolist()) == sorted(expected)
    if expected:
        logits, labels = logits_of(
            lambda batch: torch.tensor([[float(number)] for number in numbers(batch)]), images, parts, 3, np.array(only)
        )
        assert logits[:, 0].tolist() == index.tolist()
        assert labels.tolist() == [[4, 0, 2][i % 3] for i in index]


def test_a_models_predictor(tiny_vit):
    images, parts = make_images(), split()
    model = tiny_vit(dtype=torch.float32, num_classes=OUTPUTS)
    predict = predictor(model)
    logits, _ = logits_of(predict, images, parts, 5)
    index = indices_of(images, parts)
    batch = torch.stack([images.tensor(int(i)) for i in index])
    np.testing.assert_allclose(logits, reference.Vit(model).logits(batch).numpy(), atol=1e-4)
    assert predict(batch).dtype == torch.float32 and not predict(batch).requires_grad
    half = predictor(tiny_vit(dtype=torch.bfloat16))
    assert half(batch.bfloat16()).dtype == torch.float32


# --- oracle routing


def routing(seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(OUTPUTS, 32, generator=generator) < 0.4 for _ in range(3)]


@pytest.mark.parametrize("batch", [1, 4, 64])
def test_oracle_logits_are_those_of_a_loop(tiny_vit, batch):
    model, images, parts, keep_CN = tiny_vit(dtype=torch.float32, init_values=0.3), make_images(), split(), routing()
    before = reference.snapshot(model)
    logits, labels = oracle_logits(model, families.ffn_sites(model), keep_CN, images, parts.test, batch)
    assert labels.tolist() == [[4, 0, 2][i % 3] for i in parts.test]
    vit = reference.Vit(model)
    for row, (i, label) in enumerate(zip(parts.test.tolist(), labels.tolist(), strict=True)):
        own = reference.masking([keep[label] for keep in keep_CN], class_token_only=True)
        np.testing.assert_allclose(logits[row], vit(images.tensor(i), own).numpy(), atol=1e-4)
    everywhere = reference.masking([keep[labels[0]] for keep in keep_CN])
    assert np.abs(logits[0] - vit(images.tensor(int(parts.test[0])), everywhere).numpy()).max() > 1e-2
    assert reference.same_state(before, reference.snapshot(model))


def test_keep_all_oracle_is_the_dense_model(tiny_vit):
    model, images, parts = tiny_vit(dtype=torch.float32), make_images(), split()
    keep = [torch.ones(OUTPUTS, 32, dtype=torch.bool)] * 3
    logits, _ = oracle_logits(model, families.ffn_sites(model), keep, images, parts.test, 4)
    honest, _ = logits_of(predictor(model), images, parts, 4)
    order = indices_of(images, parts)
    np.testing.assert_allclose(logits[np.argsort(parts.test)], honest[np.argsort(order)], atol=1e-5)


def test_shuffled_labels_change_oracle_figures_and_not_honest_logits(tiny_vit):
    """The leak made visible: the oracle reads the answer, the honest protocol cannot."""
    model, parts, keep_CN = tiny_vit(dtype=torch.float32), split(), routing()
    mask = plan_of([keep[0] for keep in keep_CN])
    slim, sites = surgery.slim(model, mask), families.ffn_sites(model)
    class_of = np.arange(COUNT) % 3
    shuffled = class_of.copy()
    shuffled[parts.test] = np.roll(class_of[parts.test], 1)
    moved = class_of[parts.test] != shuffled[parts.test]
    assert moved.sum() >= 3
    oracle, honest = {}, {}
    for name, labels in (("true", class_of), ("shuffled", shuffled)):
        images = make_images(labels)
        oracle[name], _ = oracle_logits(model, sites, keep_CN, images, parts.test, 5)
        logits, _ = logits_of(predictor(slim), images, parts, 5)
        honest[name] = logits[np.argsort(indices_of(images, parts))]
    change = np.abs(oracle["true"] - oracle["shuffled"]).max(1)
    assert (change[moved] > 1e-3).all() and (change[~moved] < 1e-5).all()
    assert np.array_equal(honest["true"], honest["shuffled"])


def test_oracle_with_a_progress_bar_reads_every_batch(tiny_vit):
    model, images, parts = tiny_vit(dtype=torch.float32), make_images(), split()
    ticks = []

    def progress(steps):
        for step in steps:
            ticks.append(step)
            yield step

    logits, _ = oracle_logits(model, families.ffn_sites(model), routing(), images, parts.test, 5, progress)
    assert len(logits) == len(parts.test) and len(ticks) == math.ceil(len(parts.test) / 5)


# --- size


@pytest.mark.parametrize(
    ("changed", "prefix"),
    [({}, 1), ({"patch_size": 4, "embed_dim": 24, "depth": 2}, 1), ({"reg_tokens": 2}, 3)],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_macs_by_hand(tiny_vit, changed, prefix, dtype):
    model = tiny_vit(dtype=dtype, **changed)
    patch, dim = changed.get("patch_size", 7), changed.get("embed_dim", 16)
    widths = [2 * dim] * changed.get("depth", 3)
    form = {"pixels": 28, "patch": patch, "channels": 1, "dim": dim, "classes": 5, "prefix": prefix}
    assert size.macs(model) == reference.vit_macs(widths=widths, **form)
    keep = torch.arange(2 * dim) < 5
    slim = surgery.slim(model, plan_of([keep] * len(widths)))
    assert size.macs(slim) == reference.vit_macs(widths=[5] * len(widths), **form)
    removed = sum(dim + 1 + dim for _ in widths) * (2 * dim - 5)
    assert size.parameters(model) - size.parameters(slim) == removed
    assert size.parameters(model) == sum(int(np.prod(weight.shape)) for weight in model.state_dict().values())


def test_macs_leave_the_model_alone(tiny_vit):
    model = tiny_vit(dtype=torch.float32).train()
    before = reference.snapshot(model)
    size.macs(model)
    assert reference.same_state(before, reference.snapshot(model))
