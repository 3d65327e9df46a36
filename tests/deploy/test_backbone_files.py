"""ONNX files of a backbone: two outputs, held by the cosine; features of image files in a table."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from small import picture
from torch import nn
from typer.testing import CliRunner

from vitprune.cli.app import app
from vitprune.core.errors import UserError
from vitprune.deploy import predict, runtime
from vitprune.deploy.onnx import exporting, feature_checks, outputs
from vitprune.deploy.onnx.precision import to_fp16, to_int8
from vitprune.model.inside import backbone

CONFIG = {"input_size": [3, 28, 28], "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "crop_pct": 1.0,
          "crop_mode": "center"}  # fmt: skip
SIZES = {"embed_dim": 16, "depth": 1, "num_heads": 2, "num_classes": 0}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "class token": ("vit_small_patch14_reg4_dinov2", {"img_size": 28}),
    "attention pool": ("vit_base_patch16_siglip_224", {"img_size": 32}),
}


def made(kind: str = "class token") -> nn.Module:
    name, sizes = KINDS[kind]
    torch.manual_seed(0)
    model = timm.create_model(name, **SIZES, **sizes).eval().requires_grad_(False)
    for weight in model.parameters():
        nn.init.normal_(weight, std=0.2)
    return model


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    exporting.export(made(), path, {"features": "tokens", "preprocessing": CONFIG})
    return path


@pytest.mark.sample(1)
@pytest.mark.parametrize("kind", KINDS)
def test_both_outputs_are_torchs_at_every_batch(tmp_path: Path, kind: str) -> None:
    model, path = made(kind), tmp_path / "m.onnx"
    exporting.export(model, path, {})
    images = torch.randn(7, 3, *model.patch_embed.img_size)  # type: ignore[union-attr]
    assert max(exporting.parity(model, path, images).values()) < 1e-5
    session = runtime.session(path)
    assert [one.name for one in session.get_outputs()] == ["features", "tokens"]
    for batch in (1, 2, 7):
        found = backbone.of(model).features(images[:batch])  # type: ignore[union-attr]
        pooled, tokens = runtime.outputs(session, images[:batch].numpy())
        np.testing.assert_allclose(pooled, found.pooled.numpy(), atol=1e-4)
        np.testing.assert_allclose(tokens, found.tokens.numpy(), atol=1e-4)
        np.testing.assert_array_equal(runtime.predict(session, images[:batch].numpy()), pooled)


def test_parity_sees_a_wrong_output(file: Path) -> None:
    """Each of the two, over the largest number."""
    model, images = made(), torch.randn(7, 3, 28, 28)
    good = max(exporting.parity(model, file, images).values())
    model.norm.bias += 0.5  # type: ignore[operator, union-attr]
    assert max(exporting.parity(model, file, images).values()) > 0.01 > 1e-4 > good


def test_the_pooled_vector_alone() -> None:
    model = made()
    assert outputs.names_of(model) == ["features", "tokens"]
    backbone.read(model, "pooled")
    assert outputs.names_of(model) == ["features"]
    images = torch.randn(2, 3, 28, 28)
    assert [x.shape for x in outputs.told(model)(images)] == [(2, 16)]
    classifier = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1)
    assert outputs.names_of(classifier) == ["logits"] and outputs.told(classifier) is classifier


def test_predict_writes_the_features_of_images(tmp_path: Path, file: Path) -> None:
    """As an .npz or a .csv, the same numbers; without --out, or over a file that is there, one line."""
    for i in range(3):
        picture(i % 2, i).save(tmp_path / f"{i}.png")
    for name in ("f.npz", "f.csv"):
        done = CliRunner().invoke(
            app, ["predict", str(file), str(tmp_path), "--out", str(tmp_path / name), "--batch", "2"]
        )
        assert done.exit_code == 0 and "3 images, 16 numbers each" in done.output, done.output
    held = np.load(tmp_path / "f.npz", allow_pickle=False)
    rows = list(csv.reader((tmp_path / "f.csv").open()))
    assert [Path(path).name for path in held["paths"]] == ["0.png", "1.png", "2.png"]
    assert [row[0] for row in rows[1:]] == list(held["paths"]) and rows[0] == ["path", *map(str, range(16))]
    np.testing.assert_array_equal(np.array([row[1:] for row in rows[1:]], np.float32), held["features"])
    pixels = predict.pixels(predict.opened(file)[2], [tmp_path / "0.png"])
    expected = made()(torch.from_numpy(pixels)).numpy()
    np.testing.assert_allclose(held["features"][:1], expected, atol=1e-4)
    with pytest.raises(
        UserError, match=r"is a backbone's, which gives features: `vitprune predict` with `--out FILE\.npz`"
    ):
        predict.open_model(file)


@pytest.mark.parametrize(
    ("out", "says"), [("f.txt", "written as .npz or .csv"), ("there.csv", "is there already"), ("no/such/f.csv", "")]
)
def test_tables_that_are_not_written(tmp_path: Path, file: Path, out: str, says: str) -> None:
    from vitprune.deploy import embed

    (tmp_path / "there.csv").write_text("mine")
    picture(0, 0).save(tmp_path / "0.png")
    if says:
        with pytest.raises(UserError, match=says):
            embed.write(file, [tmp_path / "0.png"], tmp_path / out, 2)
    else:
        assert embed.write(file, [tmp_path / "0.png"], tmp_path / out, 2) == (1, 16)
    assert (tmp_path / "there.csv").read_text() == "mine"


def test_cosines_are_what_they_are_called() -> None:
    """Against a slow replica in float64, of vectors and of an image's tokens."""
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(4, 3, 5)).astype(np.float32), draw.normal(size=(4, 3, 5)).astype(np.float32)
    found = feature_checks.compare(x, y)
    for n in range(4):
        every = [
            sum(float(a) * float(b) for a, b in zip(u, v, strict=True))
            / (sum(float(a) ** 2 for a in u) * sum(float(b) ** 2 for b in v)) ** 0.5
            for u, v in zip(x[n], y[n], strict=True)
        ]
        assert found["cosine"][n] == pytest.approx(sum(every) / 3, abs=1e-12)
        assert found["gap"][n] == pytest.approx(
            max(abs(float(a) - float(b)) for a, b in zip(x[n].flat, y[n].flat, strict=True))
        )
    told = feature_checks.summary({"features.cosine": np.array([1.0, 0.9]), "features.gap": np.array([0.0, 0.5])})
    assert told == {"n": 2, "cosine": 0.95, "least_cosine": 0.9, "tokens_cosine": None, "max_abs_diff": 0.5}


