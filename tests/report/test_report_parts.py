"""What the report is made from: single test images, clustering, files named by a stranger's record, memory."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file, save_file
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform
from small import FOLDERS, LABELS, image_folder, model_folder, quicken, recipe_dict

from vitprune.core import memory
from vitprune.recipe import recipe
from vitprune.report import write_report
from vitprune.report.plots.similarity import cluster, matrix_of
from vitprune.report.reading.beside import Beside
from vitprune.runs import pipeline
from vitprune.runs.record import matrices
from vitprune.runs.stages.exams import examples

# ---- single test images


class Names:
    """As much of a run as the confusions need."""

    classes = SimpleNamespace(name=lambda output: "abc"[output])


def columns(true: Sequence[int], dense: Sequence[int], slim: Sequence[int]) -> dict[str, np.ndarray]:
    logits = [np.eye(3)[list(predicted)].astype(np.float32) * 2 for predicted in (dense, slim)]
    return examples.predictions(np.arange(len(true)) + 100, np.array(true), *logits)


def test_predictions_hold_the_argmax_and_the_probability_of_the_true_class() -> None:
    found = columns([0, 1, 2], [0, 1, 1], [0, 2, 2])
    assert found["image"].tolist() == [100, 101, 102]
    assert (found["dense"].tolist(), found["slim"].tolist()) == ([0, 1, 1], [0, 2, 2])
    hit, miss = np.exp(2) / (np.exp(2) + 2), 1 / (np.exp(2) + 2)
    np.testing.assert_allclose(found["dense_true_probability"], [hit, hit, miss], rtol=1e-6)
    np.testing.assert_allclose(found["slim_true_probability"], [hit, miss, hit], rtol=1e-6)
    np.testing.assert_allclose([found["dense_confidence"], found["slim_confidence"]], np.full((2, 3), hit), rtol=1e-6)


def test_the_worst_lost_most_and_nobody_who_gained_is_among_them() -> None:
    found = columns([0] * 30, [0] * 30, [0] * 30)
    found["dense_true_probability"] = np.linspace(0.9, 0.4, 30, dtype=np.float32)
    found["slim_true_probability"] = np.full(30, 0.5, np.float32)
    assert examples.worst_of(found).tolist() == list(range(20))
    found["dense_true_probability"][3:] = 0.5
    assert examples.worst_of(found).tolist() == [0, 1, 2]
    found["slim"][[2, 7]] = 1  # the one was right and is not; the other lost no probability by it
    assert examples.worst_of(found).tolist() == [2, 0, 1]


def test_confusions_are_counted_one_by_one() -> None:
    generator = np.random.default_rng(0)
    true, dense, slim = (generator.integers(0, 3, 200).tolist() for _ in range(3))
    rows = examples.confusions(Names(), columns(true, dense, slim))  # type: ignore[arg-type]
    expected = {}
    for a in range(3):
        for b in range(3):
            counts = [sum(t == a and p == b for t, p in zip(true, ps, strict=True)) for ps in (dense, slim)]
            if a != b and counts[0] != counts[1]:
                expected["abc"[a], "abc"[b]] = (*counts, counts[1] - counts[0])
    assert {(r["class"], r["taken_for"]): (r["dense"], r["slim"], r["change"]) for r in rows} == expected
    assert [abs(r["change"]) for r in rows] == sorted((abs(r["change"]) for r in rows), reverse=True)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run of two groups on tiny images, without ONNX."""
    folder = tmp_path_factory.mktemp("run")
    groups = {"first": ["circle", "cross"], "second": ["square", "cross"]}
    content = recipe_dict(model_folder(folder / "model"), image_folder(folder / "images"), folder, groups=groups)
    with pytest.MonkeyPatch.context() as patch:
        quicken(patch)
        record = pipeline.run(recipe.Recipe.model_validate(content))
    return folder / "tiny", json.loads((folder / "tiny" / "report.json").read_text()) | {"stages": record["stages"]}


