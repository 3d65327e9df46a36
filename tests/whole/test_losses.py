"""`budget: {loss_points: …}`: each probe image is judged once by a model that never saw it, and the smallest model within the
loss is made; the test split plays no part."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from small import FOLDERS, image_folder, model_folder, picture, quicken, recipe_dict, tiny_model
from timm.data import create_transform, resolve_model_data_config

import vitprune
from vitprune.core.errors import UserError
from vitprune.core.progress import Reporter
from vitprune.exam import paired
from vitprune.images.batches import Images
from vitprune.images.sources.folder import Folder
from vitprune.model import size
from vitprune.recipe.parts import Whole
from vitprune.recipe.recipe import Recipe
from vitprune.runs import pipeline
from vitprune.runs.results import loss_search, losses
from vitprune.runs.state.run import Run

Made = dict[str, Any]
SHARES = (0.8, 0.5, 0.3)


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """Whole runs in a moment, and few shares to try."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        quicken(patch)
        patch.setattr(loss_search, "SHARES", SHARES)
        yield


@pytest.fixture(scope="module", name="content")
def small_recipe(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A tiny model whose answers differ between images, right or wrong."""
    place = tmp_path_factory.mktemp("losses")
    folder, images = model_folder(place / "model"), image_folder(place / "images", 14)
    model = vitprune.load(folder)
    transform = create_transform(**resolve_model_data_config(model), is_training=False)
    mean = model(torch.stack([transform(Image.open(p).convert("L")) for p in sorted(images.rglob("*.png"))])).mean(0)
    weights = load_file(folder / "model.safetensors")
    weights["head.bias"] -= mean
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    made = recipe_dict(folder, images, place / "out", criterion={"probe_per_class": 100}, baselines=[])
    del made["keep"], made["recovery"]
    return made | {"budget": {"loss_points": 60.0}}


def go(content: Made, out: Path, verb: str = "prune", workers: int = 1, **changed: Any) -> Made:
    recipe = Recipe.model_validate({**content, "out": str(out), **changed})
    return pipeline.run(recipe, verb, device="cpu", workers=workers)


def opened(content: Made, out: Path, **changed: Any) -> Run:
    made = Run.join(Recipe.model_validate({**content, "out": str(out), **changed}), "cpu", Reporter(quiet=True))
    made.adapt()
    return made


class Reads:
    """Which images are asked for, part by part of a search: to learn from, and to judge by."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.asked: set[int] = set()
        self.parts: list[tuple[float, int, set[int], set[int]]] = []
        batches, image = Images.batches, Folder.image
        part, logits_of = loss_search._part, loss_search.logits_of

        def watched(images: Any, index: np.ndarray, *more: Any, **options: Any) -> Any:
            self.asked.update(np.asarray(index).tolist())
            return batches(images, index, *more, **options)

        def read(source: Any, i: int) -> Any:
            self.asked.add(int(i))
            return image(source, i)

        def of_part(run: Run, group: str | None, item: list[Any]) -> Any:
            self.parts.append((item[0], item[1], set(), set()))
            return part(run, group, item)

        def judged(predict: Any, images: Any, index: np.ndarray, batch: int) -> Any:
            learnt, self.asked = self.asked, set()
            found = logits_of(predict, images, index, batch)
            self.parts[-1][2].update(learnt)
            self.parts[-1][3].update(self.asked)
            self.asked = set()
            return found

        patch.setattr(Images, "batches", watched)
        patch.setattr(Folder, "image", read)
        patch.setattr(loss_search, "_part", of_part)
        patch.setattr(loss_search, "logits_of", judged)


@pytest.fixture(scope="module", name="watched")
def watched_run(content: Made, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Made, Reads, set[int]]:
    """A run up to its slim model, what it read in the search, and what after it."""
    out = tmp_path_factory.mktemp("watched")
    go(content, out, "moments")  # decodes every image, and learns from the probe images
    with pytest.MonkeyPatch.context() as patch:
        reads = Reads(patch)
        made = go(content, out)
        return out / "tiny", made, reads, reads.asked


def split_of(root: Path) -> tuple[set[int], set[int]]:
    found = json.loads((root / "stages" / "split" / "split.json").read_text())
    return set(found["probe"]), set(found["test"])


def test_each_probe_image_is_judged_once_by_a_model_that_never_saw_it(
    watched: tuple[Path, Made, Reads, set[int]],
) -> None:
    root, _, reads, _ = watched
    probe, _ = split_of(root)
    shares = {share for share, *_ in reads.parts}
    assert len(shares) >= 2 and loss_search.DENSE in shares
    for share in shares:
        own = [part for part in reads.parts if part[0] == share]
        assert [fold for _, fold, *_ in own] == list(range(5))
        assert sorted(i for *_, judged in own for i in judged) == sorted(probe)
        for _, _, learnt, judged in own:
            assert not learnt & judged and judged
            assert learnt == (set() if share == loss_search.DENSE else probe - judged)


def test_neither_the_search_nor_the_pruning_reads_the_test_split(watched: tuple[Path, Made, Reads, set[int]]) -> None:
    root, _, reads, after = watched
    probe, test = split_of(root)
    assert len(test) == 9 and after and after <= probe
    assert all((learnt | judged) <= probe and not (learnt | judged) & test for *_, learnt, judged in reads.parts)


def test_other_test_images_give_the_same_share_and_model(
    content: Made, watched: tuple[Path, Made, Reads, set[int]], tmp_path: Path
) -> None:
    root, made, _, _ = watched
    images = Path(shutil.copytree(content["data"]["path"], tmp_path / "images"))
    files = sorted(images.rglob("*.png"))
    for i in split_of(root)[1]:
        picture((i + 1) % 3, 1000 + i).save(files[i])
    other = go(content, tmp_path / "out", data={"path": str(images)})
    assert other["losses"] == made["losses"]
    for name in ("model.safetensors", "masks.safetensors"):
        assert (tmp_path / "out" / "tiny" / name).read_bytes() == (root / name).read_bytes()


def test_what_is_told(content: Made, watched: tuple[Path, Made, Reads, set[int]]) -> None:
    root, made, reads, _ = watched
    (found,) = made["losses"]
    dense, slim = vitprune.load(content["model"]["name"].removeprefix("local-dir:")), vitprune.load(root)
    assert size.macs(slim) <= found["macs"] * size.macs(dense)
    assert (found["asked"], found["n"], found["folds"], found["group"]) == (60.0, len(split_of(root)[0]), 5, None)
    assert {one["macs"] for one in found["tried"]} | {1.0} == {share for share, *_ in reads.parts}
    for one in found["tried"]:
        assert one["loss_points"] == pytest.approx(100 * (one["lost"] - one["gained"]) / found["n"])
        assert one["bound_points"] == pytest.approx(100 * paired.upper(one["lost"], one["gained"], found["n"]))
        assert one["within"] == (one["bound_points"] <= 60)
    assert any(one["lost"] for one in found["tried"]), "a model that loses nothing proves nothing"
    assert found["within"] and any(losses.sentence(found) == note for note in made["notes"])
    told = json.loads((root / "config.json").read_text())["vitprune"]
    assert told["budget"] == {"loss_points": 60.0, "macs": found["macs"]} and told["keep"] is None


def test_the_model_is_that_of_the_share_itself(
    content: Made, watched: tuple[Path, Made, Reads, set[int]], tmp_path: Path
) -> None:
    """From the whole probe split, to the byte."""
    root, made, _, _ = watched
    go(content, tmp_path, budget={"macs": made["losses"][0]["macs"]})
    for name in ("model.safetensors", "masks.safetensors"):
        assert (tmp_path / "tiny" / name).read_bytes() == (root / name).read_bytes()


def test_a_fold_is_a_run_of_its_own(content: Made, watched: tuple[Path, Made, Reads, set[int]], tmp_path: Path) -> None:
    """As many hits as a plain run on folders of the same images has on its test split, dense and slim."""
    root, made, _, _ = watched
    share = made["losses"][0]["macs"]
    run = opened(content, root.parent)
    inner = loss_search.inside(run, None, share, 1)
    for part, index in (("probe", inner.split.probe), ("test", inner.split.test)):
        for i in index.tolist():
            file = Path(content["data"]["path"]) / run.source.names[i]
            (tmp_path / part / file.parent.name).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, tmp_path / part / file.parent.name / file.name)
    given = {"probe": str(tmp_path / "probe"), "test": str(tmp_path / "test")}
    rows = go(content, tmp_path / "out", "evaluate", data=given, budget={"macs": share})["rows"]
    for name, at, repair in (("dense", 1.0, "none"), ("fisher-obs", share, "layerwise+head")):
        row = next(r for r in rows if (r["criterion"], r["recovery"]) == (name, repair))
        hits = loss_search._part(run, None, [at, 1])["hits"]
        assert (int(hits.sum()), len(hits)) == (round(row["top1"] * row["n"]), row["n"])


