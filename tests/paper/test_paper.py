"""Table 1: paths, their scores and interventions against the model written out by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import torch
from small import image_folder, model_folder, recipe_dict
from torch import Tensor
from typer.testing import CliRunner

from vitprune.cli import app
from vitprune.core.errors import UserError
from vitprune.core.progress import Reporter
from vitprune.criteria.attribution.settings import Jas
from vitprune.model import families
from vitprune.paper import figure6, table1, tables
from vitprune.recipe import parse, recipe
from vitprune.runs import pipeline
from vitprune.runs.state.run import Run

LABELS = torch.tensor([3, 1, 4])


@pytest.mark.parametrize("factor", [0.0, 1.0, 2.0])
def test_an_intervention_multiplies_the_paths_units_of_the_class_token(tiny_vit, make_images, factor):
    model, images = tiny_vit(reg_tokens=1, init_values=0.2), make_images(3)
    units = torch.tensor([[[1], [4], [9]], [[0], [0], [31]], [[7], [8], [3]]])
    found = figure6.intervened(model, families.ffn_sites(model), images, units, factor)
    vit = reference.Vit(model)
    for row, image in enumerate(images):

        def edit(i: int, hidden_TN: Tensor, row: int = row) -> Tensor:
            out = hidden_TN.clone()
            out[0, units[row, i, 0]] *= factor
            return out

        torch.testing.assert_close(found[row], vit(image, edit))
    if factor == 1:
        torch.testing.assert_close(found, model(images))


def test_paths_are_the_best_unit_of_every_block(tiny_vit, make_images):
    model, images, how = tiny_vit(), make_images(3), Jas(quadrature="right", nodes=3)
    sites = families.ffn_sites(model)
    own = figure6.paths_of("jas", model, sites, images, LABELS, how)
    _, routes = reference.jas(model, images, LABELS.tolist(), 1, 3)
    assert own.tolist() == routes
    active = figure6.paths_of("activation", model, sites, images, LABELS, how)
    for row, image in enumerate(images):
        assert active[row, :, 0].tolist() == [int(h[0].argmax()) for h in reference.Vit(model).hidden(image)]


def test_the_row_of_a_method() -> None:
    p, hit = np.array([0.5, 0.2, 0.8, 0.1]), np.array([True, False, True, False])
    found = {
        "jas": np.array([1.0, 2.0, 3.0, 4.0]),
        "removal p": np.array([0.25, 0.1, 0.4, 0.1]),
        "removal hit": np.array([False, False, True, False]),
        "enhancement p": np.array([1.0, 0.3, 0.8, 0.2]),
        "enhancement hit": np.array([True, True, True, False]),
    }
    row = figure6._row("x", "image", found, hit, p)
    assert row["jas"] == 2.5
    assert row["removal"]["accuracy_deviation_points"] == pytest.approx(-25)
    assert row["removal"]["probability_deviation_mean"] == pytest.approx((-0.5 - 0.5 - 0.5 + 0) / 4)
    assert row["removal"]["probability_deviation_median"] == pytest.approx(-0.5)
    assert row["removal"]["mean_probability_deviation_points"] == pytest.approx(100 * (0.85 - 1.6) / 4)
    assert row["enhancement"]["accuracy_deviation_points"] == pytest.approx(25)
    assert row["enhancement"]["probability_deviation_mean"] == pytest.approx((1 + 0.5 + 0 + 1) / 4)


def test_the_histogram_counts_every_image_between_its_edges() -> None:
    deviation = np.array([-1.0, -0.5, -1e-4, 0.0, 2e-4, 0.03, 0.031, 9.9, 1e6])
    edges = np.linspace(np.arcsinh(-1000), np.arcsinh(10_000), 71)
    expected = [0] * 70
    for d in deviation:
        u = min(np.arcsinh(d / 1e-3), edges[-1])
        expected[max(i for i in range(70) if edges[i] <= u)] += 1
    assert figure6.histogram(deviation).tolist() == expected


@pytest.fixture
def content(tmp_path: Path) -> dict[str, Any]:
    made = recipe_dict(model_folder(tmp_path / "m"), image_folder(tmp_path / "i", 10), tmp_path / "out")
    return made | {"paper": {"criteria": ["activation", "influence-gradient", "jas"]}}


def test_a_whole_table_by_hand(content: dict[str, Any], tmp_path: Path) -> None:
    made = tables.run(recipe.Recipe.model_validate(content), device="cpu")
    assert made["n"] == 6 and [row["criterion"] for row in made["rows"]] == content["paper"]["criteria"]
    assert json.loads((tmp_path / "out/tiny/paper-table-1.json").read_text()) == made
    assert "| jas |" in (tmp_path / "out/tiny/paper-table-1.md").read_text()
    for row in made["rows"]:
        assert row["units"] == "image" and len(made["deviation_edges"]) == 71
        assert all(sum(row[kind]["probability_deviation_counts"]) == 6 for kind in figure6.FACTORS)
    drawing = (tmp_path / "out/tiny/paper-table-1.svg").read_text()
    assert drawing.startswith("<?xml") and all(name in drawing for name in ("removal", "enhancement", "quartiles"))
    assert tables._svg(made) == drawing
    few = content | {"paper": {"criteria": ["activation"], "images_per_class": 1}}
    assert tables.run(recipe.Recipe.model_validate(few), device="cpu")["n"] == 3


def test_the_verb_and_its_refusals(content: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text(json.dumps(content))
    done = CliRunner().invoke(app.app, ["paper", str(path), "--device", "cpu", "--json"])
    assert done.exit_code == 0 and len(json.loads(done.stdout)["rows"]) == 3
    assert "removal" in CliRunner().invoke(app.app, ["paper", str(path), "--device", "cpu"]).stdout
    refused = (
        (None, "no `paper` section"),
        ({"criteria": ["random"]}, "no path"),
        ({"criteria": ["variance"]}, "no path"),
        ({"criteria": ["joint-gates"], "units": ["frequency"]}, "ranks by its mean"),
    )
    for spec, reason in refused:
        with pytest.raises(UserError, match=reason):
            tables.run(recipe.Recipe.model_validate(content | {"name": "no", "paper": spec}), device="cpu")
    assert not (tmp_path / "out/no/stages").exists(), "work was done before the refusal"


def test_a_table_by_the_paths_of_the_classes(content: dict[str, Any], tmp_path: Path) -> None:
    """The path is that of the image's true class, from the probe split."""
    spec = {"criteria": ["activation"], "units": ["frequency", "mode-per-rank"]}
    content["criterion"] |= {"name": "activation", "t": 1}
    made = recipe.Recipe.model_validate(content | {"paper": spec})
    rows = {row["units"]: row for row in tables.run(made, device="cpu")["rows"]}
    assert set(rows) == {"frequency", "mode-per-rank"}
    with Run.open(made, "cpu", Reporter(quiet=True)) as run:
        vit = reference.Vit(run.loaded.model)
        x, y = next(run.images.batches(run.split.probe, 99))
        picked = {
            c: [[int(h[0].argmax()) for h in vit.hidden(i)] for i, of in zip(x, y, strict=True) if of == c]
            for c in range(3)
        }
        modes = {
            c: [min(own, key=lambda u: (-own.count(u), u)) for own in zip(*of[:4], strict=True)]
            for c, of in picked.items()
        }
        changes = []
        x, y = next(run.images.batches(run.split.test, 99))
        for image, label in zip(x, y.tolist(), strict=True):

            def remove(i: int, hidden_TN: Tensor, label: int = label) -> Tensor:
                out = hidden_TN.clone()
                out[0, modes[label][i]] = 0
                return out

            before, after = (vit(image, edit).softmax(-1)[label] for edit in (reference.unchanged, remove))
            changes.append(float(after - before))
    found = rows["mode-per-rank"]["removal"]["mean_probability_deviation_points"]
    assert found == pytest.approx(100 * np.mean(changes), abs=1e-4)


