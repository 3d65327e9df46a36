"""`vitprune predict`: timm's pipeline and torch give the same logits; the command itself needs neither."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image, ImageOps
from small import LABELS, config, image_folder, model_folder, picture, quicken, recipe_dict, tiny_model
from timm.data import create_transform
from torch import nn

import vitprune
from vitprune.cli import app
from vitprune.core.errors import UserError
from vitprune.deploy import predict
from vitprune.deploy.onnx import exporting
from vitprune.recipe import recipe

STYLES = [
    {"interpolation": "bilinear", "crop_pct": 0.875, "crop_mode": "center"},
    {"interpolation": "bicubic", "crop_pct": 0.9, "crop_mode": "center"},
    {"interpolation": "bicubic", "crop_pct": 1.0, "crop_mode": "squash"},
    {"interpolation": "bilinear", "crop_pct": 0.95, "crop_mode": "border"},
]
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        quicken(patch)
        yield


@pytest.fixture(scope="module")
def specialist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole run for two of three classes, in colour."""
    base = tmp_path_factory.mktemp("specialist")
    content = recipe_dict(model_folder(base / "model", 3), image_folder(base / "images", 20, "RGB"), base / "out")
    content |= {"classes": ["cross", "circle"], "baselines": [], "export": {"onnx": True, "latency_batches": [1]}}
    vitprune.run(recipe.Recipe.model_validate(content))
    return base / "out" / "tiny"


@pytest.fixture(scope="module")
def generalists(tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[nn.Module, Path]]:
    """By channels: a model and its ONNX file."""
    base, made = tmp_path_factory.mktemp("generalists"), {}
    for channels in (1, 3):
        model, path = tiny_model(channels), base / f"{channels}.onnx"
        exporting.export(model, path, {"labels": list(LABELS), "preprocessing": preprocessing(channels)})
        made[channels] = (model, path)
    return made


def preprocessing(channels: int, **changed: Any) -> dict[str, Any]:
    cfg = config(channels)["pretrained_cfg"]
    known = ("input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std")
    return {key: cfg[key] for key in known} | changed


def restyled(path: Path, target: Path, **entries: Any) -> Path:
    """A copy of an ONNX file with other metadata; None removes an entry."""
    proto = onnx.load(str(path))
    known = {e.key: e.value for e in proto.metadata_props} | {k: json.dumps(v) for k, v in entries.items()}
    del proto.metadata_props[:]
    onnx.helper.set_model_props(proto, {k: v for k, v in known.items() if v != "null"})
    onnx.save(proto, str(target))
    return target


def zoo(folder: Path) -> dict[str, Path]:
    """One file of every kind, of odd sizes."""
    folder.mkdir(exist_ok=True)
    generator = np.random.default_rng(0)

    def noise(*shape: int) -> np.ndarray:
        return generator.integers(0, 256, shape).astype(np.uint8)

    exif = Image.Exif()
    exif[0x0112] = 6
    colour = Image.fromarray(noise(41, 67, 3))
    colour.save(folder / "rgb.png")
    Image.fromarray(noise(29, 53)).save(folder / "grey.png")
    colour.quantize(32).save(folder / "palette.png")
    Image.fromarray(noise(37, 31, 4)).save(folder / "rgba.png")
    Image.fromarray(generator.integers(0, 1 << 16, (33, 47)).astype(np.uint16)).save(folder / "deep.png")
    colour.save(folder / "turned.jpg", exif=exif)
    Image.fromarray(noise(57, 35, 4), "CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(noise(19, 101, 3)).save(folder / "small.webp", lossless=True)
    return {p.stem: p for p in sorted(folder.iterdir())}


def expected(model: nn.Module, path: Path, channels: int, settings: dict[str, Any]) -> np.ndarray:
    """timm's own way from file to logits, with the decoder's rules written out once more."""
    image = ImageOps.exif_transpose(Image.open(path))
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image, np.uint32) // 256).astype(np.uint8))
    image = image.convert("RGB").convert("L" if channels == 1 else "RGB")
    made = create_transform(**settings, is_training=False)
    with torch.no_grad():
        return model(made(image)[None])[0].numpy()


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Call:
    def run(*args: Any) -> tuple[int, str, str]:
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", ["vitprune", "predict", *map(str, args)])
        with pytest.raises(SystemExit) as caught:
            app.main()
        return int(caught.value.code or 0), *capfd.readouterr()

    return run


