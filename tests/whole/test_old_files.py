"""Files of an older version are still read: a model, its masks and report, a finished run (tests/old/README.md)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from small import FOLDERS, LABELS, leftovers
from typer.testing import CliRunner

import vitprune
from vitprune.cli.app import app
from vitprune.deploy import predict
from vitprune.model import families
from vitprune.recipe import parse
from vitprune.runs import pipeline

pytestmark = pytest.mark.usefixtures("quick")
OLD = Path(__file__).parents[1] / "old"


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the old run's folder, in the folder that its recipe speaks of."""
    shutil.copytree(OLD, tmp_path / "old")
    monkeypatch.chdir(tmp_path / "old")
    return tmp_path / "old" / "run" / "old"


def command(*args: object) -> str:
    got = CliRunner().invoke(app, [str(arg) for arg in args])
    assert got.exit_code == 0, got.output
    return got.output


def widths(model: torch.nn.Module) -> list[int]:
    return [site.size for site in families.ffn_sites(model)]


def recipe(**changed: Any) -> Any:
    return parse.load("recipe.yaml").model_copy(update=changed)


def test_it_is_an_old_folder() -> None:
    """By position, and without a list of its files: otherwise nothing is shown here."""
    content = json.loads((OLD / "run" / "old" / "config.json").read_text())
    assert content["vitprune"]["widths"] == [32, 32]
    assert set(load_file(OLD / "run" / "old" / "masks.safetensors")) == {"keep.0", "keep.1"}
    assert not list(OLD.rglob(".vitprune"))
    assert sum(path.stat().st_size for path in OLD.rglob("*") if path.is_file()) < 300_000


def test_an_old_model_is_loaded_with_its_widths_and_weights(old: Path) -> None:
    model = vitprune.load(old)
    assert widths(model) == [32, 32]
    written, found = load_file(old / "model.safetensors"), model.state_dict()
    assert written.keys() == found.keys() and all(torch.equal(found[name], written[name]) for name in written)


def test_an_old_onnx_file_predicts_what_the_old_model_does(old: Path) -> None:
    """With the names that the old model gave, and prepared as it was."""
    paths = sorted(Path("images").rglob("*.png"))
    classifier, model = predict.open_model(old), vitprune.load(old)
    assert tuple(classifier.labels) == LABELS and not classifier.labels_by_order
    images = np.stack([classifier.preprocessing(Image.open(path)) for path in paths])
    expected = model(torch.from_numpy(images))
    np.testing.assert_allclose(classifier.logits(paths), expected, rtol=1e-4, atol=1e-4)
    answers = list(predict.predict(classifier, paths, top=1, batch=8))
    assert [answer["top"][0]["label"] for answer in answers] == [LABELS[int(i)] for i in expected.argmax(1)]


def test_an_old_onnx_file_is_timed_and_described(old: Path) -> None:
    rows = json.loads(command("bench", old, "--batch", 1, "--seconds", 0.01, "--json"))["rows"]
    assert [row["model"] for row in rows] == ["dense", "model"]
    bar = json.loads(command("check", old, "--max-macs-ratio", 1, "--json"))[0]
    assert rows[1]["mac_ratio"] == pytest.approx(bar["value"], abs=0.02)


def test_an_old_report_is_held_against_bars(old: Path) -> None:
    assert "top1 0.333333333, at least 0.3" in command("check", old, "--min-top1", 0.3, "--max-params-ratio", 0.9)
    got = CliRunner().invoke(app, ["check", str(old), "--min-top1", "0.9"])
    assert got.exit_code == 1


def test_an_old_report_is_written_again(old: Path) -> None:
    before = json.loads((old / "report.json").read_text())
    command("report", old)
    assert json.loads((old / "report.json").read_text()) == before
    text = (old / "report.html").read_text()
    assert "</html>" in text and all(name in text for name in FOLDERS)


def test_an_old_report_stands_beside_another(old: Path) -> None:
    shutil.copytree(old, "run/other")
    command("report", old, "run/other", "--out", "beside")
    page = Path("beside/comparison.html").read_text()
    assert "</html>" in page and "67" in page


def test_an_old_run_is_taken_over(old: Path) -> None:
    """The same command goes on in its folder and comes to the old weights and masks; what others put there stays."""
    written, masks = load_file(old / "model.safetensors"), load_file(old / "masks.safetensors")
    (old / "notes.md").write_text("mine")
    made = pipeline.run(recipe(), "run")
    assert made["complete"] and not leftovers(old) and (old / "notes.md").read_text() == "mine"
    found = load_file(old / "model.safetensors")
    assert found.keys() == written.keys()
    for name, value in written.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4)
    kept = load_file(old / "masks.safetensors")
    assert [keep.tolist() for keep in kept.values()] == [keep.tolist() for keep in masks.values()]
    assert {stage["name"] for stage in pipeline.run(recipe(), "run")["stages"] if not stage["skipped"]} == set()


def test_an_old_model_is_pruned_again(old: Path) -> None:
    """A pruned folder of an older version is a model like any other."""
    again = recipe(
        out=Path("again"), model=parse.load("recipe.yaml").model.model_copy(update={"name": f"local-dir:{old}"})
    )
    assert pipeline.run(again, "prune")
    assert widths(vitprune.load(Path("again") / "old")) == [16, 16]
