"""Whole runs on a tiny model and tiny images: what is written, what is skipped, what continues, who reads the test split."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from small import (
    FOLDERS,
    LABELS,
    WIDTH,
    change_json,
    contents,
    image_folder,
    leftovers,
    model_folder,
    picture,
    recipe_dict,
)
from timm.data import create_transform, resolve_model_data_config

import vitprune
from vitprune.core.errors import UserError
from vitprune.core.files import write_text
from vitprune.criteria.catalog import CRITERIA
from vitprune.deploy import runtime
from vitprune.deploy.onnx import exporting
from vitprune.images import decode_pool
from vitprune.recipe import parse, recipe
from vitprune.report import write_report
from vitprune.runs import pipeline
from vitprune.runs.record import record
from vitprune.runs.stages import image_scores
from vitprune.runs.state import told
from vitprune.runs.state.batching import Batching
from vitprune.runs.state.workspace import Workspace

CONTRACT = ["model.safetensors", "config.json", "model.onnx", "report.json", "report.md", "report.html", "recipe.yaml"]
ROW = {
    "criterion", "keep", "kept", "allocation", "recovery", "protocol", "t", "classes", "head", "seed", "top1",
    "top1_ci95", "mean_true_probability", "params", "macs", "n",
}  # fmt: skip
STAGES = ["split", "discover", "moments", "prune", "evaluate", "export"]
Made = dict[str, Any]


pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_folder(tmp_path_factory.mktemp("images") / "set")


@dataclasses.dataclass
class Bench:
    """A recipe that a test changes and runs."""

    content: Made
    out: Path

    @property
    def root(self) -> Path:
        return self.out / "tiny"

    def run(self, verb: str = "run", *, force: bool = False, **changed: Any) -> Made:
        made = recipe.Recipe.model_validate(copy.deepcopy(self.content | changed))
        return pipeline.run(made, verb, force=force)

    def done(self, verb: str = "run", *, force: bool = False, **changed: Any) -> list[str]:
        """The stages that were not skipped."""
        return [s["name"] for s in self.run(verb, force=force, **changed)["stages"] if not s["skipped"]]

    def refused(self, verb: str = "run", **changed: Any) -> str:
        with pytest.raises(UserError) as caught:
            self.run(verb, **changed)
        assert len(str(caught.value).splitlines()) == 1
        assert leftovers(self.out) == []
        return str(caught.value)


@pytest.fixture
def bench(model: Path, images: Path, tmp_path: Path) -> Bench:
    return Bench(recipe_dict(model, images, tmp_path / "out"), tmp_path / "out")


@pytest.fixture
def own(tmp_path: Path) -> Bench:
    """With a model and images that the test may change."""
    content = recipe_dict(model_folder(tmp_path / "model"), image_folder(tmp_path / "images"), tmp_path / "out")
    return Bench(content, tmp_path / "out")


@pytest.fixture(scope="module")
def done_once(model: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    out = tmp_path_factory.mktemp("done")
    made = Bench(recipe_dict(model, images, out), out)
    made.run()
    return made


@pytest.fixture
def done(done_once: Bench, tmp_path: Path) -> Bench:
    """The bench after a run without ONNX."""
    shutil.copytree(done_once.out, tmp_path / "out")
    return Bench(done_once.content | {"out": str(tmp_path / "out")}, tmp_path / "out")


@pytest.fixture(scope="module")
def finished(model: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """One complete run with everything in it. Tests only read it."""
    out = tmp_path_factory.mktemp("finished")
    made = Bench(recipe_dict(model, images, out), out)
    made.content |= {
        "export": {"onnx": True, "latency_batches": [1]},
        "paper_protocol": {"t": [1, 3], "nodes": 2, "probe_per_class": 3},
        "keep": 0.3,
        "random_draws": 2,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(record, "write_report", write_report)
        made.run()
    return made


def report(bench: Bench) -> Made:
    def no_constant(text: str) -> None:
        raise AssertionError(f"{text} is not JSON")

    return json.loads((bench.root / "report.json").read_text(), parse_constant=no_constant)


# ---- what a run writes


def test_the_files_of_the_contract(finished: Bench) -> None:
    for name in CONTRACT:
        assert (finished.root / name).stat().st_size > 0, name
    assert leftovers(finished.out) == []
    assert sorted(p.name for p in finished.out.iterdir()) == ["tiny"]
    assert {p.name for p in finished.root.iterdir()} == {
        *CONTRACT, "masks.safetensors", "split.json", "README.md", "report-data", "stages", ".lock", ".vitprune",
    }  # fmt: skip


def test_the_resolved_recipe_is_written_and_runs_again(finished: Bench) -> None:
    text = (finished.root / "recipe.yaml").read_text()
    assert parse.parse(text) == told.recipe(recipe.Recipe.model_validate(finished.content), finished.root)
    assert report(finished)["recipe_yaml"] == text
    assert yaml.safe_load(text)["criterion"]["seed"] == 0


def test_every_row_has_the_keys_of_the_contract(finished: Bench) -> None:
    rows = report(finished)["rows"]
    for row in rows:
        assert row.keys() >= ROW
        assert row["criterion"] in ("dense", "jas", "activation", "random")
        assert row["protocol"] in ("honest", "oracle") and row["head"] in ("all", "masked")
        assert (row["t"] is None) == (row["protocol"] == "honest")
        assert row["classes"] == ["square", "circle", "cross"] and row["n"] == 6
        assert type(row["params"]) is int and type(row["macs"]) is int
    honest = [(r["criterion"], r["seed"], r["recovery"]) for r in rows if r["protocol"] == "honest"]
    assert honest[0] == ("dense", 0, "none")
    assert set(honest[1:]) == {
        *((name, 0, how) for name in ("jas", "activation") for how in ("none", "affine")),
        *(("random", seed, how) for seed in (0, 1) for how in ("none", "affine")),
    }
    assert len(honest) == 9
    oracle = [(r["criterion"], r["t"], r["recovery"]) for r in rows if r["protocol"] == "oracle"]
    assert sorted(oracle) == [(n, t, "none") for n in ("activation", "jas") for t in (1, 3)]


def test_accuracies_are_fractions_and_only_points_are_points(finished: Bench) -> None:
    def walk(value: Any, key: str = "") -> None:
        if isinstance(value, dict):
            for name, inner in value.items():
                walk(inner, name)
        elif isinstance(value, list):
            for inner in value:
                walk(inner, key)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            if key.endswith("_points"):
                assert -100 <= value <= 100
            elif key != "same_top1" and ("top1" in key or "probability" in key or key in ("keep", "kept")):
                assert 0 <= value <= 1 or key == "keep"

    made = report(finished)
    walk({k: made[k] for k in ("rows", "result", "per_class")})
    for row in made["rows"]:
        low, high = row["top1_ci95"]
        assert 0 <= low <= row["top1"] <= high <= 1


def test_the_budget_is_kept(finished: Bench) -> None:
    for row in report(finished)["rows"]:
        if row["criterion"] == "dense":
            assert row["keep"] == row["kept"] == 1.0
        elif row["protocol"] == "honest":
            assert row["keep"] == 0.3 and row["kept"] == 19 / WIDTH <= row["keep"]
        else:
            assert row["keep"] == row["t"] and row["kept"] == row["t"] / WIDTH
    masks = load_file(finished.root / "masks.safetensors")
    assert [int(m.sum()) for m in masks.values()] == [19, 19]


def test_the_result_is_the_exported_row_with_its_latency(finished: Bench) -> None:
    made = report(finished)
    result = made["result"]
    rows = [{k: v for k, v in result.items() if k in r} == r for r in made["rows"]]
    assert rows.count(True) == 1
    assert (result["criterion"], result["recovery"], result["protocol"]) == ("jas", "affine", "honest")
    ratio = [x["ratio"] for x in made["latency"] if x["batch"] == result["latency_batch"]]  # the median of paired runs
    assert [result["latency_ratio"]] == pytest.approx(ratio) and result["latency_ratio"] > 0
    assert {x["batch"] for x in made["latency"]} == {1}, "no other than was asked for"


def test_figures(finished: Bench) -> None:
    """Parameters, MACs and top-1 by hand, from the written folder and the images of the test split."""
    made = report(finished)
    slim = vitprune.load(finished.root)
    assert made["result"]["params"] == sum(p.numel() for p in slim.parameters())
    dense_row = made["rows"][0]
    assert dense_row["params"] - made["result"]["params"] == 2 * (WIDTH - 19) * (16 + 1 + 16)
    assert dense_row["macs"] - made["result"]["macs"] == 2 * (WIDTH - 19) * 2 * 16 * 17
    split = json.loads((finished.root / "stages" / "split" / "split.json").read_text())
    files = sorted(Path(finished.content["data"]["path"]).rglob("*.png"))
    transform = create_transform(**resolve_model_data_config(slim), is_training=False)
    chosen = [files[i] for i in split["test"]]
    with torch.no_grad():
        logits = slim(torch.stack([transform(Image.open(p).convert("L")) for p in chosen]))
    labels = torch.tensor([LABELS.index(p.parent.name) for p in chosen])
    assert made["result"]["top1"] == pytest.approx((logits.argmax(1) == labels).double().mean().item())
    probability = logits.double().softmax(1)[torch.arange(len(labels)), labels].mean().item()
    assert made["result"]["mean_true_probability"] == pytest.approx(probability, abs=1e-6)


def test_the_checks_of_the_report_pass_and_its_files_are_those_on_disk(finished: Bench) -> None:
    made = report(finished)
    assert made["complete"] and made["missing"] == []
    assert len(made["checks"]) >= 6 and all(check["passed"] for check in made["checks"])
    listed = {f["path"]: f for f in made["files"]}
    written = {"model.safetensors", "config.json", "masks.safetensors", "model.onnx", "recipe.yaml", "split.json"}
    assert set(listed) == written
    for name, entry in listed.items():
        whole = (finished.root / name).read_bytes()
        assert entry["bytes"] == len(whole) and entry["sha256"] == hashlib.sha256(whole).hexdigest()


def test_the_onnx_file_says_what_it_is(finished: Bench) -> None:
    found = exporting.metadata(finished.root / "model.onnx")
    assert json.loads(found["labels"]) == list(LABELS)
    assert json.loads(found["classes"]) == ["square", "circle", "cross"]
    preprocessing = json.loads(found["preprocessing"])
    assert preprocessing["mean"] == [0.4] and preprocessing["input_size"] == [1, 28, 28]
    assert preprocessing["crop_pct"] == 0.875 and preprocessing["interpolation"] == "bilinear"
    assert found["recipe_hash"] == report(finished)["hashes"]["recipe"]
    onnx.checker.check_model(str(finished.root / "model.onnx"), full_check=True)


def test_the_split_is_recorded(finished: Bench) -> None:
    found = json.loads((finished.root / "stages" / "split" / "split.json").read_text())
    assert found["classes"] == list(FOLDERS) and found["seed"] == 0
    assert found["per_class"] == [{"class": c, "probe": 8, "test": 2} for c in FOLDERS]
    assert sorted(found["probe"] + found["test"]) == list(range(30))
    made = report(finished)["split"]
    assert (made["probe"], made["test"], made["skipped"]) == (24, 6, [])
    shared = json.loads((finished.root / "split.json").read_text())
    files = sorted(Path(finished.content["data"]["path"]).rglob("*.png"))
    for part in ("probe", "test"):
        assert shared[part] == ["/".join(files[i].parts[-2:]) for i in found[part]]


# ---- what is skipped and what is not


def test_a_second_run_changes_nothing(finished: Bench) -> None:
    before = contents(finished.root, leave_out=("report.json", "report.md", "report.html"))
    times = {p: p.stat().st_mtime_ns for p in (finished.root / "stages").rglob("*")}
    first = report(finished)
    assert finished.done() == []
    assert contents(finished.root, leave_out=("report.json", "report.md", "report.html")) == before
    assert {p: p.stat().st_mtime_ns for p in (finished.root / "stages").rglob("*")} == times
    second = report(finished)
    for key in ("rows", "result", "checks", "files", "split", "hashes", "latency", "recipe"):
        assert second[key] == first[key], key


@pytest.mark.parametrize(
    ("changed", "redone"),
    [
        ({"keep": 0.25}, ["prune", "evaluate", "export"]),
        ({"round_to": 16}, ["prune", "evaluate", "export"]),
        ({"random_draws": 2}, ["evaluate"]),
        ({"recovery": "mean"}, ["moments", "prune", "evaluate", "export"]),
        (
            {"criterion": {"name": "jas", "t": 2, "nodes": 4, "probe_per_class": 4}},
            ["discover", "prune", "evaluate", "export"],
        ),
        ({"baselines": []}, ["discover", "prune", "evaluate", "export"]),
        ({"split": {"seed": 1, "probe": 0.8}}, STAGES),
        ({"classes": ["cross"]}, STAGES[1:]),
        ({"export": {"onnx": False, "latency_batches": [2]}}, ["export"]),
    ],
    ids=str,
)
def test_a_change_redoes_what_depends_on_it(done: Bench, changed: Made, redone: list[str]) -> None:
    assert done.done() == []
    assert done.done(**changed) == redone
    assert done.done(**changed) == []


def test_force_does_everything_again(bench: Bench) -> None:
    bench.run("prune")
    assert bench.done("prune") == []
    assert bench.done("prune", force=True) == STAGES[:4]


def test_force_computes_discovery_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.run("discover")
    calls = counted(monkeypatch, "jas")
    bench.run("discover", force=True)
    assert len(calls) > 0


def test_a_changed_image_is_noticed(own: Bench) -> None:
    own.run("discover")
    path = Path(own.content["data"]["path"]) / "cross" / "03.png"
    picture(2, 77).save(path)
    os.utime(path, (1, 1))
    assert own.done("discover") == ["split", "discover"]


def test_a_new_image_is_noticed(own: Bench) -> None:
    own.run("discover")
    picture(2, 77).save(Path(own.content["data"]["path"]) / "cross" / "99.png")
    assert own.done("discover") == ["split", "discover"]


def change_weights(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["head.bias"][0] += 1
    save_file(weights, folder / "model.safetensors")


@pytest.mark.parametrize(
    "change",
    [
        change_weights,
        lambda f: change_json(f / "config.json", lambda c: c["pretrained_cfg"].update(label_names=list(FOLDERS))),
        lambda f: change_json(f / "config.json", lambda c: c["model_args"].update(num_heads=4)),
        lambda f: change_json(f / "config.json", lambda c: c["model_args"].update(act_layer="relu")),
        lambda f: change_json(f / "config.json", lambda c: c["pretrained_cfg"].update(mean=[0.3])),
        lambda f: change_json(f / "config.json", lambda c: c["pretrained_cfg"].update(interpolation="bicubic")),
    ],
    ids=["weights", "labels", "heads", "activation function", "mean", "interpolation"],
)
def test_a_changed_model_is_noticed(own: Bench, change: Callable[[Path], None]) -> None:
    own.run("discover")
    change(Path(own.content["model"]["name"].removeprefix("local-dir:")))
    assert own.done("discover") == ["split", "discover"]


@pytest.mark.parametrize(
    ("file", "stage"),
    [
        ("model.safetensors", "prune"),
        ("config.json", "prune"),
        ("masks.safetensors", "prune"),
        ("stages/split/split.json", "split"),
        ("stages/split/stage.json", "split"),
        ("stages/discover/jas-t3-*.safetensors", "discover"),
        ("stages/moments/all.moments.safetensors", "moments"),
        ("stages/evaluate/rows.json", "evaluate"),
    ],
)
@pytest.mark.parametrize("how", ["deleted", "cut", "flipped"])
def test_a_lost_file_is_made_again(done: Bench, file: str, stage: str, how: str) -> None:
    (path,) = done.root.glob(file)
    whole = path.read_bytes()
    if how == "deleted":
        path.unlink()
    else:  # the flipped bit leaves the size as it was
        path.write_bytes(whole[:-3] if how == "cut" else whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    assert stage in done.done()
    if path.name == "config.json":  # the recipe's hash knows where the results go
        assert json.loads(path.read_text()).keys() == json.loads(whole).keys()
    elif path.name != "stage.json":
        assert path.read_bytes() == whole
    assert done.done() == []


def test_what_is_no_record_of_a_stage_counts_as_none(done: Bench) -> None:
    path = done.root / "stages" / "split" / "stage.json"
    good = json.loads(path.read_text())
    for bad in ([], 3, None, {}, good | {"files": []}, good | {"files": None}, good | {"files": {"x": "y"}}):
        path.write_text(json.dumps(bad))
        assert "split" in done.done("discover")


# ---- interruption


def counted(patch: pytest.MonkeyPatch, name: str, stop_at: int | None = None) -> list[int]:
    """Count the batches that a criterion scores; raise KeyboardInterrupt at one of them."""
    calls: list[int] = []
    row = CRITERIA[name]

    def score(model: Any, sites: Any, images: Any, labels: Any, **options: Any) -> Any:
        if len(calls) == stop_at:
            raise KeyboardInterrupt
        calls.append(len(images))
        return row.score(model, sites, images, labels, **options)

    patch.setitem(CRITERIA, name, dataclasses.replace(row, score=score))
    return calls


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two images a batch, four a shard: twelve images are three shards."""
    monkeypatch.setattr(image_scores, "SHARD", 4)
    monkeypatch.setattr(Batching, "images_per_batch", lambda *_: 2)


