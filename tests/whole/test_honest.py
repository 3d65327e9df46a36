"""The honest-figure promises, on every road: the recipe that asks for nothing, jas with the affine repair, and the others.

One watched run per road is shared by the tests of this file; what differs from it is run again beside it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from records import Page
from safetensors.torch import load_file, save_file
from small import FOLDERS, LABELS, WIDTH, image_folder, model_folder, picture, quicken, recipe_dict
from timm.data import create_transform, resolve_model_data_config

import vitprune
from vitprune.criteria.statistics.random import random
from vitprune.deploy import predict, runtime
from vitprune.exam import logits as evaluation
from vitprune.exam import oracle
from vitprune.images.batches import Images
from vitprune.images.sources.folder import Folder
from vitprune.model import families
from vitprune.recipe.recipe import Recipe
from vitprune.report import write_report
from vitprune.runs import contenders, pipeline
from vitprune.runs.results import side_by_side
from vitprune.runs.stages.exams import examples
from vitprune.runs.state.batching import Batching

Made = dict[str, Any]
SMALL = {"t": 3, "nodes": 2, "probe_per_class": 20}  # more than a class has: what is added to them is looked at too
GROUPS = {"two": ["circle", "cross"], "one": ["square", "cross"]}
ROADS: dict[str, Made] = {
    "defaults": {},  # fisher-obs, one threshold for all blocks, layer by layer
    "jas-affine": {"criterion": SMALL | {"name": "jas", "probe_per_class": 6}, "recovery": "affine"},
    "paper": {"paper_protocol": {"t": [1], "nodes": 2, "probe_per_class": 20}, "baselines": []},
    "sequential-distill": {"criterion": SMALL | {"name": "taylor"}, "recovery": "sequential+distill"},
    "whole": {"budget": {"macs": 0.6}},  # attention beside the FFNs
    "rounds": {"rounds": 2},
    "auto": {"criterion": SMALL | {"name": "auto", "among": ["fisher-obs", "jas", "variance"]}},
    "groups": {"groups": GROUPS},
    "groups-jas-affine": {"groups": GROUPS, "criterion": SMALL | {"name": "jas"}, "recovery": "affine"},
    "clusters": {"groups": {"auto": 2}},
    "every-criterion": {
        "recovery": "mean",
        "baselines": [
            "mean-activation", "knowledge-attribution", "influence-pattern", "influence-gradient", "joint-gates", "fisher",
            "magnitude-l2", "hessian", "variance-weight", "obs", "class-alignment", "vit-slim", "activation",
        ],
    },
}  # fmt: skip
BOTH = ("defaults", "jas-affine")
FEW = [road if road in (*BOTH, "groups") else pytest.param(road, marks=pytest.mark.slow) for road in ROADS]
WEIGHTS = ("model.safetensors", "masks.safetensors")


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        quicken(patch)
        yield


@dataclass
class Watched:
    """Positions of the images that were asked for: before the exam, in its stages but not by it, and by it."""

    before: set[int] = field(default_factory=set)
    beside: set[int] = field(default_factory=set)
    exam: set[int] = field(default_factory=set)


@dataclass
class Trial:
    """A recipe, where its results are, and what its run gave."""

    content: Made
    out: Path
    made: Made = field(default_factory=dict)
    seen: Watched = field(default_factory=Watched)

    @property
    def root(self) -> Path:
        return self.out / "tiny"

    @property
    def split(self) -> Made:
        return dict(json.loads((self.root / "stages" / "split" / "split.json").read_text()))

    @property
    def folders(self) -> dict[str, Path]:
        """The checkpoint of every class set."""
        return {group or "": self.root / (group or "") for group in self.made["recipe"]["groups"] or [""]}

    def go(self, verb: str, **options: Any) -> Made:
        self.made = pipeline.run(Recipe.model_validate(self.content), verb, device="cpu", **options)
        return self.made

    def weights(self) -> dict[str, bytes]:
        """Every file of numbers that the stages before the exam leave, by name."""
        stages = self.root / "stages"
        found = [folder / name for folder in self.folders.values() for name in WEIGHTS]
        for stage in ("discover", "moments", "choose/stages/discover", "cluster/stages/discover"):
            found += (stages / stage).glob("*.safetensors")
        return {path.relative_to(self.root).as_posix(): path.read_bytes() for path in found}


@pytest.fixture(scope="module", name="place")
def place_fixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, images, and the road's results below."""
    place = tmp_path_factory.mktemp("honest")
    folder, images = model_folder(place / "model"), image_folder(place / "images", 14)
    model = vitprune.load(folder)
    transform = create_transform(**resolve_model_data_config(model), is_training=False)
    mean = model(torch.stack([transform(Image.open(p).convert("L")) for p in sorted(images.rglob("*.png"))])).mean(0)
    weights = load_file(folder / "model.safetensors")
    weights["head.bias"] -= mean  # no output is the largest for every image: what is told of one is not true of another
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return place