# ---- the same logits as timm and torch


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("style", STYLES, ids=lambda s: "-".join(map(str, s.values())))
def test_the_logits_are_those_of_timm_and_torch(
    generalists: dict[int, tuple[nn.Module, Path]], tmp_path: Path, channels: int, style: dict[str, Any], call: Call
) -> None:
    model, path = generalists[channels]
    settings = preprocessing(channels, **style)
    path = restyled(path, tmp_path / "model.onnx", preprocessing=settings)
    files = zoo(tmp_path / "zoo")
    code, out, _ = call(path, tmp_path / "zoo", "--json", "--top", 3, "--batch", 3)
    answers = {Path(a["image"]).stem: a for a in json.loads(out)["images"]}
    assert code == 0 and answers.keys() == files.keys() and len(files) == 8
    for name, file in files.items():
        wanted = expected(model, file, channels, settings)
        got = {entry["output"]: entry for entry in answers[name]["top"]}
        np.testing.assert_allclose([got[i]["logit"] for i in range(3)], wanted, atol=1e-3, err_msg=name)
        shares = torch.from_numpy(wanted).double().softmax(0).numpy()
        np.testing.assert_allclose([got[i]["probability"] for i in range(3)], shares, atol=1e-3)
        assert answers[name]["top"][0]["label"] == LABELS[wanted.argmax()]
        assert [e["probability"] for e in answers[name]["top"]] == sorted(shares_of(answers[name]), reverse=True)
        assert answers[name]["known"] and answers[name]["score"] is None


def shares_of(answer: dict[str, Any]) -> list[float]:
    return [entry["probability"] for entry in answer["top"]]


# ---- without torch


@pytest.mark.parametrize("entry", ["vitprune", "vitprune.cli.app"])
def test_the_command_imports_neither_torch_nor_timm(specialist: Path, tmp_path: Path, entry: str) -> None:
    """Where importing them fails, and by what is loaded when it ends."""
    for name in ("torch", "timm", "torchvision", "torch_pruning", "onnx"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('not here')\n")
    script = f"""
import runpy, sys
try:
    runpy.run_module({entry!r}, run_name="__main__", alter_sys=True)
finally:
    heavy = ("torch", "timm", "torchvision", "onnx", "scipy", "vitprune.api", "vitprune.model.load.opening")
    found = [name for name in heavy if name in sys.modules]
    print(found or "light", file=sys.stderr)
"""
    picture(1, 1, "RGB").save(tmp_path / "a.png")
    here = str(Path(vitprune.__file__).parent.parent)
    env = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{here}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script, "predict", specialist / "model.onnx", tmp_path / "a.png", "--json"]
    got = subprocess.run(command, capture_output=True, text=True, timeout=120, env=env, cwd=tmp_path)
    assert got.returncode == 0 and got.stderr == "light\n", got.stderr
    assert len(json.loads(got.stdout)["images"]) == 1


