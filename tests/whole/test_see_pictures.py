"""The pictures of `see` as a whole: maps, masks, block plots, stimuli; the same whoever computes them."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from elsewhere import Elsewhere
from PIL import Image
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_tensors
from safetensors.torch import save_file
from small import contents, image_folder, leftovers, model_folder, quicken, recipe_dict

from vitprune.core.errors import UserError
from vitprune.core.progress import Reporter
from vitprune.recipe.recipe import Recipe
from vitprune.runs import pipeline
from vitprune.runs.seeing import passes, targets
from vitprune.runs.state import run as run_module
from vitprune.runs.state.run import Run
from vitprune.see import readout
from vitprune.see.pictures import maps
from vitprune.see.pictures.dissection import Counted

PICTURES = ["maps", "masks", "blocks", "stimuli", "readout"]
STIMULI = {"steps": 3, "seeds": 2, "classes": 2}


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, and a model whose last block writes the classes: its first units' value vectors are the head's rows."""
    root = tmp_path_factory.mktemp("ground")
    weights = load_tensors(model_folder(root / "model") / "model.safetensors")
    weights["blocks.1.mlp.fc2.weight"][:, [5, 9, 40]] = 3 * weights["head.weight"].T
    save_file(weights, root / "model" / "model.safetensors", {"format": "pt"})
    image_folder(root / "images")
    for path in (root / "images").rglob("*.png"):  # what is brighter than the image's mean is label 300
        bright = np.asarray(Image.open(path).convert("L"))
        place = root / "masks" / path.relative_to(root / "images")
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.where(bright > bright.mean(), 300, 0).astype(np.uint16)).save(place)
    (root / "masks" / "names.json").write_text('{"300": "<b>bright"}')
    return root


def recipe(ground: Path, out: Path, see: dict[str, Any] | None = None) -> Recipe:
    see = {"parts": PICTURES, "units": {"removed": 2, "kept": 2}, "stimuli": STIMULI} | (see or {})
    changed = {"criterion": {"name": "activation", "t": 3, "probe_per_class": 4}, "baselines": [], "see": see}
    made = recipe_dict(ground / "model", ground / "images", out) | changed
    if (ground / "masks").is_dir():
        made["data"]["masks"] = str(ground / "masks")
    return Recipe.model_validate(made)


def done(ground: Path, out: Path, see: dict[str, Any] | None = None, **how: Any) -> Path:
    pipeline.run(recipe(ground, out, see), "run", device="cpu", **how)
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
    assert len(units) == 4
    units |= {card["unit"]: card for row in told(seen)["tops"] for card in row["units"]}
    assert {row["unit"] for row in found["units"]} == units.keys() and {"1:5", "1:9", "1:40"} <= units.keys()
    for row in found["units"]:
        if row["picture"] is None:
            assert row["note"] and units[row["unit"]]["fires"] == "no"
            continue
        assert Image.open(seen / row["picture"]).size[1] == 112 and row["scale"] > 0
        assert [one["random"] for one in row["images"]] == [False] * 5 + [True]
        assert row["auroc"] is None or 0 <= row["auroc"] <= 1


def test_masks_of_every_class_s_top_unit(seen: Path) -> None:
    found = told(seen)["masks"]
    assert [row["unit"] for row in found["classes"]] == ["1:5", "1:9", "1:40"] and found["unseen"] is True
    for row in found["classes"]:
        assert (seen / row["picture"]).stat().st_size < 100_000 and 0 <= row["area"] < 1 and row["n"] == 8


def test_masks_are_of_blocks_whose_patches_a_logit_can_see() -> None:
    def of(aligned: list[int | None], class_token: bool) -> list[int]:
        layout, sites = SimpleNamespace(class_token=class_token), [0] * len(aligned)
        return targets.seen_blocks(SimpleNamespace(left={"aligned": aligned}, layout=layout, sites=sites))  # type: ignore[arg-type]

    assert of([None, 1, 1], True) == [1] and of([None, 1, 1], False) == [1, 2]
    assert of([None, None, 1], True) == [2] and of([None, None, None], True) == []


