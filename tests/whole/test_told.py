"""What a run hands on: no absolute path of the machine it was made on, no fact that nobody stated."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
import yaml
from small import ARCHITECTURE, change_json, image_folder, model_folder, quicken, recipe_dict, tiny_args, tiny_model
from torch import nn

from vitprune.cli import app, torch_runners
from vitprune.core import places
from vitprune.deploy.onnx import exporting
from vitprune.model.load import opening, saving
from vitprune.model.load.loaded import Loaded
from vitprune.recipe import experiments, inputs, parse, recipe
from vitprune.report import compare_reports, write_report
from vitprune.runs import compare, pipeline
from vitprune.runs.record import record
from vitprune.runs.state import told

Change = Callable[[Path, dict[str, Any]], None]


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of everything, the working folder being another one."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    quicken(monkeypatch)
    monkeypatch.setattr(record, "write_report", write_report)
    return tmp_path


def groups(_: Path, content: dict[str, Any]) -> None:
    content["groups"] = {"round": ["circle", "cross"], "angular": ["square"]}
    content["export"] = {"onnx": True, "latency_batches": [1], "precisions": ["fp32", "fp16", "int8"]}


def local_checkpoint(base: Path, content: dict[str, Any]) -> None:
    torch.save({"model": tiny_model().state_dict()}, base / "weights.pth")
    args = tiny_args() | {"num_classes": 3}
    content["model"] = {"name": ARCHITECTURE, "checkpoint": str(base / "weights.pth"), "args": args}
    (base / "labels.txt").write_text("square\ncircle\ncross\n")
    content["data"]["labels"] = str(base / "labels.txt")


def two_folders(base: Path, content: dict[str, Any]) -> None:
    (base / "images").rename(base / "choose")
    for path in sorted((base / "choose").rglob("0[0-4].png")):
        target = base / "judge" / path.relative_to(base / "choose")
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    content["data"] = {"probe": str(base / "choose"), "test": str(base / "judge")}


def manifest(base: Path, content: dict[str, Any]) -> None:
    rows = [f"{path},{path.parent.name}" for path in sorted((base / "images").rglob("*.png"))]
    (base / "lists").mkdir()
    (base / "lists" / "all.csv").write_text("\n".join(["path,label", *rows, f"{base / 'lost.png'},circle"]))
    content["data"] = {"path": str(base / "lists" / "all.csv"), "on_corrupt": "skip"}


RUNS: dict[str, Change] = {
    "a folder": lambda base, content: None,
    "groups": groups,
    "checkpoint": local_checkpoint,
    "probe and test": two_folders,
    "manifest": manifest,
}


def prepared(base: Path, change: Change) -> Path:
    model, images = model_folder(base / "model"), image_folder(base / "images")
    export = {"onnx": True, "latency_batches": [1]}
    content = recipe_dict(model, images, base / "out", export=export, baselines=["random"])
    change(base, content)
    (base / "recipes").mkdir()
    (base / "recipes" / "tiny.yaml").write_text(yaml.safe_dump(content))
    return base / "recipes" / "tiny.yaml"


def leaks(folder: Path, *paths: Path) -> list[str]:
    """Files below a folder whose bytes hold one of the paths, or any path into an installed package."""
    wanted = [str(path).encode() for path in paths] + [b"site-packages", str(Path(onnx.__file__).parents[3]).encode()]
    files = [path for path in folder.rglob("*") if path.is_file()]
    return sorted(p.relative_to(folder).as_posix() for p in files if any(w in p.read_bytes() for w in wanted))


@pytest.mark.parametrize("what", RUNS)
def test_a_runs_folder_holds_no_path_of_this_machine(
    elsewhere: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = prepared(elsewhere, RUNS[what])
    monkeypatch.setattr(sys, "argv", ["vitprune", "run", str(file), "--out", str(elsewhere / "out")])
    app.app(standalone_mode=False)
    root = elsewhere / "out" / "tiny"
    assert json.loads((root / "report.json").read_text())["complete"] and list(root.rglob("model.onnx"))
    assert leaks(root, elsewhere) == []


def test_a_comparison_and_a_page_of_several_runs_hold_none(elsewhere: Path) -> None:
    file = prepared(elsewhere, RUNS["a folder"])
    made = parse.load(file)
    spec = experiments.Compare(criteria=["variance", "random"], keep=[0.5], recovery=["none"], seeds=[0])
    compare.compare(made.model_copy(update={"compare": spec, "name": "side"}))
    pipeline.run(made)
    root = elsewhere / "out" / "tiny"
    content = json.loads((root / "report.json").read_text())
    compare_reports([(root, content), (root, content)], elsewhere / "out" / "page")
    assert (elsewhere / "out" / "side" / "compare.json").is_file()
    assert leaks(elsewhere / "out", elsewhere) == []


def test_the_recipe_in_the_folder_leads_to_the_same_files(elsewhere: Path) -> None:
    file = prepared(elsewhere, local_checkpoint)
    pipeline.run(parse.load(file), "split")
    root = elsewhere / "out" / "tiny"
    content = yaml.safe_load((root / "recipe.yaml").read_text())
    assert (root / content["model"]["checkpoint"]).resolve() == elsewhere / "weights.pth"
    assert (root / content["data"]["path"]).resolve() == elsewhere / "images"
    assert (root / content["data"]["labels"]).resolve() == elsewhere / "labels.txt"


def test_bench_finds_the_dense_model_of_a_run(elsewhere: Path) -> None:
    pipeline.run(parse.load(prepared(elsewhere, RUNS["a folder"])), "prune")
    assert {"torch eager dense", "torch eager slim"} <= torch_runners.torch_runners(elsewhere / "out" / "tiny").keys()


def test_paths_below_the_working_folder_stay_relative_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert places.place(tmp_path / "a" / "b") == "a/b" and places.place("x/../y") == "x/../y"
    assert places.place("/elsewhere/secret/name") == "name"
    assert told.model_name(f"local-dir:{tmp_path}/vit") == "local-dir:vit"
    assert told.model_name("local-dir:vit") == "local-dir:vit" and told.model_name("bundled") == "bundled"


def test_a_way_up_past_the_home_folder_is_not_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`../../../friend/images` would tell a user's name."""
    (tmp_path / "home" / "me" / "runs").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home" / "me"))
    monkeypatch.chdir("/")
    run = tmp_path / "home" / "me" / "runs"
    assert places.place(tmp_path / "home" / "friend" / "images", run) == "images"
    assert places.place(tmp_path / "home" / "me" / "images", run) == "../images"