@pytest.mark.parametrize(
    ("precision", "cosine", "least", "batches", "held"),
    [
        ("fp16", 1 - 5e-5, 0.995, 0.0, True),
        ("fp16", 1 - 2e-4, 0.995, 0.0, False),
        ("fp16", 1 - 5e-5, 0.98, 0.0, False),
        ("int8", 0.976, 0.5, 0.0, True),
        ("int8", 0.974, 0.5, 0.0, False),
        ("int8", 0.99, 0.9, 0.03, False),
    ],
)
def test_the_limits_of_a_precision(precision: str, cosine: float, least: float, batches: float, held: bool) -> None:
    seen = {"n": 10, "cosine": cosine, "least_cosine": least, "tokens_cosine": None, "max_abs_diff": 0.1}
    made_of = feature_checks.checks(precision, "m.onnx", seen, batches, 0.5)
    assert all(one["value"] <= one["limit"] for one in made_of) == held
    assert all("m.onnx" in one["detail"] for one in made_of)


@pytest.mark.slow
def test_both_precisions_are_made_and_judged_by_the_cosine(tmp_path: Path, file: Path) -> None:
    draw = np.random.default_rng(0)
    batches = [draw.normal(size=(8, 3, 28, 28)).astype(np.float32) for _ in range(2)]
    to_fp16(file, tmp_path / "half.onnx")
    sweep = to_int8(file, tmp_path / "int8.onnx", batches[:1], batches[1:], None, 5.0)
    assert sweep.measure == "cosine" and sweep.top1_fp32 == pytest.approx(1) and sweep.images == 8
    assert "probe cosine" in sweep.why and sweep.as_json()["measure"] == "cosine"
    expected = runtime.predict(runtime.session(file), batches[1])
    for path, least in ((tmp_path / "half.onnx", 0.999), (tmp_path / "int8.onnx", 0.95)):
        session = runtime.session(path)
        assert [one.name for one in session.get_outputs()] == ["features", "tokens"]
        assert feature_checks.cosines(expected, runtime.predict(session, batches[1])).mean() >= least
        assert json.loads(exporting.metadata(path)["preprocessing"]) == CONFIG