def content_of(road: str, model: Path, images: Path, out: Path, **changed: Any) -> Made:
    made = recipe_dict(model, images, out, criterion=SMALL, baselines=["activation", "random"], keep=0.3)
    for key in ("recovery", *(["keep"] if "budget" in ROADS[road] else [])):
        del made[key]
    return made | ROADS[road] | changed


@pytest.fixture(scope="module", name="runs")
def runs_fixture(place: Path) -> Callable[[str], Trial]:
    """Road → its watched run up to the exam's figures, made when first asked for."""
    known: dict[str, Trial] = {}

    def of(road: str) -> Trial:
        if road not in known:
            out = place / road
            known[road] = Trial(content_of(road, place / "model", place / "images", out), out)
            Trial(content_of("defaults", place / "model", place / "images", out), out).go("split")  # reads every image
            with watching(known[road].seen) as watch:
                watch("before")
                known[road].go("prune")
                watch("beside")
                known[road].go("evaluate")
        return known[road]

    return of


class watching:  # noqa: N801 (a opened manager)
    """Every image that is asked for is noted, under what is going on."""

    def __init__(self, seen: Watched) -> None:
        self.seen, self.now, self.patch = seen, "before", pytest.MonkeyPatch()

    def __enter__(self) -> Callable[[str], None]:
        batches, image = Images.batches, Folder.image

        def asked(images: Any, index: np.ndarray, *more: Any, **options: Any) -> Any:
            getattr(self.seen, self.now).update(np.asarray(index).tolist())
            return batches(images, index, *more, **options)

        def read(source: Any, i: int) -> Any:
            getattr(self.seen, self.now).add(int(i))
            return image(source, i)

        self.patch.setattr(Images, "batches", asked)
        self.patch.setattr(Folder, "image", read)
        readers = [(owner, "test_logits") for owner in (evaluation, contenders)]
        readers.append((side_by_side, "logits_side_by_side"))
        for owner, name in (*readers, (oracle, "oracle_logits"), (examples, "write")):
            self.patch.setattr(owner, name, self.examining(getattr(owner, name)))
        return lambda now: setattr(self, "now", now)

    def examining(self, work: Callable[..., Any]) -> Callable[..., Any]:
        def examined(*args: Any, **options: Any) -> Any:
            now = self.now
            self.now = now if now == "before" else "exam"
            try:
                return work(*args, **options)
            finally:
                self.now = now

        return examined

    def __exit__(self, *_: object) -> None:
        self.patch.undo()


def test_the_defaults_are_what_this_file_takes_them_for() -> None:
    made = Recipe.model_validate(content_of("defaults", Path("m"), Path("i"), Path("o")))
    assert (made.criterion.name, made.allocation, made.recovery) == ("fisher-obs", "auto", "auto")


# ---- who reads the test split


@pytest.mark.parametrize("road", ROADS)
def test_nothing_before_the_exam_reads_the_test_split(runs: Callable[[str], Trial], road: str) -> None:
    """Nor what is pruned inside the exam's stage, for a baseline or for the general model beside the specialists."""
    run = runs(road)
    test, probe = set(run.split["test"]), set(run.split["probe"])
    assert len(test) == 9 and len(probe) == 33
    assert run.seen.before and not run.seen.before & test
    assert not run.seen.beside & test
    assert run.seen.before | run.seen.beside <= probe
    assert run.seen.exam == test, "the exam reads every test image and no other"


@pytest.mark.parametrize("road", FEW)
def test_other_test_images_give_the_same_model(
    runs: Callable[[str], Trial], place: Path, tmp_path: Path, road: str
) -> None:
    run = runs(road)
    images = Path(shutil.copytree(place / "images", tmp_path / "images"))
    files = sorted(images.rglob("*.png"))
    for i in run.split["test"]:
        picture((i + 1) % 3, 1000 + i).save(files[i])
    other = Trial(content_of(road, place / "model", images, tmp_path / "out"), tmp_path / "out")
    other.go("prune")
    assert (other.split["probe"], other.split["test"]) == (run.split["probe"], run.split["test"])
    assert other.folders.keys() == run.folders.keys()
    assert other.weights() == run.weights()
    assert other.made.get("choice", {}).get("top1") == run.made.get("choice", {}).get("top1")


