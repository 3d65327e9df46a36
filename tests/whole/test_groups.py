"""Class sets: found by similarity, pruned one by one, and told beside the dense model with the same head closed."""

from __future__ import annotations

import copy
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from conftest import make_tiny_vit
from small import FOLDERS, image_folder, model_folder, quicken, recipe_dict

import vitprune
from vitprune.core.errors import UserError
from vitprune.exam import open_set
from vitprune.model import classifier
from vitprune.recipe.recipe import Recipe
from vitprune.runs import pipeline
from vitprune.runs.stages import prune, specialists
from vitprune.see import groups as cluster


@pytest.fixture(scope="module", name="content")
def small_recipe(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("groups")
    return recipe_dict(model_folder(folder / "model"), image_folder(folder / "images"), folder / "out")


def run(content: dict[str, Any], out: Path, verb: str = "run", **changed: Any) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        quicken(patch)
        return pipeline.run(Recipe.model_validate({**content, "out": str(out), **changed}), verb)


# --- clusters


def test_clusters_are_those_of_average_linkage_by_hand():
    draw = np.random.default_rng(0)
    centres = draw.normal(size=(3, 8))
    of = [0, 1, 2, 1, 0, 2, 2]
    points = np.stack([centres[c] + 0.05 * draw.normal(size=8) for c in of])
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    similarity = unit @ unit.T
    clusters = [[i] for i in range(7)]
    while len(clusters) > 3:  # the two with the least mean distance become one
        pairs = itertools.combinations(range(len(clusters)), 2)
        a, b = min(pairs, key=lambda p: np.mean([1 - similarity[i, j] for i in clusters[p[0]] for j in clusters[p[1]]]))
        clusters[a] += clusters.pop(b)
    expected = sorted((sorted(c) for c in clusters), key=lambda c: c[0])
    assert cluster.groups(similarity, 3) == expected == [[0, 4], [1, 3], [2, 5, 6]]


def test_auto_groups_are_found_once_named_and_pruned(content, tmp_path):
    made = run(content, tmp_path, "prune", groups={"auto": 2})
    named = made["recipe"]["groups"]
    assert sorted(itertools.chain(*named.values())) == sorted(FOLDERS)
    assert list(named) == ["group-1", "group-2"]
    for group, members in named.items():
        assert vitprune.load(tmp_path / "tiny" / group)(torch.zeros(1, 1, 28, 28)).shape == (
            1, len(members) if len(members) > 1 else 3
        )  # fmt: skip
    again = run(content, tmp_path, "prune", groups={"auto": 2})
    assert again["recipe"]["groups"] == named
    assert [s["name"] for s in again["stages"] if not s["skipped"]] == []


def test_groups_that_cannot_be_are_refused_before_any_work(content, tmp_path):
    with pytest.raises(UserError, match="3 at most"):
        run(content, tmp_path, "prune", groups={"auto": 4})
    for wrong in ({"auto": 1}, {"auto": "two"}, {"auto": 2, "b": ["cross"]}):
        with pytest.raises(ValueError, match=r"groups|clusters"):
            Recipe.model_validate({**content, "groups": wrong})
    with pytest.raises(ValueError, match="not both"):
        Recipe.model_validate({**content, "groups": {"auto": 2}, "classes": ["cross"]})


# --- the table


@pytest.mark.parametrize(
    ("name", "how", "head"),
    [
        ("jas", "affine", "all"),
        ("jas", "layerwise", None),
        ("fisher-obs", "affine", "own"),
        ("fisher-obs", "layerwise", "all"),
    ],
)
@pytest.mark.sample(2)
def test_the_table_stands_beside_the_dense_model_with_its_head_closed(content, tmp_path, name, how, head):
    groups = {"two": ["circle", "cross"], "one": ["square", "cross"]}
    made = run(content, tmp_path, "evaluate", groups=groups, recovery=how, allocation="auto", head=head,
               criterion={"name": name, "t": 3, "nodes": 2, "probe_per_class": 4})  # fmt: skip
    rows = made["specialists"]
    every = itertools.product(groups, ("dense", "generic", "specialist"), ("all", "masked"))
    narrowed = ("specialist", "all") if head != "all" else ()
    assert [(r["group"], r["model"], r["head"]) for r in rows] == [row for row in every if row[1:] != narrowed]
    dense = {r["group"]: r for r in made["rows"] if r["criterion"] == "dense" and r["head"] == "masked"}
    for row in rows:
        assert row["n"] == 4 and row["n_other"] == 2
        assert row["top1_all_classes"] <= 1
        if (row["model"], row["head"]) == ("dense", "masked"):
            assert row["top1"] == dense[row["group"]]["top1"]
        if row["model"] == "specialist":
            twin = next(
                r for r in made["rows"] if (r["group"], r["head"], r["criterion"], r["recovery"])
                == (row["group"], row["head"], name, how)
            )  # fmt: skip
            assert row["top1"] == twin["top1"]
    assert {r["allocation"] for r in made["rows"] if r["criterion"] == name} == {
        "global" if name == "fisher-obs" else "uniform"
    }


def test_without_groups_there_is_no_table(content, tmp_path):
    assert "specialists" not in run(content, tmp_path, "evaluate")


def test_figures_by_hand():
    draw = np.random.default_rng(2)
    logits, labels, targets = draw.normal(size=(40, 5)), draw.integers(0, 5, 40), [1, 3]
    for masked in (False, True):
        found = specialists.figures(logits, labels, targets, masked=masked)
        hits, scores = [], {"max_softmax": [], "energy": []}
        for row in logits:
            allowed = targets if masked else range(5)
            hits.append(max(allowed, key=lambda c, row=row: row[c]))
            total = sum(np.exp(row[c]) for c in allowed)
            scores["max_softmax"].append(max(np.exp(row[c]) / total for c in targets))
            scores["energy"].append(np.log(sum(np.exp(row[c]) for c in targets)))
        inside = np.isin(labels, targets)
        right = np.array(hits) == labels
        assert found["top1"] == pytest.approx(right[inside].mean())
        assert found["top1_all_classes"] == pytest.approx(right.mean())
        for name, values in scores.items():
            own, other = np.array(values)[inside], np.array(values)[~inside]
            above = np.mean([(a > b) + 0.5 * (a == b) for a in own for b in other])
            assert found[f"auroc_{name}"] == pytest.approx(above)
            let_in = sorted(own, reverse=True)[: int(np.ceil(0.95 * len(own)))][-1]
            assert found[f"fpr95_{name}"] == pytest.approx((other >= let_in).mean())


def test_open_set_of_one_kind_only_says_nothing():
    assert open_set.open_set(np.ones(3), np.ones(0)) == (None, None)
    assert open_set.open_set(np.array([2.0, 3.0]), np.array([0.0, 1.0])) == (1.0, 0.0)
    assert open_set.open_set(np.ones(4), np.ones(4)) == (0.5, 1.0)


# --- the head


def test_a_narrowed_head_gives_the_same_logits_for_its_classes():
    model, images = make_tiny_vit(), torch.randn(3, 1, 28, 28, dtype=torch.float64)
    narrow = copy.deepcopy(model)
    classifier.narrow(narrow, [3, 0])
    assert narrow.num_classes == narrow.head.out_features == 2
    torch.testing.assert_close(narrow(images), model(images)[:, [3, 0]])
    wide = classifier.widen(narrow(images).numpy(), [3, 0], 5)
    assert wide.shape == (3, 5) and np.isfinite(wide).all()
    np.testing.assert_array_equal(wide[:, [3, 0]], narrow(images).numpy())
    assert (wide[:, [1, 2, 4]] <= wide[:, [3, 0]].min(1, keepdims=True) - 99).all()
    assert classifier.widen(wide, [0], 5) is wide


def test_a_head_without_rows_is_refused_and_left():
    model = make_tiny_vit()
    model.head = torch.nn.Sequential(model.head)
    with pytest.raises(UserError, match="Sequential without a row per class; take head: all"):
        classifier.narrow(model, [0])
    assert model.num_classes == 5


def test_a_specialist_tells_its_own_classes_only(content, tmp_path):
    """Checkpoint, ONNX metadata, exam and the report's row agree that the other outputs are gone."""
    groups = {"two": ["circle", "cross"]}
    made = run(content, tmp_path, groups=groups, keep=1.0, baselines=[], export={"latency_batches": [1]})
    folder = tmp_path / "tiny" / "two"
    config = json.loads((folder / "config.json").read_text())
    assert config["num_classes"] == 2 and config["pretrained_cfg"]["label_names"] == groups["two"]
    entries = {p.key: p.value for p in onnx.load(folder / "model.onnx").metadata_props}
    assert json.loads(entries["labels"]) == groups["two"] and json.loads(entries["open_set"])["outputs"] == [0, 1]
    exported = made["export"]["files"][0] if "files" in made["export"] else made["export"]["two"]["files"][0]
    assert made["result"]["head"] == "masked" and exported["top1"] == made["result"]["top1"]
    dense = next(r for r in made["rows"] if r["criterion"] == "dense" and r["head"] == "masked")
    assert made["result"]["top1"] == dense["top1"] and made["result"]["mcnemar_p"] is None
    kept = run(content, tmp_path, groups=groups, keep=1.0, baselines=[], head="all", export={"latency_batches": [1]})
    assert json.loads((folder / "config.json").read_text())["num_classes"] == 3
    assert kept["result"]["head"] == "all" and kept["result"]["top1"] <= dense["top1"]


def test_a_head_that_cannot_be_narrowed_is_refused_before_any_work(content, tmp_path, monkeypatch):
    monkeypatch.setattr(classifier, "_classifier", lambda model: {"head": torch.nn.Bilinear(2, 2, 5)})
    with pytest.raises(UserError, match="Bilinear without a row per class; take head: all"):
        run(content, tmp_path, groups={"two": ["circle", "cross"]})
    assert not list((tmp_path / "tiny").rglob("*.safetensors"))
    run(content, tmp_path, "split", groups={"two": ["circle", "cross"]}, head="all")


def test_rounds_are_given_to_the_general_model_too(content, tmp_path):
    """Like with like: the model for all classes is cut in as many rounds as the specialists it stands beside."""
    groups = {"a": ["circle", "cross"], "b": ["square", "cross"]}
    criterion = {"name": "variance", "probe_per_class": 100}
    seen: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        cut = prune.main_mask
        patch.setattr(specialists, "main_mask", lambda *args: seen.append(args[1:]) or cut(*args))
        run(content, tmp_path, "evaluate", groups=groups, rounds=2, criterion=criterion, baselines=[])
    assert seen == [(None, [0, 1, 2])]
    assert not list((tmp_path / "tiny" / "stages" / "prune").glob("round-*"))  # a round's discovery is not left behind
