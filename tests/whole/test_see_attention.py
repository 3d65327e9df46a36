"""Directions of attention in `see`: lists, tables and cards as units have them, of their size; and which units are shown."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from elsewhere import Elsewhere
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_tensors
from safetensors.torch import save_file
from small import contents, image_folder, leftovers, model_folder, quicken, recipe_dict

from vitprune.cli import app
from vitprune.core.errors import UserError
from vitprune.core.progress import Reporter
from vitprune.model.inside import hooks
from vitprune.model.sites.attention import AttentionSite
from vitprune.recipe.recipe import Recipe
from vitprune.runs import pipeline
from vitprune.runs.record import record
from vitprune.runs.seeing import passes
from vitprune.runs.seeing.looking import Heads
from vitprune.runs.seeing.parts import directions
from vitprune.runs.state import run as run_module
from vitprune.runs.state.run import Run

BOTH = {"sites": ["ffn", "attention"], "parts": ["exemplars", "alignment"], "units": {"removed": 2, "kept": 3}}
PLANTED = [3, 9, 12]  # directions of the last attention, of head 0 and 1, that write the three classes


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, and a model whose last attention and last FFN write the classes."""
    root = tmp_path_factory.mktemp("ground")
    weights = load_tensors(model_folder(root / "model") / "model.safetensors")
    weights["blocks.1.attn.proj.weight"][:, PLANTED] = 3 * weights["head.weight"].T
    weights["blocks.1.mlp.fc2.weight"][:, [5, 9, 40]] = 3 * weights["head.weight"].T
    save_file(weights, root / "model" / "model.safetensors", {"format": "pt"})
    image_folder(root / "images")
    return root


def recipe(ground: Path, out: Path, see: dict[str, Any], **changed: Any) -> Recipe:
    made = {"criterion": {"name": "activation", "t": 3, "probe_per_class": 4}, "baselines": [], "see": see}
    made |= {"export": {"onnx": False}} | changed
    return Recipe.model_validate(recipe_dict(ground / "model", ground / "images", out) | made)


def done(ground: Path, out: Path, see: dict[str, Any], **changed: Any) -> Path:
    pipeline.run(recipe(ground, out, see, **changed), "run", device="cpu")
    return out / "tiny"