@pytest.mark.parametrize("road", ["defaults", "jas-affine", "auto", "clusters"])
@pytest.mark.sample(2)
def test_another_test_folder_with_other_labels_gives_the_same_model(place: Path, tmp_path: Path, road: str) -> None:
    """More images, and of each class those that show another: labels of test images play no part either."""
    probe, found = place / "images", []
    for kind, (count, shift) in enumerate([(2, 0), (4, 1)]):
        test, out = tmp_path / f"test-{kind}", tmp_path / f"out-{kind}"
        for c, name in enumerate(FOLDERS):
            (test / name).mkdir(parents=True)
            for i in range(count + c * shift):
                picture((c + shift) % 3, 2000 + 100 * kind + i).save(test / name / f"{i}.png")
        given = {"probe": str(probe), "test": str(test)}
        run = Trial(content_of(road, place / "model", probe, out, data=given), out)
        run.go("prune")
        found.append(run)
    assert len(found[0].split["test"]) != len(found[1].split["test"])
    assert found[0].folders.keys() == found[1].folders.keys()
    assert found[0].weights() == found[1].weights()


# ---- the figures


def logits_by_hand(run: Trial, folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of the written folder on every image of the test split, read and prepared by timm; and the true outputs."""
    slim = vitprune.load(folder)
    files = sorted(Path(run.content["data"]["path"]).rglob("*.png"))
    transform = create_transform(**resolve_model_data_config(slim), is_training=False)
    chosen = [files[i] for i in run.split["test"]]
    with torch.no_grad():
        logits = slim(torch.stack([transform(Image.open(p).convert("L")) for p in chosen]))
    return logits, torch.tensor([LABELS.index(p.parent.name) for p in chosen])


@pytest.mark.parametrize("road", FEW)
def test_the_figures_are_those_of_the_written_folder(runs: Callable[[str], Trial], road: str) -> None:
    """Top-1, probability, parameters, multiply-adds and the number of images, by hand from the files on disk."""
    run = runs(road)
    results = run.made.get("results") or {"": run.made["result"]}
    assert results.keys() == run.folders.keys()
    for group, folder in run.folders.items():
        result, names = results[group], json.loads((folder / "config.json").read_text())["vitprune"]["classes"]
        targets = [LABELS.index(name) for name in names]
        assert sorted(result["classes"]) == sorted(names)
        logits, labels = logits_by_hand(run, folder)
        inside = torch.isin(labels, torch.tensor(targets))
        logits, labels = logits[inside].double(), labels[inside]
        if logits.shape[1] < len(LABELS):  # a specialist's own head
            labels = torch.tensor([sorted(targets).index(int(label)) for label in labels])
        assert result["n"] == len(labels) == 3 * len(names)
        assert result["top1"] == pytest.approx((logits.argmax(1) == labels).double().mean().item())
        probability = logits.softmax(1)[torch.arange(len(labels)), labels].mean().item()
        assert result["mean_true_probability"] == pytest.approx(probability, abs=1e-6)
        if "budget" in ROADS[road]:  # attention is smaller too
            assert result["macs"] <= 0.6 * run.made["model"]["macs_dense"]
            continue
        masks = load_file(folder / "masks.safetensors")
        widths = [int(masks[f"keep.blocks.{i}.mlp"].sum()) for i in range(len(masks))]
        gone, lost = sum(WIDTH - w for w in widths), 3 - logits.shape[1]
        dense = run.made["model"]
        assert dense["params_dense"] - result["params"] == gone * (16 + 1 + 16) + lost * 17
        assert dense["macs_dense"] - result["macs"] == gone * 2 * 16 * 17 + lost * 16
        assert 0 < sum(widths) <= 0.3 * 2 * WIDTH and result["kept"] == pytest.approx(sum(widths) / (2 * WIDTH))
        low, high = result["top1_ci95"]
        assert 0 <= low <= result["top1"] <= high <= 1


def above(inside: torch.Tensor, outside: torch.Tensor) -> float:
    """How often a score of the own classes' images is above one of the others'; ties half."""
    pairs = inside[:, None] - outside[None]
    return float(((pairs > 0).double() + 0.5 * (pairs == 0).double()).mean())


@pytest.mark.parametrize("road", ["groups", "groups-jas-affine"])
def test_a_specialist_is_examined_on_its_own_head(runs: Callable[[str], Trial], road: str) -> None:
    """And the dense model beside it with its head whole and closed: on images of every class, from the written folders."""
    run = runs(road)
    for group, folder in run.folders.items():
        rows = {(r["model"], r["head"]): r for r in run.made["specialists"] if r["group"] == group}
        assert ("specialist", "all") not in rows
        targets = sorted(LABELS.index(name) for name in run.content["groups"][group])
        own, labels = logits_by_hand(run, folder)
        whole, _ = logits_by_hand(run, Path(run.content["model"]["name"].removeprefix("local-dir:")))
        inside = torch.isin(labels, torch.tensor(targets))
        for (model, head), logits in {
            ("specialist", "masked"): own,
            ("dense", "masked"): whole[:, targets],
            ("dense", "all"): whole,
        }.items():
            row, shares = rows[model, head], logits.double().softmax(1)
            predicted = logits.argmax(1) if head == "all" else torch.tensor(targets)[logits.argmax(1)]
            assert len(predicted.unique()) > 1, "an answer that never changes proves nothing"
            assert (row["n"], row["n_other"]) == (6, 3)
            assert row["top1"] == pytest.approx((predicted == labels)[inside].double().mean().item())
            assert row["top1_all_classes"] == pytest.approx((predicted == labels).double().mean().item())
            certain = (shares[:, targets] if head == "all" else shares).max(1).values
            energy = (logits[:, targets] if head == "all" else logits).double().logsumexp(1)
            assert row["auroc_max_softmax"] == pytest.approx(above(certain[inside], certain[~inside]))
            assert row["auroc_energy"] == pytest.approx(above(energy[inside], energy[~inside]))


@pytest.mark.parametrize("road", BOTH)
def test_every_random_draw_is_its_own(place: Path, tmp_path: Path, road: str) -> None:
    out = tmp_path / "out"
    run = Trial(content_of(road, place / "model", place / "images", out, baselines=["random"], random_draws=2), out)
    rows = [r for r in run.go("evaluate")["rows"] if (r["criterion"], r["recovery"]) == ("random", "none")]
    assert [r["seed"] for r in rows] == [0, 1]
    dense = vitprune.load(place / "model")
    found = []
    for row in rows:
        scores = random(families.ffn_sites(dense), seed=row["seed"])
        slim = vitprune.prune(dense, scores, keep=0.3, recovery="none", allocation="uniform")
        files = sorted(Path(run.content["data"]["path"]).rglob("*.png"))
        transform = create_transform(**resolve_model_data_config(dense), is_training=False)
        x = torch.stack([transform(Image.open(files[i]).convert("L")) for i in run.split["test"]])
        labels = torch.tensor([LABELS.index(files[i].parent.name) for i in run.split["test"]])
        found.append(slim(x).double().softmax(1)[torch.arange(len(x)), labels].mean().item())
    assert [r["mean_true_probability"] for r in rows] == pytest.approx(found, abs=1e-6)
    assert found[0] != found[1]


@pytest.mark.parametrize("road", [*BOTH, "groups"])
def test_oracle_rows_stay_out_of_the_honest_ones(
    runs: Callable[[str], Trial], place: Path, tmp_path: Path, road: str
) -> None:
    """With the paper's protocol beside it a run has the same honest rows and result, and the report's tables part them."""
    plain = runs(road)
    protocol = {"t": [1, 3], "nodes": 2, "probe_per_class": 3}
    out = tmp_path / "out"
    run = Trial(content_of(road, place / "model", place / "images", out, paper_protocol=protocol), out)
    rows = run.go("evaluate")["rows"]
    honest = [row for row in rows if row["protocol"] == "honest"]
    oracle = [row for row in rows if row["protocol"] == "oracle"]
    assert honest == plain.made["rows"] and run.made["result"] == plain.made["result"]
    assert sorted((r["criterion"], r["t"]) for r in oracle) == [(n, t) for n in ("activation", "jas") for t in (1, 3)]
    assert len(rows) == len(honest) + 4
    write_report(run.made, tmp_path / "report")
    page = Page((tmp_path / "report" / "report.html").read_text("utf-8"))
    tables = {caption: found for caption, found in page.tables.items() if caption.startswith("Honest rows")}
    write_report(plain.made, tmp_path / "plain")
    alone = Page((tmp_path / "plain" / "report.html").read_text("utf-8"))
    assert tables == {caption: found for caption, found in alone.tables.items() if caption.startswith("Honest rows")}
    assert len(next(t for c, t in page.tables.items() if c.startswith("Oracle"))) == 1 + len(oracle)


# ---- the identity, and the same again


@pytest.mark.parametrize("road", [r for r in ROADS if r != "every-criterion"])
@pytest.mark.sample(3)
def test_keeping_everything_is_the_identity(place: Path, tmp_path: Path, road: str) -> None:
    changed: Made = {"budget": {"macs": 1.0}} if "budget" in ROADS[road] else {"keep": 1.0}
    changed |= {"head": "all"} if "groups" in ROADS[road] else {}
    out = tmp_path / "out"
    run = Trial(content_of(road, place / "model", place / "images", out, baselines=[], **changed), out)
    made = run.go("evaluate")
    for group, result in (made.get("results") or {"": made["result"]}).items():
        dense = next(r for r in made["rows"] if r["criterion"] == "dense" and (r["group"] or "") == group)
        assert result["kept"] == 1.0 and result["mcnemar_p"] is None
        for key in ("top1", "mean_true_probability", "params", "macs"):
            assert result[key] == dense[key]
    x = torch.randn(3, 1, 28, 28)
    for folder in run.folders.values():
        assert torch.equal(vitprune.load(folder)(x), vitprune.load(place / "model")(x))


@pytest.mark.parametrize("road", FEW)
def test_the_same_recipe_elsewhere_gives_the_same_bytes(
    runs: Callable[[str], Trial], place: Path, tmp_path: Path, road: str
) -> None:
    """The model, the images and the results in other folders; and again in the same one."""
    run, out = runs(road), tmp_path / "out"
    for name in ("model", "images"):
        shutil.copytree(place / name, tmp_path / name, copy_function=shutil.copyfile)  # and written at another time
    other = Trial(content_of(road, tmp_path / "model", tmp_path / "images", out), out)
    other.go("evaluate")
    assert other.split == run.split
    assert other.weights() == run.weights()
    assert [r | {"keep": 0} for r in other.made["rows"]] == [r | {"keep": 0} for r in run.made["rows"]]
    if road in BOTH:
        before = other.weights()
        other.go("evaluate", force=True)
        assert other.weights() == before


@pytest.mark.parametrize("road", [*BOTH, "auto"])
@pytest.mark.sample(1)
def test_several_processes_leave_no_trace(runs: Callable[[str], Trial], place: Path, tmp_path: Path, road: str) -> None:
    """Two that share the discovery and two that decode."""
    out = tmp_path / "out"
    given = {"path": str(place / "images"), "workers": 2}
    run = Trial(content_of(road, place / "model", place / "images", out, data=given), out)
    run.go("prune", workers=2)
    assert run.weights() == runs(road).weights()
    assert run.made.get("choice", {}).get("chosen") == runs(road).made.get("choice", {}).get("chosen")


# ---- the ONNX file


@pytest.fixture(scope="module", name="exported")
def exported_fixture(runs: Callable[[str], Trial]) -> Callable[[str], Trial]:
    """Road → its run with ONNX files, watched; made when first asked for."""
    known: dict[str, Trial] = {}

    def of(road: str) -> Trial:
        if road not in known:
            run = runs(road)
            precisions = ["fp32", "int8"] if road in BOTH else ["fp32"]
            export = {"onnx": True, "latency_batches": [1], "precisions": precisions, "int8_floor_points": 100.0}
            known[road] = Trial(run.content | {"export": export}, run.out)
            with watching(known[road].seen) as watch:
                watch("beside")
                known[road].go("run")
        return known[road]

    return of


@pytest.mark.parametrize("road", [*BOTH, "groups"])
def test_what_the_export_makes_is_made_without_the_test_split(exported: Callable[[str], Trial], road: str) -> None:
    """int8 is calibrated and chosen, and a specialist's threshold set, on probe images."""
    run = exported(road)
    assert run.seen.beside <= set(run.split["probe"]) and run.seen.exam == set(run.split["test"])
    assert run.seen.beside


@pytest.mark.parametrize("road", [*BOTH, "groups"])
def test_the_onnx_file_agrees_with_the_folder_on_every_image(exported: Callable[[str], Trial], road: str) -> None:
    run = exported(road)
    assert all(check["passed"] for check in run.made["checks"] if "int8" not in check["name"])
    for folder in run.folders.values():
        expected, _ = logits_by_hand(run, folder)
        for size in (1, 4, 9):
            session = runtime.session(folder / "model.onnx")
            x = pixels(run, folder)
            found = np.concatenate([runtime.predict(session, x[i : i + size]) for i in range(0, 9, size)])
            np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)
    for row in run.made["export"]["files"]:
        assert row["agreement"]["n"] == 9


