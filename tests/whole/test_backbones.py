"""A backbone without a head goes the whole road: images without classes, costs, repair, exam, plan."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small import contents, image_folder, model_folder, picture, quicken, recipe_dict

import vitprune
from vitprune.cli import planning as cli_planning
from vitprune.cli import tables
from vitprune.core.errors import UserError
from vitprune.exam import features
from vitprune.model.inside import first_token
from vitprune.recipe import check
from vitprune.recipe.model_files import Found
from vitprune.recipe.recipe import Recipe
from vitprune.report.backbone import result as result_page
from vitprune.runs import pipeline
from vitprune.runs.results import planning
from vitprune.runs.state import preflight


def flat_folder(path: Path, count: int = 12) -> Path:
    path.mkdir(parents=True)
    for kind in range(3):
        for i in range(count):
            picture(kind, i).save(path / f"{kind}-{i:02d}.png")
    return path


def recipe(where: Path, images: Path, **changed: Any) -> Recipe:
    own: dict[str, Any] = {
        "model": {"name": f"local-dir:{where / 'model'}", "head": "none"}, "criterion": {"name": "fisher-obs"},
        "recovery": "layerwise", "baselines": ["variance", "random"], "budget": {"macs": 0.7}, "keep": None,
    }  # fmt: skip
    made = recipe_dict(where / "model", images, where / "runs") | own | changed
    return Recipe.model_validate({key: value for key, value in made.items() if value is not None})


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recipe, dict[str, Any], dict[str, Any]]:
    """A finished run on a flat folder: where, its recipe, the plan told before it, its record."""
    where = tmp_path_factory.mktemp("flat")
    model_folder(where / "model")
    made = recipe(where, flat_folder(where / "images"))
    with pytest.MonkeyPatch.context() as patch:
        quicken(patch)
        told = planning.outlook(made)
        return where, made, told, pipeline.run(made)


def test_a_flat_folder_goes_the_whole_road(flat: tuple[Path, Recipe, dict[str, Any], dict[str, Any]]) -> None:
    _, _, told, record = flat
    result, rows = record["result"], record["rows"]
    assert record["complete"] and all(one["passed"] for one in record["checks"])
    assert {one["name"] for one in record["checks"]} >= {"masked = sliced"}
    assert [row["criterion"] for row in rows] == ["dense", *["fisher-obs", "variance", "random"] * 2][:1] + [
        name for name in ("fisher-obs", "variance", "random") for _ in range(2)
    ]
    dense = rows[0]
    assert dense["cosine"] == pytest.approx(1) and dense["fvu"] == 0 and dense["neighbours"] == 1
    assert 0.5 < result["cosine"] < 1 and 0 < result["fvu"] < 1 and 0 < result["tokens_cosine"] < 1
    assert result["knn_top1"] is None and result["probe_top1"] is None
    assert record["backbone"]["features"] == "tokens" and "index" in record["backbone"]["index"]
    plan = told["plans"][0]
    assert plan["nats"] is None and plan["cosine_loss"] > 0
    assert result["predicted"] == {"cosine_loss": plan["cosine_loss"], "fvu": plan["fvu"]}
    assert sum(block["cosine_loss"] for block in plan["blocks"]) == pytest.approx(plan["cosine_loss"])
    assert 0.2 < result["measured_over_predicted"] < 3
    assert any("one class" in note for note in record["notes"])


def test_the_terminal_shows_features(
    flat: tuple[Path, Recipe, dict[str, Any], dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    where, _, told, record = flat
    tables.show(record, "run", where)
    said = " ".join(capsys.readouterr().out.split())
    assert "features beside the dense model's" in said and "FVU of the output" in said and "ten nearest" in said
    clipped = cli_planning.show(told)
    said = " ".join(capsys.readouterr().out.split())
    assert clipped is None and "predicted loss of features: 1 - cosine" in said and "1 - cosine" in said


def test_a_check_that_builds_the_model_knows_a_backbone(
    flat: tuple[Path, Recipe, dict[str, Any], dict[str, Any]],
) -> None:
    _, made, _, _ = flat
    _, notes = preflight.check(made, Found())
    assert any("one class" in note for note in notes)
    spec = made.model.model_copy(update={"head": None, "features": "pooled"})
    assert "is a classifier" in line(lambda: preflight.check(made.model_copy(update={"model": spec}), Found()))


def test_what_stands_beside_the_exported_model_is_paired_with_it(
    flat: tuple[Path, Recipe, dict[str, Any], dict[str, Any]],
) -> None:
    _, _, _, record = flat
    for row in record["rows"][1:]:
        paired = row["paired"]
        if paired is None:
            assert row["cosine"] == record["result"]["cosine"]
            continue
        assert paired["cosine"] == pytest.approx(record["result"]["cosine"] - row["cosine"])
        assert paired["cosine_ci95"][0] <= paired["cosine"] <= paired["cosine_ci95"][1] and paired["knn_p"] is None
    assert sum(row["paired"] is None for row in record["rows"]) == 1


def test_the_exported_folder_gives_the_features_that_were_examined(
    flat: tuple[Path, Recipe, dict[str, Any], dict[str, Any]],
) -> None:
    where, made, _, record = flat
    slim = vitprune.load(where / "runs" / made.name)
    x = torch.randn(2, 1, 28, 28)
    assert slim(x).shape == (2, 16) and slim.forward_features(x).shape == (2, 17, 16)  # type: ignore[operator]
    assert json.loads((where / "runs" / made.name / "config.json").read_text())["num_classes"] == 0
    assert record["model"]["macs_slim"] < 0.7 * record["model"]["macs_dense"]


def test_an_interrupted_exam_goes_on_to_the_same_bits(
    flat: tuple[Path, Recipe, dict[str, Any], dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where, made, _, _ = flat
    quicken(monkeypatch)
    again = made.model_copy(update={"out": tmp_path})
    real, calls = features.overlap, []

    def failing(*given: Any) -> float:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(features, "overlap", failing)
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(again, "evaluate")
    monkeypatch.setattr(features, "overlap", lambda *given: calls.append(1) or real(*given))
    pipeline.run(again, "evaluate")
    assert len(calls) == 4 + 7 - 3  # seven contenders, of which three were there
    for name in ("stages/evaluate/rows.json", "model.safetensors", "stages/discover/features.safetensors"):
        assert (tmp_path / made.name / name).read_bytes() == (where / "runs" / made.name / name).read_bytes()


@pytest.mark.slow
def test_two_workers_give_the_same_bits(
    flat: tuple[Path, Recipe, dict[str, Any], dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where, made, _, _ = flat
    quicken(monkeypatch)
    pipeline.run(made.model_copy(update={"out": tmp_path}), "evaluate", workers=2)
    leave_out = ("stage.json", "recipe.yaml", ".lock", "all.json")
    ours, theirs = (contents(folder / made.name, leave_out=leave_out) for folder in (tmp_path, where / "runs"))
    for name in ("stages/evaluate/rows.json", "model.safetensors", "masks.safetensors"):
        assert ours[name] == theirs[name]
    for name in ("fisher-obs-of-all.safetensors", "features.safetensors"):
        one, two = (
            load_file(folder / made.name / "stages" / "discover" / name) for folder in (tmp_path, where / "runs")
        )
        assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.slow
def test_several_budgets_are_told_together(
    flat: tuple[Path, Recipe, dict[str, Any], dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    where, _, _, single = flat
    quicken(monkeypatch)
    record = pipeline.run(recipe(where, where / "images", budget={"macs": [0.8, 0.7]}, baselines=[], out=str(tmp_path)))
    less, most = record["frontier"][1], record["frontier"][0]
    assert most["cosine"] > less["cosine"] == pytest.approx(single["result"]["cosine"], abs=1e-6)
    assert record["result"]["cosine"] == less["cosine"] and "top1" not in less
    tables.show(record, "run", tmp_path)
    assert "Every budget's model" in capsys.readouterr().out


@pytest.mark.sample(1)
@pytest.mark.parametrize("count", [2, 3])
def test_a_handful_of_images_gives_a_report_that_leaves_out_what_it_cannot_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """A single test image has no variance and no interval, a single probe image no scale for the plan."""
    quicken(monkeypatch)
    model_folder(tmp_path / "model")
    images = flat_folder(tmp_path / "images", 1)
    (images / "2-00.png").unlink() if count == 2 else None
    model = {"name": f"local-dir:{tmp_path / 'model'}", "head": "none", "features": "pooled"}
    record = pipeline.run(recipe(tmp_path, images, baselines=["random"], model=model))
    result = record["result"]
    assert result["n"] == 1 and result["fvu"] is None and result["neighbours"] is None and result["cosine"] <= 1 + 1e-9
    assert all(row["paired"]["cosine_ci95"] is None for row in record["rows"] if row["paired"])
    assert (result["predicted"]["fvu"] is None) == (count == 2)
    assert (result["measured_over_predicted"] is None) == (count == 2)
    text = result_page.sentence(record, result)
    assert "of cosine" in text and "FVU" not in text.split("patches")[0]
    assert "single test image" in record["backbone"]["index"]


def test_class_folders_give_a_vote_and_a_linear_probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels choose nothing, so the slim model is that of its images alone; the pooled vector is what is read here."""
    quicken(monkeypatch)
    model_folder(tmp_path / "model")
    made = recipe(
        tmp_path, image_folder(tmp_path / "images"), baselines=[],
        model={"name": f"local-dir:{tmp_path / 'model'}", "head": "none", "features": "pooled"},
    )  # fmt: skip
    record = pipeline.run(made, "evaluate")
    dense, bare, own = record["rows"]
    for row in (dense, bare, own):
        assert row["knn_top1"] in {k / 6 for k in range(7)} and row["probe_top1"] in {k / 6 for k in range(7)}
    assert dense["probe_top1"] > 0.5  # a bright patch tells the kind
    assert own["paired"] is None and 0 < dense["paired"]["knn_p"] <= 1 and 0 < dense["paired"]["probe_p"] <= 1
    assert record["backbone"]["features"] == "pooled" and own["cosine"] > bare["cosine"]