def test_nothing_within_it_takes_the_nearest_to_dense_and_says_so(
    content: Made, watched: tuple[Path, Made, Reads, set[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what has been examined for another loss is not examined again, to the same figures."""
    root, made, _, _ = watched
    shutil.copytree(root.parent, tmp_path / "out")
    asked, part = [], loss_search._part

    def noted(run: Run, group: str | None, item: list[Any]) -> Any:
        asked.append(item[0])
        return part(run, group, item)

    monkeypatch.setattr(loss_search, "_part", noted)
    other = go(content, tmp_path / "out", budget={"loss_points": 0.0})
    (found,) = other["losses"]
    assert (found["macs"], found["within"]) == (0.8, False) and "NO share tried stays within it" in other["notes"][-1]
    before = {one["macs"] for one in made["losses"][0]["tried"]}
    assert set(asked) == {one["macs"] for one in found["tried"]} - before
    shared = [(a, b) for a in found["tried"] for b in made["losses"][0]["tried"] if a["macs"] == b["macs"]]
    assert shared and all(a | {"within": 0} == b | {"within": 0} for a, b in shared)
    slim = vitprune.load(tmp_path / "out" / "tiny")
    dense = tiny_model()
    assert 0.5 * size.macs(dense) < size.macs(slim) <= 0.8 * size.macs(dense)


def test_a_search_that_was_stopped_goes_on(
    content: Made, watched: tuple[Path, Made, Reads, set[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the fold where it was; one that has ended is not begun again, and what it needed no more is gone."""
    root, made, _, _ = watched
    part, done = loss_search._part, list[Any]()

    def stops(run: Run, group: str | None, item: list[Any]) -> Any:
        if len(done) == 7:
            raise KeyboardInterrupt
        done.append(item)
        return part(run, group, item)

    def noted(run: Run, group: str | None, item: list[Any]) -> Any:
        again.append(item)
        return part(run, group, item)

    monkeypatch.setattr(loss_search, "_part", stops)
    with pytest.raises(KeyboardInterrupt):
        go(content, tmp_path)
    again: list[Any] = []
    monkeypatch.setattr(loss_search, "_part", noted)
    assert go(content, tmp_path)["losses"] == made["losses"]
    assert again and not [item for item in again if item in done]
    assert len(again) + len(done) == 5 * (1 + len(made["losses"][0]["tried"]))
    assert (tmp_path / "tiny" / "model.safetensors").read_bytes() == (root / "model.safetensors").read_bytes()
    monkeypatch.setattr(loss_search, "_part", None)
    assert go(content, tmp_path)["losses"] == made["losses"]
    left = {path.name for path in (tmp_path / "tiny" / "stages" / "losses").iterdir()}
    assert left == {"all.json", "parts"}


@pytest.mark.slow
def test_several_processes_leave_no_trace(
    content: Made, watched: tuple[Path, Made, Reads, set[int]], tmp_path: Path
) -> None:
    root, made, _, _ = watched
    assert go(content, tmp_path, workers=2)["losses"] == made["losses"]
    assert (tmp_path / "tiny" / "model.safetensors").read_bytes() == (root / "model.safetensors").read_bytes()


def test_every_class_set_has_a_search_of_its_own_on_its_own_images(
    content: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its own outputs alone, as its model has; the general model beside the specialists has one too."""
    monkeypatch.setattr(loss_search, "SHARES", (0.6,))
    groups = {"two": ["circle", "cross"], "one": ["square", "cross"]}
    made = go(content, tmp_path, "evaluate", groups=groups)
    assert [(one["group"], one["n"]) for one in made["losses"]] == [("two", 22), ("one", 22)]
    run = opened(content, tmp_path, groups=groups)
    general = json.loads(losses.path_of(run, None).read_text())
    assert general["n"] == 33 and losses.settled(run, None) == Whole(macs=general["macs"])
    for one in made["losses"]:
        told = json.loads((tmp_path / "tiny" / one["group"] / "config.json").read_text())["vitprune"]
        assert told["budget"] == {"loss_points": 60.0, "macs": one["macs"]}
        targets = run.classes.sets()[one["group"]]
        inner = loss_search.inside(run, one["group"], 0.5, 0)
        assert set(run.images.labels[inner.split.test]) == set(targets)
        dense = loss_search._part(run, one["group"], [1.0, 0])["hits"]
        x, labels = next(run.images.batches(inner.split.test, 99))
        own = run.loaded.model(x)[:, targets].argmax(1)
        assert dense.tolist() == (torch.tensor(targets)[own] == labels).tolist()
    assert made["specialists"]


# ---- the search alone


@pytest.mark.parametrize("right", range(9))
def test_the_smallest_within_is_found(right: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever it is among the shares; everything larger that was tried is within too. With many workers more is tried at
    once, and nothing else is told."""
    shares = tuple(1 - (k + 1) / 10 for k in range(8))
    n = 1000

    jobs: list[list[float]] = []

    def hits(run: Any, group: Any, about: Any, asked: list[float]) -> list[np.ndarray]:
        jobs.append(asked)
        lost = [0 if share == 1 else 10 + 10 * (shares.index(share) >= right) for share in asked]
        return [np.arange(n) >= count for count in lost]

    monkeypatch.setattr(loss_search, "_allowed", lambda *_: shares)
    monkeypatch.setattr(loss_search, "_hits", hits)
    budget = SimpleNamespace(whole=Whole(loss_points=2.0))
    run: Any = SimpleNamespace(recipe=budget, reporter=Reporter(quiet=True), workers=1)
    found = loss_search._searched(run, None, [0], {})
    assert [len(job) for job in jobs] == [1] * (1 + len(found["tried"]))
    for workers, most in ((9, 5), (15, 3), (35, 3)):
        jobs.clear()
        run.workers = workers
        assert loss_search._searched(run, None, [0], {}) == found and len(jobs) <= most
        assert all(len(job) <= max(1, workers // loss_search.FOLDS) and len(set(job)) == len(job) for job in jobs)
    assert (found["macs"], found["within"]) == (shares[max(0, right - 1)], right > 0)
    assert all(one["within"] == (one["macs"] > shares[right] if right < 8 else True) for one in found["tried"])
    assert len(found["tried"]) <= 4


def test_only_shares_that_the_sites_allow_are_tried(content: Made, tmp_path: Path) -> None:
    """FFN units alone do not get to the smallest."""
    made = go(content, tmp_path, prune=["ffn"], budget={"loss_points": 100.0})
    assert [one["macs"] for one in made["losses"][0]["tried"]] == [0.8, 0.5]
    assert made["losses"][0]["macs"] == 0.5


def test_too_few_images_are_one_line(content: Made, tmp_path: Path) -> None:
    images = image_folder(tmp_path / "images", 2)
    assert {p.name for p in images.iterdir()} == set(FOLDERS)
    with pytest.raises(UserError, match=r"budget: loss_points: 5 folds need more probe images") as error:
        go(content, tmp_path / "out", data={"path": str(images)})
    assert "\n" not in str(error.value)


def test_the_library_has_no_labels_to_judge_by() -> None:
    model, x = tiny_model(), torch.randn(4, 1, 28, 28)
    scores = vitprune.discover(model, x, torch.zeros(4, dtype=torch.int64))
    with pytest.raises(UserError, match=r"^prune: budget loss_points: needs labels to judge by"):
        vitprune.prune(model, scores, budget={"loss_points": 1.0}, images=x)