def test_names_of_images_lose_what_they_share() -> None:
    assert places.names(["a/1.png", "b/2.png"]) == ["a/1.png", "b/2.png"]
    assert places.names(["/x/me/a/1.png", "/x/me/b/1.png", "c/1.png"]) == ["…/a/1.png", "…/b/1.png", "c/1.png"]
    assert places.names(["/x/me/1.png"]) == ["…/1.png"]


def test_a_note_with_a_path_in_it_is_scrubbed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    content = recipe_dict(Path("/data/vit"), Path("/data/images"), Path("/data/out"))
    given = recipe.Recipe.model_validate(content)
    said = {"notes": [f"/data/images: 3 copies; {tmp_path}/x.png; {Path.home()}/y; /data/images2, /data/vit.", 3, None]}
    found = told.scrubbed(said, given, Path("/data/out/tiny"))["notes"]
    assert found[0].startswith("images: 3 copies; x.png; ~/y;") and found[1:] == [3, None]
    assert found[0].endswith(" /data/images2, vit.")  # another folder, which nobody named


def test_an_onnx_file_has_no_stack_traces(tmp_path: Path) -> None:
    exporting.export(tiny_model(), tmp_path / "m.onnx", {"labels": ["a"]})
    proto = onnx.load(str(tmp_path / "m.onnx"))
    assert not any(node.metadata_props or node.doc_string for node in proto.graph.node)
    assert {entry.key for entry in proto.metadata_props} == {"labels"}
    assert leaks(tmp_path, tmp_path) == []


# ---- facts of other weights


def saved(loaded: Loaded, folder: Path) -> dict[str, Any]:
    model: nn.Module = loaded.model
    saving.save(folder, loaded, model, {})
    return dict(json.loads((folder / "config.json").read_text())["pretrained_cfg"])


def test_a_folder_that_declares_no_licence_gets_none(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model")
    change_json(folder / "config.json", lambda c: [c["pretrained_cfg"].pop(key) for key in ("license", "tag")])
    cfg = saved(opening.open_model(inputs.Model(name=f"local-dir:{folder}")), tmp_path / "a")
    assert "license" not in cfg and "tag" not in cfg
    change_json(folder / "config.json", lambda c: c.pop("pretrained_cfg"))
    cfg = saved(opening.open_model(inputs.Model(name=f"local-dir:{folder}")), tmp_path / "b")
    assert "license" not in cfg and "tag" not in cfg


def test_what_a_folder_declares_is_kept(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model")
    cfg = saved(opening.open_model(inputs.Model(name=f"local-dir:{folder}")), tmp_path / "a")
    assert (cfg["license"], cfg["tag"]) == ("mit", "small")


@pytest.mark.parametrize("given", [True, False], ids=["checkpoint", "random"])
def test_weights_of_ones_own_have_not_timms_licence(tmp_path: Path, given: bool) -> None:
    torch.save(tiny_model().state_dict(), tmp_path / "w.pth")
    spec = inputs.Model(
        name=ARCHITECTURE, checkpoint=tmp_path / "w.pth" if given else None, args=tiny_args() | {"num_classes": 3}
    )
    cfg = saved(opening.open_model(spec), tmp_path / "a")
    assert "license" not in cfg and "tag" not in cfg and cfg["classifier"] == "head"


def test_the_card_of_undeclared_weights_says_so(elsewhere: Path) -> None:
    file = prepared(elsewhere, local_checkpoint)
    pipeline.run(parse.load(file))
    text = (elsewhere / "out" / "tiny" / "README.md").read_text()
    assert "Licence of its weights: not stated" in text and "license: unknown" in text
    assert "base_model" not in text and "apache" not in text and "augreg" not in text
    assert os.sep + "tmp" not in text