def test_every_group_has_its_images_confusions_and_predictions(run: tuple[Path, dict[str, Any]]) -> None:
    root, record = run
    split = json.loads((root / "stages" / "split" / "split.json").read_text())
    for group, members in (("first", {"circle", "cross"}), ("second", {"square", "cross"})):
        found = load_file(root / record["predictions"][group])
        assert set(found["image"].tolist()) <= set(split["test"])
        assert {LABELS[label] for label in found["label"]} == members
        slim = next(
            r for r in record["rows"] if r["group"] == group and r.get("mcnemar_p") is None and r["head"] == "masked"
        )
        assert np.mean(found["slim"] == found["label"]) == slim["top1"]
        assert (
            sum(r["change"] for r in record["confusions"][group])
            == round((1 - slim["top1"]) * len(found["label"])) - (found["dense"] != found["label"]).sum()
        )
        for row in record["worst"][group]:
            assert row["class"] in members and row["dense_true_probability"] > row["slim_true_probability"]
            with (
                Image.open(root / row["thumbnail"]) as thumbnail,
                Image.open(root.parent / "images" / row["image"]) as image,
            ):
                assert thumbnail.tobytes() == image.tobytes()
    assert record["worst"]["first"] or record["worst"]["second"]


def test_the_page_of_a_run_of_groups(run: tuple[Path, dict[str, Any]]) -> None:
    root, record = run
    html = write_report(record, root)[2].read_text("utf-8")
    assert "Group first" in html and "Group second" in html and "exported second" in html
    assert html.count("<img") == sum(map(len, record["worst"].values()))
    assert html.count("Top-1 per class, sorted by change") >= 2
    assert "only the target classes" in html


def test_the_significance_of_a_row_is_that_of_its_images(run: tuple[Path, dict[str, Any]]) -> None:
    root, record = run
    for group in ("first", "second"):
        found = load_file(root / record["predictions"][group])
        hits = {name: found[name] == found["label"] for name in ("dense", "slim")}
        only, lost = (hits["dense"] & ~hits["slim"]).sum(), (hits["slim"] & ~hits["dense"]).sum()
        tail = sum(_choose(only + lost, k) for k in range(min(only, lost) + 1)) / 2.0 ** (only + lost)
        dense = next(r for r in record["rows"] if (r["criterion"], r["group"], r["head"]) == ("dense", group, "masked"))
        assert dense["mcnemar_p"] == pytest.approx(min(1.0, 2 * tail)) and dense["dense_p"] is None
        slim = next(
            r for r in record["rows"] if r["group"] == group and r.get("mcnemar_p") is None and r["head"] == "masked"
        )
        assert slim["dense_p"] == dense["mcnemar_p"] and slim["dense_only_right"] == [lost, only]
        answered = {int(output): name for output, name in record["outputs"][group].items()}
        assert answered == {label: LABELS[label] for label in np.unique([found[n] for n in ("label", "dense", "slim")])}
        for name in ("dense", "slim"):
            sure = found[f"{name}_confidence"]
            np.testing.assert_allclose(sure[hits[name]], found[f"{name}_true_probability"][hits[name]], rtol=1e-6)
            assert ((sure >= found[f"{name}_true_probability"] - 1e-6) & (sure <= 1)).all()
    assert record["labels"] == ["circle", "cross"]  # of the first group's own head


def _choose(n: int, k: int) -> int:
    return 1 if k == 0 else _choose(n, k - 1) * (n - k + 1) // k


def test_the_frequencies_are_those_of_the_paths(run: tuple[Path, dict[str, Any]]) -> None:
    root, record = run
    paths = record["paths"]
    assert paths["shown"] == ["square", "circle", "cross"] and sorted(paths["shown"]) == list(FOLDERS)
    blocks = list(load_file(root / paths["file"]).values())
    assert [block.shape for block in blocks] == [(3, 64)] * 2
    for index, name in enumerate(paths["shown"]):
        assert [int(block[index].argmax()) for block in blocks] == paths["most_frequent"][name]
        assert all(block[index].sum() == pytest.approx(paths["t"]) for block in blocks)


def test_every_stage_says_what_memory_it_took(run: tuple[Path, dict[str, Any]]) -> None:
    for stage in run[1]["stages"]:
        assert stage["peak_memory_mb"] is None or 0 <= stage["peak_memory_mb"] < 1e5