def test_the_last_block_is_there_for_the_class_token_alone_only_where_it_alone_is_read(tmp_path: Path) -> None:
    from vitprune.model.load import opening
    from vitprune.recipe.inputs import Model

    name = f"local-dir:{model_folder(tmp_path / 'model')}"
    pooled, every = (opening.open_model(Model(name=name, head="none", features=f)).model for f in ("pooled", "tokens"))  # type: ignore[arg-type]
    assert first_token.why_not(pooled) is None and first_token.why_not(every) is not None
    x = torch.randn(2, 1, 28, 28)
    assert torch.allclose(first_token.of(pooled)(x), pooled(x), atol=1e-5)


REFUSED: dict[str, dict[str, Any]] = {
    "classes": {"classes": ["circle"]},
    "groups": {"groups": {"a": ["circle"], "b": ["cross"]}},
    "head": {"head": "own"},
    "data.labels": {"data": {"path": "images", "labels": "by-order"}},
    "paper_protocol": {"paper_protocol": {"t": [1]}, "keep": 0.5, "budget": None},
    "compare": {"compare": {}},
    "see": {"see": {}},
    "budget: loss_points": {"budget": {"loss_points": 1.0}},
    "rounds": {"rounds": 2, "keep": 0.5, "budget": None},
    "criterion `jas`": {"criterion": {"name": "jas"}, "keep": 0.5, "budget": None},
    "criterion `auto`": {"criterion": {"name": "auto"}, "keep": 0.5, "budget": None},
    "criterion `class-alignment`": {"baselines": ["class-alignment"]},
    "recovery: layerwise+head": {"recovery": "layerwise+head"},
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_needs_a_classifier_is_refused_by_name(tmp_path: Path, what: str) -> None:
    made = recipe(tmp_path, tmp_path / "images", **REFUSED[what])
    with pytest.raises(UserError) as said:
        check.exclusive(made)
    assert str(said.value).startswith(what) and "classifier" in str(said.value) and "\n" not in str(said.value)


def line(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as said:
        call()
    return str(said.value)


def test_a_run_refuses_what_only_its_model_tells(tmp_path: Path) -> None:
    """A model without a head by its own arguments, and a flat folder for a classifier."""
    model_folder(tmp_path / "model")
    images = flat_folder(tmp_path / "images", 2)
    args = {"img_size": 28, "patch_size": 7, "embed_dim": 16, "depth": 2, "num_heads": 2, "in_chans": 1}
    bare = {"name": "vit_tiny_patch16_224", "args": args | {"num_classes": 0}}
    made = recipe(tmp_path, images, model=bare, criterion={"name": "taylor"})
    assert "criterion `taylor`: needs a classifier" in line(lambda: pipeline.run(made, "split"))
    classifier = recipe(tmp_path, images, model={"name": f"local-dir:{tmp_path / 'model'}"})
    assert "holds no class folders" in line(lambda: pipeline.run(classifier, "split"))
    logits = recipe(tmp_path, images, model={"name": f"local-dir:{tmp_path / 'model'}", "features": "pooled"})
    assert "the model is a classifier" in line(lambda: pipeline.run(logits, "split"))