def test_every_unit_is_held_against_the_labelled_pixels(ground: Path, seen: Path) -> None:
    """The counts of the run are those of all its images' maps at once, at a threshold that is numpy's to a bin."""
    found = told(seen)["concepts"]
    assert [row["name"] for row in found["labels"]] == ["<b>bright"] and found["percentile"] == 99.5
    with (seen / "see" / "units.csv").open(encoding="utf-8", newline="") as file:
        units = list(csv.DictReader(file))
    run = Run.join(recipe(ground, seen.parent), "cpu", Reporter(quiet=True))
    names = {run.source.names[i]: i for i in run.split.probe.tolist()}
    x, _ = next(run.images.batches(np.array(sorted(names.values())), len(names)))
    made = maps.maps(run.loaded.model, run.sites[1], list(range(64)), x, "pre")
    labels = np.stack(
        [np.asarray(Image.open(ground / "masks" / name)) for name in sorted(names, key=names.__getitem__)]
    )
    limit = torch.quantile(made.transpose(0, 1).flatten(1), 0.995, dim=1)
    best = Counted.of(made, labels.astype(int), limit).best()
    assert len(x) == found["images"]
    mine = np.array([float(row["concept_iou"]) for row in units[64:]])
    np.testing.assert_allclose(mine, best.iou, atol=0.01)
    assert all(row["concept"] in ("", "<b>bright") for row in units) and max(mine) > 0
    page = (seen / "report.html").read_text()
    assert "Which labelled pixels units show" in page and "<b>bright" not in page and "by chance" in page


def test_classes_are_read_off_every_block_beside_chance(ground: Path, seen: Path) -> None:
    found = told(seen)["readout"]
    assert [row["block"] for row in found["blocks"]] == [0, 1] and found["classes"] == 3
    last = found["blocks"][1]
    assert last["class_value"]["found"] == pytest.approx(1, abs=1e-5)
    assert last["class_value"]["random"] < 1
    assert last["agrees"]["chance"] == pytest.approx(readout.agrees_by_chance(64))
    assert last["attention_agrees"]["chance"] == pytest.approx(readout.agrees_by_chance(16))
    assert 0 < last["attention_class_value"]["found"] < 1
    run = Run.join(recipe(ground, seen.parent), "cpu", Reporter(quiet=True))
    x, labels = next(run.images.batches(np.sort(run.split.probe), len(run.split.probe)))
    with torch.no_grad():
        own = run.loaded.model(x)
    slow = [1 - int((row > row[label]).sum()) / 3 for row, label in zip(own, labels.tolist(), strict=True)]
    assert last["identifiability"]["class"]["value"] == pytest.approx(np.mean(slow))
    assert "From which block on can the classes be read off the tokens?" in (seen / "report.html").read_text()


def test_an_image_without_a_mask_and_labels_that_are_not_given_are_one_line(
    ground: Path, seen: Path, tmp_path: Path
) -> None:
    for name in ("model", "images"):
        (tmp_path / name).symlink_to(ground / name)
    with pytest.raises(UserError, match=r"see.parts: concepts: needs data.masks, a folder with one PNG"):
        done(tmp_path, tmp_path / "out", see={"parts": ["concepts"]})
    assert not (tmp_path / "out" / "tiny" / "stages" / "split").exists()  # before any work
    shutil.copytree(ground / "masks", tmp_path / "masks")
    shutil.rmtree(tmp_path / "masks" / "square")
    shutil.copytree(seen, tmp_path / "again" / "tiny")
    with pytest.raises(UserError, match=r"data.masks .*: no mask for `square/\d\d.png`"):
        done(tmp_path, tmp_path / "again", see={"parts": ["concepts"]})


def test_listed_units_are_shown_and_no_others(
    ground: Path, seen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quicken(monkeypatch)
    shutil.copytree(seen, tmp_path / "tiny")
    units = {"list": ["1:5", "0:3", "0:4", "1:5"]}
    shown = told(done(ground, tmp_path, see={"parts": ["exemplars"], "units": units}))["shown"][""]
    assert sorted(card["unit"] for cards in shown.values() for card in cards) == ["0:3", "0:4", "1:5"]
    assert all(card["kept"] == ("yes" if side == "kept" else "no") for side, cards in shown.items() for card in cards)
    with pytest.raises(UserError, match="see: unit 6:0: the model has blocks 0–1"):
        done(ground, tmp_path / "new", see={"units": {"list": ["6:0"]}})
    assert not (tmp_path / "new" / "tiny" / "stages" / "split").exists()


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