def found(bench: Bench) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in (bench.root / "stages" / "discover").glob("*.safetensors")}


def interrupted(bench: Bench, after: int) -> list[Path]:
    """Stop discovery after some batches; the shards that are there."""
    with pytest.MonkeyPatch.context() as patch:
        counted(patch, "jas", after)
        with pytest.raises(KeyboardInterrupt):
            bench.run("discover")
    assert leftovers(bench.out) == []
    return sorted((bench.root / "stages" / "discover").rglob("parts/jas*/*.safetensors"))


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize(("after", "kept", "left"), [(0, 0, 6), (1, 0, 6), (3, 1, 4), (4, 2, 2), (5, 2, 2)])
def test_interrupted_discovery_continues(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int, kept: int, left: int
) -> None:
    whole = Bench(bench.content | {"out": str(tmp_path / "whole")}, tmp_path / "whole")
    whole.run("discover")
    made = interrupted(bench, after)
    assert len(made) == kept
    before = [(p.read_bytes(), p.stat().st_mtime_ns) for p in made]
    calls = counted(monkeypatch, "jas")
    assert bench.done("discover") == ["discover"]
    assert len(calls) == left
    assert [(p.read_bytes(), p.stat().st_mtime_ns) for p in made] == before
    assert sorted(name.rpartition("-")[0] for name in found(bench)) == ["activation-t3", "jas-t3"]
    assert found(bench) == found(whole)


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("damage", ["empty", "cut", "text", "swapped", "flipped"])
def test_a_damaged_shard_is_computed_again(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    whole = Bench(bench.content | {"out": str(tmp_path / "whole")}, tmp_path / "whole")
    whole.run("discover")
    first, second = interrupted(bench, 4)
    good = first.read_bytes()
    flipped = bytearray(good)
    flipped[-1] ^= 0x40
    broken = {"empty": b"", "cut": good[:-5], "text": b"{}", "swapped": second.read_bytes(), "flipped": bytes(flipped)}
    first.write_bytes(broken[damage])
    calls = counted(monkeypatch, "jas")
    bench.run("discover")
    assert len(calls) == 4
    assert found(bench) == found(whole)


@pytest.mark.usefixtures("small_shards")
def test_shards_of_another_recipe_are_not_taken(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(bench, 5)
    calls = counted(monkeypatch, "jas")
    bench.run("discover", split={"seed": 5, "probe": 0.8})
    assert len(calls) == 6


@pytest.mark.parametrize("stage", ["moments", "prune", "evaluate"])
def test_a_stop_in_a_later_stage_loses_that_stage_only(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    def stop(_: Any) -> list[Path]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        stages = tuple(dataclasses.replace(s, work=stop) if s.name == stage else s for s in pipeline.STAGES)
        patch.setattr(pipeline, "STAGES", stages)
        with pytest.raises(KeyboardInterrupt):
            bench.run()
    assert leftovers(bench.out) == []
    assert bench.done() == STAGES[STAGES.index(stage) :]


# ---- classes, groups, budgets, criteria, recoveries


GROUPS = {"round": ["circle", "cross"], "angular": ["square"]}


def test_groups_have_a_folder_each(bench: Bench) -> None:
    made = bench.run(groups=GROUPS)
    for group, classes in GROUPS.items():
        for name in ("model.safetensors", "config.json", "masks.safetensors", "split.json", "README.md", "recipe.yaml"):
            assert (bench.root / group / name).is_file()
        own, whole = ((folder / "recipe.yaml").read_text() for folder in (bench.root / group, bench.root))
        assert own.replace("../../../", "../../") == whole  # the same, from one folder further down
        for name in ("model.safetensors", "config.json", "masks.safetensors", "split.json", "README.md"):
            assert not (bench.root / name).exists()
        about = json.loads((bench.root / group / "config.json").read_text())["vitprune"]
        assert sorted(about["classes"]) == classes
        result = made["results"][group]
        assert result["group"] == group and sorted(result["classes"]) == classes and result["n"] == 2 * len(classes)
        rows = [row for row in made["rows"] if row["group"] == group]
        assert {(r["criterion"], r["head"]) for r in rows} >= {("dense", "all"), ("dense", "masked"), ("jas", "masked")}
        assert all(sorted(row["classes"]) == classes for row in rows)
    first, second = (load_file(bench.root / g / "masks.safetensors") for g in ("round", "angular"))
    assert any(not torch.equal(first[k], second[k]) for k in first)
    for name in ("report.json", "report.md", "report.html", "recipe.yaml"):
        assert (bench.root / name).is_file()


def test_groups_have_an_onnx_file_each(bench: Bench) -> None:
    made = bench.run(groups=GROUPS, keep=1.0, baselines=[], export={"onnx": True, "latency_batches": [1]})
    for group, classes in GROUPS.items():
        assert sorted(json.loads(exporting.metadata(bench.root / group / "model.onnx")["classes"])) == classes
        assert made["results"][group]["latency_ratio"] > 0
    assert not (bench.root / "model.onnx").exists()
    assert {f["path"] for f in made["files"]} >= {"round/model.onnx", "angular/model.safetensors", "recipe.yaml"}


def test_a_subset_of_classes_is_judged_with_both_heads(bench: Bench) -> None:
    made = bench.run(classes=["cross", "circle"])
    rows = made["rows"]
    assert {(r["criterion"], r["recovery"], r["head"]) for r in rows} >= {
        (c, how, head)
        for c, how in (("dense", "none"), ("jas", "none"), ("jas", "affine"), ("random", "affine"))
        for head in ("all", "masked")
    }
    assert all(sorted(r["classes"]) == ["circle", "cross"] and r["n"] == 4 for r in rows)
    for row in rows:
        if row["head"] == "masked":
            twin = next(
                r for r in rows if r["head"] == "all" and all(r[k] == row[k] for k in ("criterion", "recovery", "seed"))
            )
            assert row["top1"] >= twin["top1"] and row["mean_true_probability"] > twin["mean_true_probability"]
    assert made["result"]["head"] == "all"
    assert json.loads((bench.root / "config.json").read_text())["num_classes"] == 3


def test_a_class_that_does_not_exist_is_said_before_any_work(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_pool, "check", lambda *_, **__: pytest.fail("images were read"))
    assert "`unicorn` is not a class" in bench.refused(classes=["circle", "unicorn"])
    assert "`unicorn` is not a class" in bench.refused(groups={"a": ["circle"], "b": ["unicorn"]})
    assert not (bench.root / "stages" / "split" / "split.json").exists()


@pytest.mark.parametrize("recovery", ["none", "affine"])
@pytest.mark.parametrize("keep", [1.0, f"{WIDTH} units"])
def test_keeping_everything_is_the_identity(bench: Bench, keep: float | str, recovery: str) -> None:
    made = bench.run(keep=keep, recovery=recovery, baselines=[])
    dense, result = made["rows"][0], made["result"]
    assert result["kept"] == 1.0 and result["keep"] == (keep if keep == 1.0 else WIDTH)
    for key in ("top1", "mean_true_probability", "params", "macs"):
        assert result[key] == dense[key]
    x = torch.randn(3, 1, 28, 28)
    original = vitprune.load(bench.content["model"]["name"].removeprefix("local-dir:"))
    assert torch.equal(vitprune.load(bench.root)(x), original(x))


@pytest.mark.parametrize(
    ("keep", "round_to", "width"),
    [(0.3, None, 19), (0.3, 8, 16), (0.3, 32, 32), ("7 units", None, 7), (1, None, 1), (0.999, None, 63)],
)
def test_widths(bench: Bench, keep: float | str, round_to: int | None, width: int) -> None:
    made = bench.run("prune", keep=keep, round_to=round_to)
    assert [b.mlp.fc1.out_features for b in vitprune.load(bench.root).blocks] == [width, width]
    assert made["missing"] == ["evaluate"]
    assert json.loads((bench.root / "config.json").read_text())["vitprune"]["kept"] == width / WIDTH


@pytest.mark.parametrize("keep", [f"{WIDTH + 1} units", 0.001, 10**9])
def test_a_budget_that_no_block_has_is_said_before_discovery(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, keep: float | str
) -> None:
    calls = counted(monkeypatch, "jas")
    assert "keep" in bench.refused(keep=keep)
    assert not (bench.root / "model.safetensors").exists()
    assert calls == [], "the long stage ran before the budget was looked at"


def test_more_units_per_path_than_a_block_has(bench: Bench) -> None:
    criterion = {"name": "jas", "t": WIDTH + 1, "nodes": 4, "probe_per_class": 4}
    assert f"a block has {WIDTH}" in bench.refused(criterion=criterion)
    assert "a block has" in bench.refused(paper_protocol={"t": [1, 100], "nodes": 2, "probe_per_class": 2})


@pytest.mark.parametrize("recovery", ["none", "mean"])
def test_other_recoveries(bench: Bench, recovery: str) -> None:
    made = bench.run(recovery=recovery)
    assert made["result"]["recovery"] == recovery
    assert {r["recovery"] for r in made["rows"]} == {"none", recovery}
    assert len(made["rows"]) == 1 + 3 * len({"none", recovery})
    moments = list((bench.root / "stages" / "moments").glob("*.safetensors"))
    assert len(moments) == (recovery != "none")


@pytest.mark.parametrize("baselines", [[], ["random", "jas"]])
def test_a_random_run(bench: Bench, baselines: list[str]) -> None:
    made = bench.run(
        criterion={"name": "random", "t": 3, "nodes": 4, "probe_per_class": 4, "seed": 1}, baselines=baselines
    )
    assert (made["result"]["criterion"], made["result"]["seed"]) == ("random", 1)
    assert made["rows"][0]["criterion"] == "dense"
    draws = [(r["criterion"], r["seed"]) for r in made["rows"] if r["recovery"] == "affine"]
    assert sorted(draws) == ([("random", 1)] if not baselines else [("jas", 0), ("random", 0), ("random", 1)])
    assert "paths" not in made


def test_a_run_of_the_activation_criterion(bench: Bench) -> None:
    criterion = {"name": "activation", "t": 3, "nodes": 4, "probe_per_class": 4}
    made = bench.run(criterion=criterion, baselines=["activation", "activation"])
    assert [(r["criterion"], r["recovery"]) for r in made["rows"]] == [
        ("dense", "none"),
        ("activation", "none"),
        ("activation", "affine"),
    ]


def test_a_model_whose_head_reads_no_class_token(own: Bench) -> None:
    folder = Path(own.content["model"]["name"].removeprefix("local-dir:"))
    weights = load_file(folder / "model.safetensors")
    for part in ("weight", "bias"):
        weights[f"fc_norm.{part}"] = weights.pop(f"norm.{part}")
    save_file(weights, folder / "model.safetensors")
    change_json(folder / "config.json", lambda c: c.update(global_pool="avg"))
    assert "class token" in own.refused()
    assert own.run(criterion={"name": "random"}, baselines=[])["result"]["n"] == 6


def test_colour_images_and_a_model_of_three_channels(tmp_path: Path) -> None:
    content = recipe_dict(model_folder(tmp_path / "m", 3), image_folder(tmp_path / "i", 5, "RGB"), tmp_path / "out")
    made = Bench(content, tmp_path / "out").run()
    assert made["result"]["n"] == 3 and made["split"]["probe"] == 12


def test_a_model_with_more_outputs_than_the_images_have_classes(tmp_path: Path) -> None:
    labels = ("moon", "square", "star", "circle", "cross")
    model = model_folder(tmp_path / "m", outputs=5, labels=labels)
    bench = Bench(recipe_dict(model, image_folder(tmp_path / "i"), tmp_path / "out"), tmp_path / "out")
    made = bench.run()
    assert made["result"]["classes"] == ["square", "circle", "cross"]
    assert {r["head"] for r in made["rows"]} == {"all", "masked"}
    assert "`moon` is not a class of these images" in bench.refused(classes=["moon"])
    (tmp_path / "i" / "circle").rename(tmp_path / "i" / "sun")
    assert "class folder `sun` is not among the model's labels" in bench.refused()


def test_weights_that_are_not_numbers(own: Bench) -> None:
    folder = Path(own.content["model"]["name"].removeprefix("local-dir:"))
    weights = load_file(folder / "model.safetensors")
    weights["blocks.0.mlp.fc1.weight"][0] = float("nan")
    save_file(weights, folder / "model.safetensors")
    own.refused()


def test_two_images_a_class_are_enough_and_parity_is_still_at_seven(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = set()
    outputs = runtime.outputs
    monkeypatch.setattr(runtime, "outputs", lambda made, x: (sizes.add(len(x)), outputs(made, x))[1])
    content = recipe_dict(model_folder(tmp_path / "m"), image_folder(tmp_path / "i", 2), tmp_path / "out")
    content |= {"export": {"onnx": True, "latency_batches": [1]}, "keep": 1.0}
    made = Bench(content, tmp_path / "out").run()
    assert made["result"]["n"] == 3 and made["split"]["probe"] == 3
    assert {1, 2, 7} <= sizes


# ---- images that cannot be read


def corrupt(bench: Bench, *names: str) -> None:
    for name in names:
        (Path(bench.content["data"]["path"]) / name).write_bytes(b"no image")


def test_a_corrupt_image_stops_the_run_by_name(own: Bench) -> None:
    corrupt(own, "cross/04.png", "square/01.png")
    said = own.refused()
    assert "cross/04.png" in said and "1 more" in said
    assert not (own.root / "stages" / "split" / "split.json").exists()


def test_a_corrupt_image_is_skipped_and_counted(own: Bench) -> None:
    corrupt(own, "cross/04.png", "square/01.png")
    source = own.content["data"]["path"]
    made = own.run(data={"path": source, "on_corrupt": "skip"})
    found = json.loads((own.root / "stages" / "split" / "split.json").read_text())
    assert [s["path"] for s in found["skipped"]] == ["cross/04.png", "square/01.png"]
    assert found["per_class"][1] == {"class": "cross", "probe": 7, "test": 2}
    assert not {14, 21} & {*found["probe"], *found["test"]}
    assert report(own)["split"]["skipped"] == made["split"]["skipped"] == found["skipped"]
    assert "cross/04.png" in (own.root / "report.md").read_text()


def test_skipping_that_leaves_one_image_of_a_class(own: Bench) -> None:
    corrupt(own, *(f"cross/{i:02d}.png" for i in range(9)))
    said = own.refused(data={"path": own.content["data"]["path"], "on_corrupt": "skip"})
    assert "class `cross`: 1 usable" in said


def test_a_quick_trial_takes_the_first_images(bench: Bench) -> None:
    bench.run("discover", data={"path": bench.content["data"]["path"], "limit_per_class": 4})
    found = json.loads((bench.root / "stages" / "split" / "split.json").read_text())
    assert sorted(found["probe"] + found["test"]) == [0, 1, 2, 3, 10, 11, 12, 13, 20, 21, 22, 23]


# ---- verbs


@pytest.mark.parametrize(
    ("verb", "done"),
    [
        ("discover", STAGES[:2]),
        ("prune", STAGES[:4]),
        ("evaluate", STAGES[:5]),
        ("export", [*STAGES[:4], "export"]),
        ("run", STAGES),
    ],
)
def test_each_verb_stops_where_it_should(bench: Bench, verb: str, done: list[str]) -> None:
    made = bench.run(verb, export={"onnx": True, "latency_batches": [1]}, keep=1.0)
    assert [s["name"] for s in made["stages"]] == done
    assert {p.name for p in (bench.root / "stages").iterdir()} == set(done)
    files = {p.name for p in bench.root.iterdir() if p.is_file()}
    expected = {"recipe.yaml", ".lock", ".vitprune"}
    expected |= {"model.safetensors", "config.json", "masks.safetensors", "split.json"} if "prune" in done else set()
    expected |= {"model.onnx"} if "export" in done else set()
    expected |= {"report.json", "report.md", "report.html", "README.md"} if verb == "run" else set()
    assert files == expected
    assert made["complete"] == (verb == "run")
    assert ("rows" in made) == ("evaluate" in done)


def test_verbs_in_a_row_are_the_run(bench: Bench) -> None:
    assert bench.done("discover") == STAGES[:2]
    assert bench.done("prune") == STAGES[2:4]
    assert bench.done("evaluate") == ["evaluate"]
    assert bench.done("run") == ["export"]
    assert bench.done("run") == []


# ---- one run at a time, and nothing stale


def test_two_runs_in_one_folder(bench: Bench) -> None:
    with Workspace(bench.root).locked():
        assert "another run is working here" in bench.refused()
        assert sorted(p.name for p in bench.root.iterdir()) == [".lock", ".vitprune"]
    bench.run("discover")


def test_the_lock_is_free_after_a_failure(bench: Bench) -> None:
    bench.refused(classes=["unicorn"])
    assert bench.done("discover") == STAGES[:2]


@pytest.mark.parametrize("changed", [{"classes": ["unicorn"]}, {"keep": 1000}, {"data": {"path": "nowhere"}}], ids=str)
def test_a_mistake_leaves_a_finished_run_as_it_was(done: Bench, changed: Made) -> None:
    before = {k: v for k, v in contents(done.root).items() if not k.startswith("stages/")}
    done.refused(**changed)
    assert {k: v for k, v in contents(done.root).items() if not k.startswith("stages/")} == before


def test_an_onnx_file_of_an_earlier_run_is_not_passed_off_as_this_ones(finished: Bench, tmp_path: Path) -> None:
    shutil.copytree(finished.out, tmp_path / "out")
    bench = Bench(finished.content | {"out": str(tmp_path / "out")}, tmp_path / "out")
    made = bench.run(keep=0.25, export={"onnx": False, "latency_batches": [1]})
    assert "model.onnx" not in {f["path"] for f in made["files"]}
    assert not (bench.root / "model.onnx").exists(), "the model beside it is another one"


def test_the_recipe_hash_is_the_same_in_every_file(finished: Bench, tmp_path: Path) -> None:
    shutil.copytree(finished.out, tmp_path / "out")
    bench = Bench(finished.content | {"out": str(tmp_path / "out")}, tmp_path / "out")
    made = bench.run(random_draws=1)
    hashes = {
        "report": made["hashes"]["recipe"],
        "config": json.loads((bench.root / "config.json").read_text())["vitprune"]["recipe_hash"],
        "onnx": exporting.metadata(bench.root / "model.onnx")["recipe_hash"],
    }
    assert len(set(hashes.values())) == 1, hashes


def test_a_group_that_is_gone_from_the_recipe_is_gone_from_the_folder(bench: Bench) -> None:
    bench.run("prune", groups={"a": ["circle"], "b": ["cross"]})
    write_text(bench.root / "b" / "README.md", "its card")
    bench.run("prune", groups={"a": ["circle"]})
    assert (bench.root / "a" / "model.safetensors").is_file()
    assert not (bench.root / "b").exists()