def test_a_large_picture_becomes_a_small_jpeg(run: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    class Big:
        folder = type("F", (), {"root": tmp_path})
        images = type("I", (), {"channels": 3})
        source = type("S", (), {"image": staticmethod(lambda _: Image.new("RGBA", (900, 300), "red"))})

    path = examples._thumbnail(Big, "boots", 7, 0)  # type: ignore[arg-type]
    assert path == tmp_path / "report-data" / "boots" / "worst-07.jpg"
    with Image.open(path) as image:
        assert (image.size, image.format) == ((96, 32), "JPEG")


def test_classes_that_lost_most_are_drawn() -> None:
    names = [f"c{i}" for i in range(20)]
    record = {"per_class": [{"class": name, "change_points": -float(i)} for i, name in enumerate(names)]}
    assert matrices._shown(names, record) == names[8:]
    assert matrices._shown(names[:12], record) == names[:12]
    assert matrices._shown(names, {}) == names[:12]


# ---- clustering


def test_the_dendrogram_is_scipys() -> None:
    points = np.random.default_rng(1).normal(size=(9, 4))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    matrix = points @ points.T
    found = cluster(matrix)
    distance = squareform(1 - matrix, checks=False)
    drawn = hierarchy.dendrogram(hierarchy.linkage(distance, "average", optimal_ordering=True), no_plot=True)
    assert found.order == drawn["leaves"]
    ours = sorted((h, *sorted(((left - 0) * 10 + 5, right * 10 + 5))) for left, right, _, _, h in found.joins)
    theirs = sorted((d[1], *sorted((i[0], i[2]))) for i, d in zip(drawn["icoord"], drawn["dcoord"], strict=True))
    np.testing.assert_allclose(ours, theirs)


def test_a_chain_of_thousands_is_no_recursion() -> None:
    place = np.cumsum(np.arange(1500.0))
    alike = 1 - np.abs(place[:, None] - place) / place[-1]
    found = cluster(alike)
    assert sorted(found.order) == list(range(1500)) and len(found.joins) == 1499


def test_gaps_in_a_matrix_are_unlike_and_wrong_shapes_are_none(tmp_path: Path) -> None:
    beside = Beside(tmp_path)
    gap = {"classes": ["a", "b", "c"], "matrix": [[1, None, 0.9], [None, 1, 0.1], [0.9, 0.1, 1]]}
    matrix = matrix_of(gap, beside)
    assert matrix is not None and np.isnan(matrix[0, 1])
    assert {tuple(cluster(matrix).order).index(c) for c in (0, 2)} in ({0, 1}, {1, 2})
    assert cluster(np.ones((1, 1))).order == [0]
    for wrong in ({"classes": ["a"], "matrix": [[1, 2]]}, {"classes": [], "matrix": []}, {"classes": ["a"]}):
        assert matrix_of(wrong, beside) is None
    save_file({"similarity": np.eye(2, dtype=np.float32)}, tmp_path / "s.safetensors")
    assert matrix_of({"classes": ["a", "b"], "file": "s.safetensors"}, beside) is not None
    assert matrix_of({"classes": ["a"], "file": "s.safetensors"}, beside) is None


# ---- files beside a record


def test_only_files_inside_the_folder_are_read(tmp_path: Path) -> None:
    inside, outside = tmp_path / "run", tmp_path / "secret.json"
    inside.mkdir()
    outside.write_text('{"a": 1}')
    (inside / "link.json").symlink_to(outside)
    (inside / "own.json").write_text('{"b": NaN}')
    (inside / "list.json").write_text("[1]")
    beside = Beside(inside)
    assert beside.json("own.json") == {"b": None}
    for name in (
        "../secret.json",
        str(outside),
        "link.json",
        "list.json",
        "gone",
        "",
        ".",
        "a\0b",
        None,
        3,
        ["own.json"],
    ):
        assert beside.json(name) == {}
        assert beside.arrays(name) == {}
        assert beside.picture(name) == ""
    assert Beside(None).read("own.json") is None


def test_a_picture_is_a_picture_and_small(tmp_path: Path) -> None:
    beside = Beside(tmp_path)
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    Image.new("L", (4, 4)).save(tmp_path / "a.jpg")
    (tmp_path / "a.svg").write_text("<svg onload='alert(1)'></svg>")
    (tmp_path / "big.png").write_bytes((tmp_path / "a.png").read_bytes() + bytes(100_000))
    assert beside.picture("a.png").startswith("data:image/png;base64,")
    assert beside.picture("a.jpg").startswith("data:image/jpeg;base64,")
    assert beside.picture("a.svg") == beside.picture("big.png") == ""


# ---- memory


def test_a_peak_inside_another_is_seen_by_both() -> None:
    cpu = torch.device("cpu")
    with memory.peak(cpu) as outer:
        early = np.ones(30_000_000)
        del early
        with memory.peak(cpu) as inner:
            late = np.ones(5_000_000)
            del late
    if outer[0] is None or inner[0] is None:
        pytest.skip("this system does not say how much memory was in use")
    assert 35 < inner[0] < 100
    assert 235 < outer[0] < 400
