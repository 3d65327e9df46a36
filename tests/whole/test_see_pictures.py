"""The pictures of `see` as a whole: maps, masks, block plots, stimuli; the same whoever computes them."""

from __future__ import annotations

import csv
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_tensors
from safetensors.torch import save_file
from small import contents, image_folder, leftovers, model_folder, quicken, recipe_dict

from vitprune.recipe.recipe import Recipe
from vitprune.runs import pipeline
from vitprune.runs.engine.base import Columns, Job
from vitprune.runs.engine.local import Local
from vitprune.runs.seeing import passes
from vitprune.runs.state import run as run_module

PICTURES = ["maps", "masks", "blocks", "stimuli"]
STIMULI = {"steps": 3, "seeds": 2, "classes": 2}


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, and a model whose last block writes the classes: its first units' value vectors are the head's rows."""
    root = tmp_path_factory.mktemp("ground")
    weights = load_tensors(model_folder(root / "model") / "model.safetensors")
    weights["blocks.1.mlp.fc2.weight"][:, [5, 9, 40]] = 3 * weights["head.weight"].T
    save_file(weights, root / "model" / "model.safetensors", {"format": "pt"})
    image_folder(root / "images")
    return root


def done(ground: Path, out: Path, **how: Any) -> Path:
    see = {"parts": PICTURES, "units": {"removed": 2, "kept": 2}, "stimuli": STIMULI} | how.pop("see", {})
    changed = {"criterion": {"name": "activation", "t": 3, "probe_per_class": 4}, "baselines": [], "see": see}
    made = recipe_dict(ground / "model", ground / "images", out) | changed
    pipeline.run(Recipe.model_validate(made), "run", device="cpu", **how)
    return out / "tiny"


@pytest.fixture(scope="module")
def seen(ground: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return done(ground, tmp_path_factory.mktemp("seen"))


def told(seen: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((seen / "see" / "see.json").read_text())
    return found


def table(seen: Path, name: str) -> list[dict[str, str]]:
    with (seen / "see" / "blocks" / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_maps_of_every_shown_unit_on_its_own_scale(seen: Path) -> None:
    found, shown = told(seen)["maps"], told(seen)["shown"][""]
    units = {card["unit"]: card for cards in shown.values() for card in cards}
    assert {row["unit"] for row in found["units"]} == units.keys() and len(units) == 4
    for row in found["units"]:
        if row["picture"] is None:
            assert row["note"] and units[row["unit"]]["fires"] == "no"
            continue
        assert Image.open(seen / row["picture"]).size[1] == 112 and row["scale"] > 0
        assert [one["random"] for one in row["images"]] == [False] * 5 + [True]
        assert row["auroc"] is None or 0 <= row["auroc"] <= 1


def test_masks_of_every_class_s_top_unit(seen: Path) -> None:
    found = told(seen)["masks"]
    assert [row["unit"] for row in found["classes"]] == ["1:5", "1:9", "1:40"]
    for row in found["classes"]:
        assert (seen / row["picture"]).stat().st_size < 100_000 and 0 <= row["area"] < 1 and row["n"] == 8


def test_block_plots_have_their_csv(seen: Path) -> None:
    found = told(seen)["blocks"]
    assert found["blocks"] == [1] and found["top_block"]["value"] == [0, 3]
    assert [row["value"] for row in table(seen, "top_block")] == ["0", "3"]
    assert len(table(seen, "class_means")) == 3 and len(table(seen, "distances")) == 4 * 3
    assert sum(int(row["images"]) for row in table(seen, "most_active")) == found["images"] == 24
    for row in table(seen, "mean_distances"):
        assert all(float(row[key]) >= 0 for key in ("value", "standard_error", "null_low", "null_high"))
    maps = load_file(seen / "see" / "block_maps.safetensors")
    assert maps["mean.1"].shape == (3, 16) and (maps["running.1"] == maps["mean.1"]).all()


def test_stimuli_are_judged_beside_random_units(seen: Path) -> None:
    found = told(seen)["stimuli"]
    assert {name: rate["own"]["n"] for name, rate in found["rates"].items()} == {"top": 4, "random": 4}
    assert found["rates"]["top"]["slim"]["n"] == 4 and found["chance"] == pytest.approx(1 / 3)
    assert len(found["units"]) == 4 and 0 <= found["top_against_random_p"] <= 1
    for row in found["units"]:
        picture = np.array(Image.open(seen / row["picture"]))
        assert picture.shape == (112, 2 * 112 + 2, 3) and len(row["seen_as"]) == 2
        assert row["unit"].startswith("1:")


def test_the_report_shows_them_each_beside_its_control(seen: Path) -> None:
    page, text = (seen / "report.html").read_text(), (seen / "report.md").read_text()
    for heading in ("Where units fire", "Which pixels they need", "From block to block", "Images made for units"):
        assert heading in page and heading in text
    assert "see-top-block" in page and "see-distances" in page and "random heads, 95 %" in page
    assert "Fisher" in text and "Random units of the same blocks" in text
    assert page.index("What was removed?") < page.index("Where units fire") < page.index("> What was kept?</h2>")


class Elsewhere(Local):
    """An engine whose parts are computed by what a worker would be sent, the last of them first."""

    def run(self, job: Job, folder: Path) -> Iterator[Columns]:
        work = pickle.loads(pickle.dumps(job.work))
        made = [work(item) for item in reversed(job.items)]
        yield from reversed(made)


def test_the_same_bytes_whoever_computes_the_parts(
    ground: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quicken(monkeypatch)
    monkeypatch.setattr(passes, "SHARD", 6)
    monkeypatch.setattr(passes, "BATCH", 3)
    folder = done(ground, tmp_path)
    before = contents(folder / "see")
    (folder / "stages" / "see" / "stage.json").unlink()
    monkeypatch.setattr(run_module.Run, "executor", property(lambda _: Elsewhere()))
    assert contents(done(ground, tmp_path) / "see") == before
    assert leftovers(folder) == []


@pytest.mark.slow
def test_the_same_bytes_from_two_workers(ground: Path, seen: Path, tmp_path: Path) -> None:
    assert contents(seen / "see") == contents(done(ground, tmp_path, workers=2) / "see")


def test_a_model_without_classes_says_so_and_goes_on(ground: Path, tmp_path: Path) -> None:
    plain = model_folder(tmp_path / "model")
    weights = load_tensors(plain / "model.safetensors")
    weights["head.weight"] = torch.nn.functional.one_hot(torch.tensor([0, 0, 0]), 16).float()
    for block in (0, 1):
        weights[f"blocks.{block}.mlp.fc2.weight"][0] = 0  # no unit writes what the head reads
    save_file(weights, plain / "model.safetensors", {"format": "pt"})
    (tmp_path / "images").symlink_to(ground / "images")
    found = told(done(tmp_path, tmp_path / "out", see={"maps": {"of": "gradient"}, "masks": {"threshold": "image"}}))
    assert "no block carries classes" in found["blocks"]["note"] and "no unit" in found["stimuli"]["note"]
    assert found["masks"]["classes"] == [] and len(found["maps"]["units"]) == 4 and found["maps"]["of"] == "gradient"
