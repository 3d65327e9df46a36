"""Figures 4 and 5: counts of a whole discovery, done again from each image's own scores."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import torch
from small import FOLDERS, image_folder, model_folder, recipe_dict

from vitprune.core.errors import UserError
from vitprune.core.progress import Reporter
from vitprune.criteria.settings import Nothing
from vitprune.paper import figures4_5, protocol, tables
from vitprune.recipe import experiments, recipe
from vitprune.runs.state.run import Run


@pytest.fixture
def content(tmp_path: Path) -> dict[str, Any]:
    made = recipe_dict(model_folder(tmp_path / "m"), image_folder(tmp_path / "i", 10), tmp_path / "out")
    return made | {"criterion": {"name": "activation", "t": 2, "probe_per_class": 6}, "baselines": []}


def picked(content: dict[str, Any]) -> dict[str, list[list[list[int]]]]:
    """Class → image → block → the two best units, best first, by the model written out by hand."""
    made: dict[str, list[list[list[int]]]] = {}
    with Run.open(recipe.Recipe.model_validate(content), "cpu", Reporter(quiet=True)) as run:
        vit = reference.Vit(run.loaded.model)
        for c, name in enumerate(FOLDERS):
            index = [i for i in run.split.probe if run.source.class_of[i] == c][:6]
            x, _ = next(run.images.batches(np.array(index), 6))
            made[name] = [[h[0].topk(2).indices.tolist() for h in vit.hidden(image)] for image in x]
    return made


def test_figure_4(content: dict[str, Any], tmp_path: Path) -> None:
    spec = {"table": "figure-4", "units": ["frequency", "mode-per-rank"], "classes": ["square", "circle"]}
    record = tables.run(recipe.Recipe.model_validate(content | {"paper": spec}), device="cpu")
    of_class = picked(content)
    assert [row["class"] for row in record["rows"]] == ["square", "circle"] and record["n"] == 18
    for row in record["rows"]:
        own = of_class[row["class"]]
        assert row["images"] == 6
        for block in range(2):
            pooled = Counter(unit for image in own for unit in image[block])
            assert dict(row["selected"][block]) == dict(pooled)
            most = row["frequency"]["path"][block]
            assert pooled[most] == max(pooled.values())
            assert row["frequency"]["share_of_images"][block] == pytest.approx(pooled[most] / 6)
            first = Counter(image[block][0] for image in own)
            mode = row["mode-per-rank"]["path"][block]
            assert mode == min(u for u, n in first.items() if n == max(first.values()))
            assert row["mode-per-rank"]["share_of_images"][block] == pytest.approx(pooled[mode] / 6)
    root = tmp_path / "out/tiny"
    assert json.loads((root / "paper-figure-4.json").read_text()) == record
    assert (root / "paper-figure-4.md").read_text().count("| square |") == 2
    drawing = (root / "paper-figure-4.svg").read_text()
    assert all(word in drawing for word in ("square", "circle", "index of the hidden unit", "mode-per-rank"))
    assert tables._svg(record) == drawing


def test_figure_5(content: dict[str, Any], tmp_path: Path) -> None:
    spec = {"table": "figure-5", "classes": ["cross"]}
    record = tables.run(recipe.Recipe.model_validate(content | {"paper": spec}), device="cpu")
    flat = {}
    for name, own in picked(content).items():
        matrix = np.zeros((2, 64))
        for image in own:
            for block in range(2):
                matrix[block, image[block]] += 1
        flat[name] = (matrix / matrix.sum(1, keepdims=True)).ravel()
    assert sorted(record["classes"]) == sorted(FOLDERS)
    for i, a in enumerate(record["classes"]):
        for j, b in enumerate(record["classes"]):
            cosine = flat[a] @ flat[b] / np.linalg.norm(flat[a]) / np.linalg.norm(flat[b])
            assert record["similarity"][i][j] == pytest.approx(cosine, abs=1e-4)
    (row,) = record["rows"]
    others = sorted(
        (name for name in FOLDERS if name != "cross"), key=lambda n: -flat[n] @ flat["cross"] / np.linalg.norm(flat[n])
    )
    assert row["most_alike"][0][0] == others[0] and row["least_alike"][0][0] == others[-1]
    matrix = np.zeros((2, 64))
    for block, pairs in enumerate(row["utilisation"]):
        for unit, share in pairs:
            matrix[block, unit] = share
    np.testing.assert_allclose(matrix.ravel(), flat["cross"], atol=1e-4)
    drawing = (tmp_path / "out/tiny/paper-figure-5.svg").read_text()
    assert "cosine of the utilisation matrices" in drawing and tables._svg(record) == drawing
    assert "| cross |" in (tmp_path / "out/tiny/paper-figure-5.md").read_text()


def test_strips_show_the_most_used_unit_of_a_column() -> None:
    wide = figures4_5.strips([[[0, 0.2], [1, 0.5], [383, 0.3]], []], [384, 384])
    assert wide.shape == (2, 96) and wide[0, 0] == 0.5 and wide[0, 95] == 0.3 and wide.sum() == 0.8
    assert figures4_5.strips([[[3, 1.0]]], [5]).tolist() == [[0, 0, 0, 1.0, 0]]


def test_class_masks_by_mode_per_rank(content: dict[str, Any]) -> None:
    """What the oracle keeps is the set of the modes; where one unit takes two ranks it is one unit fewer."""
    spec = {"table": "figure-4"}
    made = recipe.Recipe.model_validate(content | {"paper": spec})
    tables.run(made, device="cpu")
    of_class = picked(content)
    with Run.open(made, "cpu", Reporter(quiet=True)) as run:
        source = protocol.Source("activation", 2, Nothing(), 6, "mode-per-rank")
        keep = protocol.class_masks(run, source)
        for name, own in of_class.items():
            output = run.classes.targets([name])[0]
            for block in range(2):
                modes = set()
                for rank in range(2):
                    there = Counter(image[block][rank] for image in own)
                    modes.add(min(u for u, n in there.items() if n == max(there.values())))
                assert set(torch.nonzero(keep[block][output]).flatten().tolist()) == modes


def test_what_cannot_be_drawn_is_refused(content: dict[str, Any]) -> None:
    refused = (
        ({"criterion": {"name": "magnitude-l1"}}, {"table": "figure-4"}, "no paths"),
        ({"criterion": {"name": "mean-activation", "t": 2}}, {"table": "figure-5"}, "no paths"),
        ({"classes": ["circle", "cross"]}, {"table": "figure-4", "classes": ["square"]}, "not among"),
        ({"classes": ["circle"]}, {"table": "figure-5"}, "the recipe has one"),
        ({}, {"table": "figure-5", "classes": ["sqare"]}, "not a class"),
    )
    for changed, spec, reason in refused:
        with pytest.raises(UserError, match=reason):
            tables.run(recipe.Recipe.model_validate(content | changed | {"paper": spec}), device="cpu")
    for table in ("table-2", "figure-4", "figure-5", "figure-6"):
        with pytest.raises(ValueError, match="for table-1"):
            experiments.Paper(table=table, units=["image"])  # type: ignore[arg-type]