@pytest.fixture(scope="module")
def seen(ground: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("seen")
    return done(ground, out, BOTH)


def table(folder: Path, name: str = "attention.csv") -> list[dict[str, str]]:
    with (folder / "see" / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def told(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "see" / "see.json").read_text())
    return found


def test_directions_have_lists_that_sorting_everything_gives(ground: Path, seen: Path) -> None:
    run = Run.join(recipe(ground, seen.parent, BOTH), "cpu", Reporter(quiet=True))
    lists, index = load_file(seen / "see" / "attention.safetensors"), np.sort(run.split.probe)
    mixed: dict[int, np.ndarray] = {}
    paths = ["blocks.0.attn.proj", "blocks.1.attn.proj"]
    read = lambda i, x: mixed.update({i: x.double().numpy()})  # noqa: E731
    with torch.no_grad(), hooks.layers(run.loaded.model, paths, read=read):
        run.loaded.model(next(run.images.batches(index, len(index)))[0])
    for block in (0, 1):
        pooled = np.abs(mixed[block][:, 1:]).max(1)
        assert lists[f"top.images.{block}"].shape == (16, 15)
        for unit in range(16):
            order = np.lexsort((index, -pooled[:, unit]))[:15]
            np.testing.assert_allclose(lists[f"top.values.{block}"][unit], pooled[order, unit], rtol=1e-4, atol=1e-6)
            if -np.diff(np.sort(pooled[:, unit])[::-1][:16]).max() > 1e-5:
                assert lists[f"top.images.{block}"][unit].tolist() == index[order].tolist()
        beside = lists[f"random.images.{block}"]
        assert all(not set(a[a >= 0]) & set(b) for a, b in zip(beside, lists[f"top.images.{block}"], strict=True))


def test_what_a_direction_writes_is_told_where_its_block_carries_classes(seen: Path) -> None:
    rows, found = table(seen), told(seen)["attention"]
    assert len(rows) == 32 and (rows[16 + 9]["head"], rows[16 + 9]["dimension"]) == ("1", "1")
    assert [block["carries"] for block in found["alignment"]["blocks"]] == [False, True]
    assert [rows[16 + j]["writes_1"] for j in PLANTED] == ["square", "circle", "cross"]
    assert all(row["writes_1"] == "" for row in rows[:16]) and all(row["fires_class_1"] for row in rows)
    assert {row["kept"] for row in rows} == {"yes"} and (found["heads"], found["dims"]) == ([2, 2], [8, 8])
    assert len(found["shown"]) == 3 and all((seen / card["strip"]).is_file() for card in found["shown"])
    assert told(seen)["widths"] == [64, 64] and len(table(seen, "units.csv")) == 128
    page = (seen / "report.html").read_text()
    assert "Directions of attention" in page and "Those of block 1 write classes." in page
    atlas, own = ((seen / "see" / name).read_text() for name in ("atlas.html", "attention.html"))
    assert 'href="attention.html"' in atlas and 'href="atlas.html"' in own and '"dims":[8,8]' in own


def test_the_free_sign_of_a_direction_changes_no_table(
    ground: Path, seen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two rows of values and the columns of the projection that read them are negated: the same function."""
    quicken(monkeypatch)
    weights = load_tensors(ground / "model" / "model.safetensors")
    for j in (3, 12):
        weights["blocks.1.attn.qkv.weight"][32 + j] *= -1
        weights["blocks.1.attn.qkv.bias"][32 + j] *= -1
        weights["blocks.1.attn.proj.weight"][:, j] *= -1
    save_file(weights, model_folder(tmp_path / "model") / "model.safetensors", {"format": "pt"})
    (tmp_path / "images").symlink_to(ground / "images")
    other = done(tmp_path, tmp_path / "out", BOTH)
    assert table(other) == table(seen)
    lists = [load_file(folder / "see" / "attention.safetensors") for folder in (other, seen)]
    assert all(np.array_equal(lists[0][name], lists[1][name]) for name in lists[0] if "top." in name)


def test_the_same_bytes_whoever_computes_the_parts(
    ground: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quicken(monkeypatch)
    monkeypatch.setattr(passes, "SHARD", 6)
    monkeypatch.setattr(passes, "BATCH", 3)
    folder = done(ground, tmp_path, BOTH)
    before = contents(folder / "see")
    (folder / "stages" / "see" / "stage.json").unlink()
    monkeypatch.setattr(run_module.Run, "executor", property(lambda _: Elsewhere()))
    assert contents(done(ground, tmp_path, BOTH) / "see") == before
    assert leftovers(folder) == []


def test_a_direction_has_a_card(
    seen: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "write_report", lambda *_: [])  # it stays as it was

    def printed(*words: str) -> list[str]:
        monkeypatch.setattr("sys.argv", ["vitprune", "see", str(seen), *words])
        app.app(standalone_mode=False)
        return capsys.readouterr().out.splitlines()

    lines = printed("--unit", "1:h1.1")
    assert lines[0] == "direction 1:h1.1 of blocks.1.attn (dimension 1 of the values of head 1): kept"
    assert lines[1].split()[:2] == ["writes", "circle,"] and lines[-1].endswith("see/attention.html#1:h1.1")
    for words, said in (
        (["1:h2.0"], "see: direction 1:h2.0: attention 1 has heads 0–1"),
        (["2:h0.0"], "see: direction 2:h0.0: the model has attentions 0–1"),
        (["1:h0.8"], "see: direction 1:h0.8: the values of attention 1 have dimensions 0–7"),
        (["1:h0.3", "--sites", "ffn"], "--unit 1:h0.3: a direction of attention, which is not looked at"),
        (["1:3", "--sites", "heads"], "--sites heads: is no site; there are ffn, attention"),
    ):
        with pytest.raises(UserError) as refused:
            printed("--unit", *words)
        assert said in str(refused.value)


def test_what_is_left_of_a_head_is_said() -> None:
    site = AttentionSite(0, "blocks.0.attn", 2, 4)
    assert directions._kept(site, None) == ["yes"] * 8
    assert directions._kept(site, Heads((1,), 4)) == ["no"] * 4 + ["yes"] * 4
    assert directions._kept(site, Heads((0,), 2)) == ["turned"] * 4 + ["no"] * 4


@pytest.mark.parametrize(
    ("see", "said"),
    [
        ({"sites": ["attention"]}, "is [ffn] or [ffn, attention]"),
        ({"sites": ["ffn", "attention"], "parts": ["drift"]}, "needs one of the parts that look at attention"),
        ({"units": {"list": ["1:h0.3"]}}, "needs `sites: [ffn, attention]`"),
        ({"units": {"list": ["1:h0"]}}, "is no unit; write BLOCK:UNIT"),
    ],
)
def test_words_that_do_not_go_together_are_refused(see: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match="see") as refused:
        Recipe.model_validate({"version": 1, "name": "x", "see": see})
    assert said in str(refused.value)


# ---- which units are shown, and where they are read


def test_the_classes_top_units_are_shown_and_the_kept_ones_of_any_block(
    ground: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quicken(monkeypatch)
    units = {"removed": 6, "kept": 9, "top_per_class": 2, "match": "none"}
    found = told(done(ground, tmp_path, {"units": units, "parts": ["exemplars", "alignment", "maps"]}))
    best = {row["class"]: [one["unit"] for one in row["units"][:2]] for row in found["alignment"]["classes"]}
    assert {row["class"]: [card["unit"] for card in row["units"]] for row in found["tops"]} == best
    assert [best[name][0] for name in ("square", "circle", "cross")] == ["1:5", "1:9", "1:40"]
    shown = {side: [card["unit"] for card in cards] for side, cards in found["shown"][""].items()}
    assert len(shown["removed"]) == 6 and len(set(shown["kept"])) == 9 and found["match"] == "none"
    mapped = {row["unit"] for row in found["maps"]["units"]}
    assert mapped == {*shown["removed"], *shown["kept"], *(unit for units in best.values() for unit in units)}
    without = told(done(ground, tmp_path, {"units": units | {"top_per_class": 0}, "parts": ["exemplars", "alignment"]}))
    assert "tops" not in without


def test_where_a_unit_is_read_moves_its_selectivity(
    ground: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the values themselves, at the class token, over patches and over all tokens."""
    quicken(monkeypatch)
    found = {}
    for tokens in ("auto", "cls", "patches", "all"):
        folder = done(ground, tmp_path, {"parts": ["exemplars"], "tokens": tokens})
        found[tokens] = [row["auroc"] for row in table(folder, "units.csv")], told(folder)["exemplars"]["read"]
    assert found["auto"] == found["cls"] and found["cls"][1] == "class" and found["all"][1] == "all"
    assert len({tuple(values) for values, _ in found.values()}) == 3
    see = Recipe.model_validate({"version": 1, "name": "x", "see": {"tokens": "all", "names": {"tokens": "cls"}}}).see
    assert see is not None and (see.stimuli_tokens, see.names_tokens) == ("all", "cls")


def test_masks_of_the_running_mean_are_beside_those_of_the_unit(
    ground: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quicken(monkeypatch)
    see = {"parts": ["masks"], "masks": {"running": True, "threshold": "image"}}
    folder = done(ground, tmp_path, see)
    for row in told(folder)["masks"]["classes"]:
        running = row["running"]
        assert [unit.split(":")[0] for unit in running["units"]] == ["0", "1"] and running["units"][1] == row["unit"]
        assert (folder / running["picture"]).is_file() and 0.15 < running["area"] <= 0.21 and 0 <= running["iou"] <= 1