def pixels(run: Trial, folder: Path) -> np.ndarray:
    """Every image of the test split as the model takes it."""
    files = sorted(Path(run.content["data"]["path"]).rglob("*.png"))
    transform = create_transform(**resolve_model_data_config(vitprune.load(folder)), is_training=False)
    return np.stack([transform(Image.open(files[i]).convert("L")).numpy() for i in run.split["test"]])


@pytest.mark.parametrize("road", BOTH)
@pytest.mark.parametrize("wrong", [0, 4, 8], ids=["first", "middle", "last"])
@pytest.mark.sample(2)
def test_an_onnx_file_that_is_wrong_on_one_image_fails_its_check(
    exported: Callable[[str], Trial], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, road: str, wrong: int
) -> None:
    """Whichever it is, in whatever batch: the check looks at every image of the test split."""
    run = exported(road)
    target, predict_all = pixels(run, run.root)[wrong], runtime.predict
    shutil.copytree(run.out, tmp_path / "out")
    export = {"onnx": True, "latency_batches": [1]}
    other = Trial(run.content | {"out": str(tmp_path / "out"), "export": export}, tmp_path / "out")

    def mistaken(session: Any, images: np.ndarray) -> np.ndarray:
        logits = predict_all(session, images).copy()
        for i in np.flatnonzero((np.abs(images - target) < 1e-6).all((1, 2, 3))):
            logits[i] = np.roll(logits[i], 1)
        return logits

    monkeypatch.setattr(runtime, "predict", mistaken)
    monkeypatch.setattr(Batching, "batch", 2, raising=False)
    made = other.go("export")
    assert not all(check["passed"] for check in made["checks"])