PAPER = sorted(path.stem for path in (parse.bundled_folder() / "paper").glob("*.yaml"))


@pytest.mark.parametrize("name", PAPER)
def test_the_bundled_table_recipes(name: str) -> None:
    path = parse.bundled_folder() / "paper" / f"{name}.yaml"
    made, head = parse.load(path), path.read_text().split("version:")[0]
    rule = made.paper_protocol.quadrature if made.paper_protocol else made.criterion.how("jas").quadrature
    table = name.replace("table3", "figure6").replace("table", "table-").replace("figure", "figure-")
    assert made.paper is not None and made.paper.table == table and rule == "right"
    assert made.name == ("paper-classes" if name in ("figure4", "figure5") else f"paper-{name}")
    assert head.startswith(f"# vitprune paper recipes/paper/{name}.yaml\n") and "# Cost: " in head
    expected = name.replace("table", "table-").replace("figure", "figure-")
    assert f"Expected: benchmarks/results/paper-{expected}-bundled." in head and "recipes/imagenet-vit-b16.yaml" in head


def test_every_table_of_the_paper_has_a_recipe() -> None:
    assert PAPER == ["figure4", "figure5", "figure6", "table1", "table2", "table3"]


# ---- Figure 6 and Table 3


def test_an_exact_share_of_the_others_is_zeroed() -> None:
    keep = torch.zeros(3, 23, dtype=torch.bool)
    keep[0, :3] = keep[1, 4:6] = keep[2, 22] = True
    for share in (0.0, 0.1, 0.5, 1.0):
        made = table1.zeroed_share(keep, share, torch.Generator().manual_seed(0))
        assert (made | ~keep).all(), "a unit of the mask was zeroed"
        for row in range(3):
            others = 23 - int(keep[row].sum())
            assert int((~made[row]).sum()) == round(share * others)
    first, again = (table1.zeroed_share(keep, 0.5, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, again) and not torch.equal(first[0, 3:], first[1, 3:])


def test_the_grid_is_the_papers_protocol(content: dict[str, Any], tmp_path: Path) -> None:
    """p = 1 over all blocks is the oracle row of a run; p = 0 and dense are the same; depth counts blocks."""
    spec = {"table": "figure-6", "p": [0.0, 0.5, 1.0], "depth": [1, 2]}
    protocol = {"t": [1, 3], "nodes": 3, "probe_per_class": 4}
    whole = content | {"paper": spec, "paper_protocol": protocol}
    made = tables.run(recipe.Recipe.model_validate(whole), device="cpu")
    rows = {(r["criterion"], r["t"], r["p"], r["depth"]): r for r in made["rows"]}
    assert len(rows) == len(made["rows"]) == 2 * 2 * 3 * 2 and {r["protocol"] for r in made["rows"]} == {"oracle"}
    for key, row in rows.items():
        if key[2] == 0:
            assert row["top1"] == made["top1"]
            assert row["mean_true_probability"] == pytest.approx(made["mean_true_probability"], rel=1e-6)
    report = pipeline.run(
        recipe.Recipe.model_validate(whole | {"name": "run", "paper": None}), "evaluate", device="cpu"
    )
    for row in report["rows"]:
        if row["protocol"] == "oracle":
            own = rows[row["criterion"], row["t"], 1.0, 2]
            assert own["top1"] == row["top1"]
            assert own["mean_true_probability"] == pytest.approx(row["mean_true_probability"], rel=1e-6)
    probabilities = {rows["jas", 1, 1.0, d]["mean_true_probability"] for d in (1, 2)}
    assert len(probabilities) == 2
    text = (tmp_path / "out/tiny/paper-figure-6.md").read_text()
    assert "ORACLE-ROUTED" in text and text.count("| jas |") == 12
    shared = tables.run(
        recipe.Recipe.model_validate(whole | {"out": str(tmp_path / "shared")}), device="cpu", workers=2
    )
    assert shared["rows"] == made["rows"] and not (tmp_path / "shared/tiny/stages/paper").exists()


def test_a_grid_that_cannot_be_is_refused(content: dict[str, Any]) -> None:
    for changed in (
        {"paper": {"table": "figure-6"}},
        {"paper": {"table": "figure-6", "depth": [9]}, "paper_protocol": {"t": [1], "nodes": 2, "probe_per_class": 2}},
    ):
        with pytest.raises(UserError, match="paper"):
            tables.run(recipe.Recipe.model_validate(content | changed), device="cpu")
