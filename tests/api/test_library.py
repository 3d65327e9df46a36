"""The verbs on tensors: what they compute, that they write nothing, and that they leave the model as it was."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import reference
import torch
from small import scores_of as made_scores
from timm.models import save_for_hf
from torch import Tensor, nn

import vitprune
from vitprune import (
    UserError,
    api,  # library now: what its imports cache is not the verbs' doing
)
from vitprune.criteria.catalog import CRITERIA
from vitprune.criteria.scores import Scores
from vitprune.model.load import opening, saving

LABELS = torch.tensor([0, 2, 4, 2, 0, 1, 4])


@pytest.fixture(autouse=True, name="empty")
def in_an_empty_folder(tmp_path_factory, monkeypatch) -> Path:
    """An empty working directory, empty home and temp folders; a verb that writes anywhere near is caught."""
    root = tmp_path_factory.mktemp("root")
    for name in ("cwd", "home", "tmp"):
        (root / name).mkdir()
    monkeypatch.chdir(root / "cwd")
    monkeypatch.setenv("HOME", str(root / "home"))
    monkeypatch.setenv("TMPDIR", str(root / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    return root


def written(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def trained(model: nn.Module) -> nn.Module:
    """A model in the middle of training: mixed modes, mixed flags, dropout that would show."""
    model.train()
    model.blocks[1].eval()
    model.pos_drop.p = 0.5
    for i, weight in enumerate(model.parameters()):
        weight.requires_grad_(i % 2 == 0)
    return model


def scores_of(model: nn.Module, images: Tensor, **options) -> Scores:
    return vitprune.discover(
        model, images, LABELS[: len(images)], **({"criterion": "jas", "t": 4, "nodes": 3} | options)
    )


# --- discover


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_discover_counts_the_replicas_paths(tiny_vit, make_images, batch, empty):
    """Scores, paths, frequencies and ties, end to end, from the hand-written forward."""
    model, images = tiny_vit(init_values=0.2), make_images(7)
    tables, routes = reference.jas(model, images, LABELS.tolist(), 4, 3)
    found = vitprune.discover(model, images, LABELS, criterion="jas", t=4, quadrature="right", nodes=3, batch=batch)
    assert (found.criterion, found.classes, found.images) == ("jas", 5, 7)
    for i, expected in enumerate(reference.frequencies(routes, LABELS.tolist(), [32] * 3, 5)):
        np.testing.assert_allclose(found.rows[i].numpy(), expected, atol=1e-6)
        assert found.ties is not None
        for c in range(5):
            own = tables[i][c == LABELS.numpy()]
            mean = own.mean(0) if len(own) else np.zeros(32)
            np.testing.assert_allclose(list(found.ties.values())[i][c].numpy(), mean, rtol=1e-4, atol=1e-6)
    assert found.paths is not None
    assert found.paths.units.tolist() == routes
    assert found.paths.label.tolist() == LABELS.tolist()
    assert found.paths.image.tolist() == list(range(7))
    assert written(empty) == []


@pytest.mark.parametrize("criterion", [*sorted(CRITERIA), "random"])
def test_every_criterion_by_name(tiny_vit, make_images, criterion, empty):
    model = trained(tiny_vit(dtype=torch.float32))
    images = make_images(7, dtype=torch.float32)
    before = reference.snapshot(model)
    found = scores_of(model, images, criterion=criterion, seed=3)
    assert reference.same_state(before, reference.snapshot(model))
    assert found.criterion == criterion
    assert [block.shape[1] for block in found.rows] == [32] * 3
    quiet = copy.deepcopy(model).eval()
    again = scores_of(quiet, images, criterion=criterion, seed=3)
    assert all(map(torch.equal, found.rows, again.rows))  # the dropout above played no part
    assert written(empty) == []


def test_random_follows_its_seed(tiny_vit, make_images):
    model, images = tiny_vit(), make_images(3)
    one, two = (scores_of(model, images, criterion="random", seed=seed).rows[0] for seed in (0, 1))
    assert not torch.equal(one, two)


def test_discover_refuses(tiny_vit, make_images):
    model, images = tiny_vit(), make_images(3)
    for labels in ([0, 1, 5], [0, -1, 1], [0, 1], []):
        with pytest.raises(UserError, match="labels"):
            vitprune.discover(model, images, torch.tensor(labels, dtype=torch.int64), criterion="jas", t=2, nodes=2)
    with pytest.raises(UserError, match="jaz"):
        scores_of(model, images, criterion="jaz")
    for t in (0, 33):
        with pytest.raises(UserError, match="t: "):
            scores_of(model, images, t=t)
    with pytest.raises(UserError, match="class token"):
        scores_of(tiny_vit(global_pool="avg"), images)
    with pytest.raises(UserError):
        scores_of(nn.Linear(3, 3), images)


# --- prune


@pytest.mark.parametrize("classes", [None, [2, 4]])
@pytest.mark.parametrize("keep", ["7 units", 1, "50%", 0.5, 1.0])
def test_prune_removes_what_the_scores_say(tiny_vit, make_images, keep, classes, empty):
    model, images = tiny_vit(init_values=0.2), make_images(7)
    found = scores_of(model, images)
    width = {"7 units": 7, "50%": 16, "0.5": 16, "1.0": 32, "1": 1}[str(keep)]
    before = reference.snapshot(model)
    slim = vitprune.prune(model, found, keep=keep, recovery="none", classes=classes)
    assert reference.same_state(before, reference.snapshot(model))
    rows = classes or range(5)
    masks = []
    for block, ties in zip(found.rows, found.ties.values(), strict=True):
        score = sum(block[c].double() for c in rows) / len(rows)
        tie = sum(ties[c].double() for c in rows) / len(rows)
        masks.append(torch.tensor(reference.best(score.tolist(), tie.tolist(), width)))
    expected = reference.Vit(model).logits(images, reference.masking(masks))
    assert float((slim(images) - expected).abs().max()) < 1e-10 * float(expected.abs().max())
    assert [block.mlp.fc1.out_features for block in slim.blocks] == [width] * 3
    assert not slim.training
    assert written(empty) == []


@pytest.mark.parametrize("recovery", ["mean", "affine"])
def test_prune_repairs(tiny_vit, make_images, recovery, empty):
    """On top of `none` the fc2s are refitted from the images; a batch, an iterator and a tensor tell it the same."""
    model, images = trained(tiny_vit()), make_images(9)
    found = scores_of(model, images[:7])
    before = reference.snapshot(model)
    bare = vitprune.prune(model, found, keep="20 units", recovery="none")
    fixed = vitprune.prune(model, found, keep="20 units", recovery=recovery, images=images)
    for given in (
        {"images": images, "batch": 2},
        {"images": iter(images.split(4))},
        {"images": [images[:1], images[1:]]},
    ):
        again = vitprune.prune(model, found, keep="20 units", recovery=recovery, **given)
        for a, b in zip(fixed.state_dict().values(), again.state_dict().values(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)
    assert reference.same_state(before, reference.snapshot(model))
    for i, units in enumerate(reference.stacked(model, images)):
        wide, thin, plain = model.blocks[i].mlp, fixed.blocks[i].mlp, bare.blocks[i].mlp
        kept = [int(torch.where((wide.fc1.weight == row).all(1))[0]) for row in plain.fc1.weight]
        gap = units @ wide.fc2.weight.detach().numpy().T - units[:, kept] @ thin.fc2.weight.detach().numpy().T
        gap += wide.fc2.bias.detach().numpy() - thin.fc2.bias.detach().numpy()
        assert np.abs(gap.mean(0)).max() < 1e-9  # the mean of what was lost is back, exactly
        assert torch.equal(thin.fc2.weight, plain.fc2.weight) == (recovery == "mean")
    assert written(empty) == []


def test_the_default_is_the_recipes_and_needs_images(tiny_vit, make_images):
    model, images = tiny_vit(), make_images(7)
    found = vitprune.discover(model, images, LABELS)
    assert (found.criterion, [block.shape for block in found.rows]) == ("fisher-obs", [(1, 32)] * 3)
    default = vitprune.prune(model, found, keep="9 units", images=images)
    asked = vitprune.prune(model, found, keep="9 units", images=images, recovery="layerwise", allocation="global")
    assert all(map(torch.equal, default.state_dict().values(), asked.state_dict().values()))
    found = scores_of(model, images)
    for recovery in ("mean", "affine", "auto"):
        with pytest.raises(UserError, match="images"):
            vitprune.prune(model, found, keep="9 units", recovery=recovery)
    for keep in (0, 9, 33, "33 units", 1.5, True, "9", None):
        with pytest.raises(UserError, match="keep"):
            vitprune.prune(model, found, keep=keep, images=images)
    assert [
        b.mlp.fc2.in_features for b in vitprune.prune(model, found, keep="21 units", images=images, round_to=8).blocks
    ] == [16] * 3


# --- evaluate


@pytest.mark.parametrize("head", [None, [0, 2, 4, 1]])
def test_evaluate_is_a_loop(tiny_vit, make_images, head, empty):
    model, images = trained(tiny_vit()), make_images(7)
    before = reference.snapshot(model)
    results = [vitprune.evaluate(model, images, LABELS, head=head, batch=batch) for batch in (2, 64)]
    assert reference.same_state(before, reference.snapshot(model))
    logits = reference.Vit(model).logits(images).tolist()
    allowed = sorted(head or range(5))
    right = [max(allowed, key=lambda c, row=row: row[c]) == y for row, y in zip(logits, LABELS.tolist(), strict=True)]
    true = [
        reference.softmax([row[c] for c in allowed])[allowed.index(y)]
        for row, y in zip(logits, LABELS.tolist(), strict=True)
    ]
    for found in results:
        assert found.n == 7 and found.top1 == pytest.approx(sum(right) / 7)
        assert found.mean_true_probability == pytest.approx(sum(true) / 7, rel=1e-5)
        assert found.top1_ci95[0] <= found.top1 <= found.top1_ci95[1]
        assert math.isnan(found.per_class[3]) and not math.isnan(found.per_class[4])
    assert written(empty) == []


def test_flags_come_back_when_a_verb_raises(tiny_vit, make_images):
    model, images = trained(tiny_vit()), make_images(7)
    found = scores_of(model, images)

    class Broken(nn.Module):
        def forward(self, *_: Tensor) -> Tensor:
            raise RuntimeError("broken on purpose")

    model.norm = Broken()
    before = reference.snapshot(model)
    calls = [
        lambda: scores_of(model, images),
        lambda: scores_of(model, images, criterion="activation"),
        lambda: vitprune.prune(model, found, keep="5 units", recovery="affine", images=images),
        lambda: vitprune.evaluate(model, images, LABELS),
    ]
    for call in calls:
        with pytest.raises(RuntimeError, match="on purpose"):
            call()
        assert reference.same_state(before, reference.snapshot(model))


MISTAKES = {
    "prune recovery": lambda m, x, s: vitprune.prune(m, s, keep="5 units", images=x, recovery="afine"),
    "prune class too large": lambda m, x, s: vitprune.prune(m, s, keep="5 units", images=x, classes=[5]),
    "prune class negative": lambda m, x, s: vitprune.prune(m, s, keep="5 units", images=x, classes=[-1]),
    "prune no images": lambda m, x, s: vitprune.prune(m, s, keep="5 units", images=x[:0]),
    "prune scores not a number": lambda m, x, s: vitprune.prune(
        m, made_scores("s", [torch.full((5, 32), math.nan)] * 3), keep="5 units", images=x
    ),
    "discover nodes": lambda m, x, s: vitprune.discover(m, x, LABELS, t=3, nodes=0),
    "discover float labels": lambda m, x, s: vitprune.discover(m, x, LABELS.float(), t=3, nodes=2),
    "evaluate label too large": lambda m, x, s: vitprune.evaluate(m, x, LABELS + 1),
    "evaluate label negative": lambda m, x, s: vitprune.evaluate(m, x, LABELS - 1),
    "evaluate lengths": lambda m, x, s: vitprune.evaluate(m, x, LABELS[:3]),
    "evaluate head too large": lambda m, x, s: vitprune.evaluate(m, x, LABELS, head=[0, 5]),
    "evaluate head negative": lambda m, x, s: vitprune.evaluate(m, x, LABELS, head=[0, -1]),
    "evaluate head empty": lambda m, x, s: vitprune.evaluate(m, x, LABELS, head=[]),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_named(tiny_vit, make_images, name):
    model, images = tiny_vit(), make_images(7)
    with pytest.raises(UserError):
        MISTAKES[name](model, images, scores_of(model, images))


# --- export and load


def test_export_writes_one_file_that_computes_the_same(tiny_vit, make_images, empty):
    model, images = tiny_vit(dtype=torch.float32, depth=2, init_values=0.2), make_images(7, dtype=torch.float32)
    slim = trained(vitprune.prune(model, scores_of(model, images), keep="9 units", images=images))
    slim.pos_drop.p = 0.5
    before = reference.snapshot(slim)
    path = vitprune.export(slim, "slim.onnx", {"note": "hello", "list": [1, 2]})
    assert reference.same_state(before, reference.snapshot(slim))
    assert written(empty) == ["cwd/slim.onnx"]
    assert Path(path).resolve() == (empty / "cwd" / "slim.onnx").resolve()
    session = onnxruntime.InferenceSession("slim.onnx", providers=["CPUExecutionProvider"])
    expected = reference.Vit(slim).logits(images).numpy()
    for batch in (1, 3, 7):
        (logits,) = session.run(None, {session.get_inputs()[0].name: images[:batch].numpy()})
        np.testing.assert_allclose(logits, expected[:batch], atol=2e-4)
    assert session.get_modelmeta().custom_metadata_map["note"] == "hello"
    assert written(empty) == ["cwd/slim.onnx"]


def timm_folder(folder: Path, model: nn.Module) -> None:
    """What timm itself writes for the hub: config.json and model.safetensors."""
    args = {
        "img_size": 28,
        "patch_size": 7,
        "in_chans": 1,
        "embed_dim": 16,
        "depth": 2,
        "num_heads": 2,
        "mlp_ratio": 2.0,
    }
    save_for_hf(model, str(folder), model_config={"model_args": args}, safe_serialization=True)
    (folder / "pytorch_model.bin").unlink(missing_ok=True)


def test_load_reads_a_timm_folder(tiny_vit, make_images, empty):
    folder = empty / "home" / "model"
    folder.mkdir()
    model, images = tiny_vit(dtype=torch.float32, depth=2), make_images(2, dtype=torch.float32)
    timm_folder(folder, model)
    before = written(empty)
    loaded = vitprune.load(folder)
    assert torch.equal(loaded(images), model(images))
    assert not loaded.training and not any(weight.requires_grad for weight in loaded.parameters())
    assert written(empty) == before
    assert vitprune.load(str(folder)) is not loaded


def test_load_reads_a_pruned_folder(tiny_vit, make_images, empty):
    """Ragged widths come back from what `checkpoint.save` wrote."""
    source, folder = empty / "home" / "dense", empty / "home" / "slim"
    source.mkdir()
    model, images = tiny_vit(dtype=torch.float32, depth=2), make_images(2, dtype=torch.float32)
    timm_folder(source, model)
    opened = opening.open_model(vitprune.Recipe.model_fields["model"].annotation(name=f"local-dir:{source}"))
    generator = torch.Generator().manual_seed(0)
    found = made_scores("s", [torch.rand(1, 32, generator=generator) for _ in range(2)])
    slim = vitprune.prune(opened.model, found, keep="9 units", recovery="none")
    slim.blocks[1] = vitprune.prune(opened.model, found, keep="21 units", recovery="none").blocks[1]
    saving.save(folder, opened, slim, {})
    back = vitprune.load(folder)
    assert [block.mlp.fc1.out_features for block in back.blocks] == [9, 21]
    assert torch.equal(back(images), slim(images))
    with pytest.raises(UserError):
        vitprune.load(empty / "nothing")


def test_the_public_names():
    assert vitprune.discover is api.discover
    for name in vitprune.__all__:
        assert getattr(vitprune, name) is not None
        assert name in dir(vitprune)
    with pytest.raises(AttributeError):
        vitprune.no_such_name  # noqa: B018