@pytest.mark.parametrize("road", [*BOTH, "groups"])
def test_predict_names_what_the_model_says(exported: Callable[[str], Trial], road: str) -> None:
    """Every test image's name and probability are those of timm and torch on the folder, in the labels' own order."""
    run = exported(road)
    files = sorted(Path(run.content["data"]["path"]).rglob("*.png"))
    paths = [files[i] for i in run.split["test"]]
    for folder in run.folders.values():
        names = json.loads((folder / "config.json").read_text())["pretrained_cfg"]["label_names"]
        shares = logits_by_hand(run, folder)[0].double().softmax(1)
        for answer, share in zip(predict.predict(predict.open_model(folder), paths, 2, 4), shares, strict=True):
            best = share.argsort(descending=True)[:2].tolist()
            assert [entry["label"] for entry in answer["top"]] == [names[i] for i in best]
            assert [entry["probability"] for entry in answer["top"]] == pytest.approx(share[best].tolist(), abs=1e-4)


@pytest.mark.parametrize("road", BOTH)
@pytest.mark.sample(1)
def test_a_slower_slim_file_has_a_ratio_above_one(
    exported: Callable[[str], Trial], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, road: str
) -> None:
    """The ratio is the slim file's time over the dense one's, in the stage's record and in the result; the clock is ours."""
    run = exported(road)
    shutil.copytree(run.out, tmp_path / "out")
    export = {"onnx": True, "latency_batches": [32]}
    other = Trial(run.content | {"out": str(tmp_path / "out"), "export": export}, tmp_path / "out")
    interleaved = runtime.interleaved

    def slowed(runners: Any, images: np.ndarray, *args: Any, **options: Any) -> Any:
        now = 0.0

        def take(seconds: float) -> Callable[[np.ndarray], None]:
            def call(_: np.ndarray) -> None:
                nonlocal now
                now += seconds

            return call

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(runtime.time, "perf_counter", lambda: now)
            calls = {name: take({"dense": 0.25, "slim": 0.75}[name]) for name in runners}
            return interleaved(calls, images, *args, **options)

    monkeypatch.setattr(runtime, "interleaved", slowed)
    made = other.go("run")
    assert made["result"]["latency_ratio"] == pytest.approx(3)
    assert [row["ratio"] for row in made["latency"]] == pytest.approx([3])