def test_the_module_itself_as_a_command(specialist: Path, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('not here')\n")
    picture(1, 1, "RGB").save(tmp_path / "a.png")
    here = str(Path(vitprune.__file__).parent.parent)
    env = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{here}"}
    command = [sys.executable, "-m", "vitprune", "predict", specialist, tmp_path / "a.png"]
    got = subprocess.run(command, capture_output=True, text=True, timeout=120, env=env, cwd=tmp_path)
    assert got.returncode == 0 and got.stdout.startswith(f"{tmp_path / 'a.png'}: ") and got.stderr == ""


# ---- a specialist's threshold


def test_the_threshold_keeps_95_percent() -> None:
    generator = np.random.default_rng(0)
    for count in (1, 5, 19, 20, 21, 100, 1000):
        logits = generator.standard_normal((count, 6)).astype(np.float32) * 3
        made = predict.calibrate(logits, [1, 4])
        odds = np.exp(logits.astype(np.float64))
        scores = np.maximum(odds[:, 1], odds[:, 4]) / odds.sum(1)
        kept = (scores >= made["threshold"] * (1 - 1e-12)).sum()
        assert kept >= 0.95 * count and kept - 1 < 0.95 * count
        assert made["outputs"] == [1, 4] and made["images"] == count and made["true_positive_rate"] == 0.95


def test_a_specialists_file_carries_the_threshold_of_its_probe_images(specialist: Path) -> None:
    found = json.loads(exporting.metadata(specialist / "model.onnx")["open_set"])
    split = json.loads((specialist / "split.json").read_text())
    own = [name for name in split["probe"] if name.split("/")[0] in ("cross", "circle")]
    assert found["images"] == len(own) == 32 and found["score"] == "max-softmax"
    assert sorted(LABELS[i] for i in found["outputs"]) == ["circle", "cross"]
    slim, images = vitprune.load(specialist), specialist.parent.parent / "images"
    settings = preprocessing(3)
    logits = np.stack([expected(slim, images / name, 3, settings) for name in own]).astype(np.float64)
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    scores = np.sort(shares[:, found["outputs"]].max(1))
    assert found["threshold"] == pytest.approx(scores[1], abs=1e-5)  # 31 of 32 lie at it or above
    result = json.loads((specialist / "report.json").read_text())["result"]
    assert result["open_set"] == found


def test_a_generalist_has_no_threshold(generalists: dict[int, tuple[nn.Module, Path]]) -> None:
    assert predict.open_model(generalists[1][1]).outputs is None


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_none_of_its_classes(specialist: Path, tmp_path: Path, call: Call, threshold: float) -> None:
    path = specialist / "model.onnx"
    about = json.loads(exporting.metadata(path)["open_set"])
    path = restyled(path, tmp_path / "m.onnx", open_set=about | {"threshold": threshold})
    picture(1, 1, "RGB").save(tmp_path / "a.png")
    code, out, _ = call(path, tmp_path / "a.png", "--json", "--top", 9)
    made = json.loads(out)
    answer = made["images"][0]
    assert code == 0 and answer["known"] == (threshold == 0) and made["threshold"] == threshold
    assert sorted(made["classes"]) == sorted(e["label"] for e in answer["top"]) == ["circle", "cross"]
    assert answer["score"] == answer["top"][0]["probability"] and sum(shares_of(answer)) < 1
    _, out, _ = call(path, tmp_path / "a.png")
    assert ("not one of my classes" in out) == (threshold == 1)


# ---- which images, which model


def test_files_folders_and_globs(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "deep/er/c.webp", "notes.txt", "[1].png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")

    def names(*arguments: str) -> list[str]:
        return [p.relative_to(tmp_path).as_posix() for p in predict.find_images([f"{tmp_path}/{a}" for a in arguments])]

    assert names("") == ["[1].png", "a.JPG", "b.png", "deep/er/c.webp"]
    assert names("*") == ["[1].png", "a.JPG", "b.png"] and names("**/*.webp") == ["deep/er/c.webp"]
    assert names("notes.txt", "[1].png", "b.png") == ["notes.txt", "[1].png", "b.png"]
    for nothing in ("*.gif", "deep/er/*.png"):
        with pytest.raises(UserError, match="holds no images"):
            names(nothing)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: holds no images"):
        names("empty")


def refused(call: Call, *args: Any) -> str:
    code, out, err = call(*args)
    assert code == 2 and out == "" and len(err.splitlines()) == 1 and err.startswith("vitprune: "), err
    return err


def test_an_image_that_cannot_be_read(specialist: Path, tmp_path: Path, call: Call) -> None:
    picture(1, 1, "RGB").save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:300])
    for more in ((), ("--json",)):
        assert "b.png: not a readable image" in refused(call, specialist, tmp_path, *more)
    assert "none.png" in refused(call, specialist, tmp_path / "none.png")


def test_a_model_that_is_none(specialist: Path, tmp_path: Path, call: Call) -> None:
    picture(1, 1, "RGB").save(tmp_path / "a.png")
    assert "no such ONNX file" in refused(call, tmp_path / "none.onnx", tmp_path / "a.png")
    (tmp_path / "exported" / "shoes").mkdir(parents=True)
    (tmp_path / "exported" / "shoes" / "model.onnx").write_bytes(b"no model")
    assert "its groups are shoes" in refused(call, tmp_path / "exported", tmp_path / "a.png")
    assert "cannot open it" in refused(call, tmp_path / "exported" / "shoes", tmp_path / "a.png")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"preprocessing": None}, "has no `preprocessing`"),
        ({"preprocessing": [3]}, "has no `preprocessing`"),
        ({"preprocessing": preprocessing(3, crop_mode="best")}, "crop_mode"),
        ({"preprocessing": preprocessing(3, input_size=[3, 28, 32])}, "export it again"),
        ({"labels": ["a"]}, "3 outputs"),
        ({"labels": "abc"}, "3 outputs"),
        ({"open_set": {"outputs": [7], "threshold": 0.5}}, "open_set"),
        ({"open_set": {"outputs": [], "threshold": 0.5}}, "open_set"),
        ({"open_set": {"outputs": [1], "threshold": "x"}}, "open_set"),
        ({"open_set": 3}, "open_set"),
    ],
    ids=str,
)
def test_metadata_that_cannot_be_used(
    specialist: Path, tmp_path: Path, call: Call, changed: dict[str, Any], said: str
) -> None:
    picture(1, 1, "RGB").save(tmp_path / "a.png")
    path = restyled(specialist / "model.onnx", tmp_path / "m.onnx", **changed)
    assert said in refused(call, path, tmp_path / "a.png")


def test_names_cannot_break_the_line(specialist: Path, tmp_path: Path, call: Call) -> None:
    path = restyled(specialist / "model.onnx", tmp_path / "m.onnx", labels=["a\nb", "c\x1b[31m", "d"])
    picture(1, 1, "RGB").save(tmp_path / "a\nb.png")
    _, out, _ = call(path, tmp_path / "a\nb.png")
    assert len(out.splitlines()) == 1 and "\x1b" not in out
