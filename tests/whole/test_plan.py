"""`vitprune plan`: what would be kept is what is kept, its curves are the run's, and nothing else is done."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small import contents, image_folder, model_folder, quicken, recipe_dict, write_recipe
from typer.testing import CliRunner

import vitprune
from vitprune.cli.app import app
from vitprune.core.errors import UserError
from vitprune.core.progress import Reporter
from vitprune.exam import logits
from vitprune.images.batches import Images
from vitprune.model import size
from vitprune.recipe.recipe import Recipe
from vitprune.runs import pipeline
from vitprune.runs.results import attention, planning
from vitprune.runs.stages.score import scores_of
from vitprune.runs.state.run import Run

Made = dict[str, Any]
WRITTEN = ("model.safetensors", "config.json", "masks.safetensors")


@pytest.fixture(scope="module", name="content")
def small_recipe(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("plan")
    made = recipe_dict(model_folder(folder / "model"), image_folder(folder / "images", 20), folder / "out")
    for key in ("keep", "recovery", "criterion"):
        del made[key]
    return made | {"criterion": {"probe_per_class": 100}, "budget": {"macs": 0.5}, "baselines": ["random"]}


def recipe(content: Made, out: Path, **changed: Any) -> Recipe:
    made = {**content, "out": str(out), **changed}
    return Recipe.model_validate({key: value for key, value in made.items() if value is not None})


def test_the_run_after_a_plan_finds_its_curves_and_gives_the_bits_of_a_run_alone(
    content: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quicken(monkeypatch)
    alone, planned = recipe(content, tmp_path / "alone"), recipe(content, tmp_path / "planned")
    pipeline.run(alone, "evaluate")
    told = planning.outlook(planned)
    assert {stage["name"] for stage in told["stages"]} == {"split", "discover"}
    assert not (tmp_path / "planned" / "tiny" / "model.safetensors").exists()
    assert {path.name for path in (tmp_path / "planned/tiny/stages").iterdir()} <= {"split", "discover", "seen"}
    made = pipeline.run(planned, "evaluate")
    done = {stage["name"]: stage["skipped"] for stage in made["stages"]}
    assert done["split"] and done["discover"] and not done["prune"]
    first, second = (contents(tmp_path / name / "tiny") for name in ("alone", "planned"))
    assert all(first[name] == second[name] for name in WRITTEN)
    assert first.keys() == second.keys()


def test_what_is_told_is_what_is_written(content: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quicken(monkeypatch)
    asked = recipe(content, tmp_path)
    told = planning.outlook(asked)["plans"][0]
    pipeline.run(asked, "prune")
    slim = vitprune.load(tmp_path / "tiny")
    assert (told["params"], told["macs"]) == (size.parameters(slim), size.macs(slim)) and told["macs_ratio"] <= 0.5
    assert told["bytes"] == (tmp_path / "tiny" / "model.safetensors").stat().st_size
    said = json.loads((tmp_path / "tiny" / "config.json").read_text())["vitprune"]
    assert [row["units"] for row in told["blocks"]] == list(said["widths"].values())
    assert [[row["heads"], row["dim"]] for row in told["blocks"]] == list(said["attention"].values())
    assert told["budget"] == {"macs": 0.5} and told["keep"] is None and told["group"] is None


def test_predicted_nats_are_the_sum_of_the_options_taken(content: Made, tmp_path: Path) -> None:
    asked = recipe(content, tmp_path, budget={"params": 0.6})
    told = planning.outlook(asked)["plans"][0]
    with Run.open(asked, "cpu", Reporter(quiet=True)) as run:
        attentions, ffns = attention.of_file(run, None), scores_of(run, "fisher-obs").curves
    assert ffns is not None
    total = 0.0
    for row, of_attention, ffn in zip(told["blocks"], attentions, ffns.values(), strict=True):
        heads, dim = row["heads"], row["dim"]
        values = float(of_attention.without[heads]) + float(of_attention.values[heads - 1].costs[dim])
        values += heads / 2 * float(of_attention.ranks[dim])
        gone = np.maximum(ffn.costs.numpy(), 0)
        own = values + sum(gone[: len(gone) - row["units"]].tolist())
        assert row["nats"] == pytest.approx(own, rel=1e-9)
        assert row["gone"]["attention"] == float(of_attention.without[0])
        assert row["gone"]["ffn"] == pytest.approx(sum(gone.tolist()))
        total += own
    assert told["nats"] == pytest.approx(total, rel=1e-9) and total > 0


def test_it_looks_at_no_image_of_the_test_split_and_repairs_nothing(
    content: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = recipe(content, tmp_path)
    pipeline.run(asked, "split")
    seen: set[int] = set()
    batches = Images.batches

    def watched(images: Any, index: np.ndarray, *more: Any, **options: Any) -> Any:
        seen.update(np.asarray(index).tolist())
        return batches(images, index, *more, **options)

    monkeypatch.setattr(Images, "batches", watched)
    monkeypatch.setattr(logits, "test_logits", None)
    monkeypatch.setattr("vitprune.runs.stages.prune.repaired", None)
    planning.outlook(asked)
    split = json.loads((tmp_path / "tiny/stages/split/split.json").read_text())
    assert seen and seen <= set(split["probe"]) and not seen & set(split["test"])


def test_a_budget_by_keep_and_groups_are_told_too(content: Made, tmp_path: Path) -> None:
    groups = {"two": ["circle", "cross"], "one": ["square", "cross"]}
    told = planning.outlook(recipe(content, tmp_path, budget=None, keep=0.25, groups=groups))
    assert [one["group"] for one in told["plans"]] == ["two", "one"]
    for one in told["plans"]:
        assert one["keep"] == 0.25 and one["budget"] is None and one["nats"] > 0
        assert sum(row["units"] for row in one["blocks"]) == 32 and one["kept"] == 0.25
        assert [(row["heads"], row["dim"]) for row in one["blocks"]] == [(2, 8), (2, 8)]
    assert told["plans"][0]["params"] < told["dense"]["params"] and told["plans"][0]["classes"] == ["circle", "cross"]


def test_scores_that_are_no_costs_have_no_nats(content: Made, tmp_path: Path) -> None:
    for name in ("magnitude-l2", "obs", "random"):
        told = planning.outlook(recipe(content, tmp_path, budget=None, keep=0.5, criterion={"name": name}))
        assert told["plans"][0]["nats"] is None and told["plans"][0]["blocks"][0]["units"] > 0


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"budget": None, "keep": 0.5, "rounds": 2}, "`rounds`"),
        ({"budget": {"loss_points": 1.0}}, "`loss_points`"),
    ],
)
def test_of_what_only_a_repair_can_say_the_cost_is_told(
    content: Made, tmp_path: Path, changed: Made, said: str
) -> None:
    told = planning.outlook(recipe(content, tmp_path, **changed))
    assert told["plans"] == [] and said in told["no_plans"] and told["cost"]["stages"]["prune"]["seconds"] >= 0
    assert not (tmp_path / "tiny").exists()


def test_the_command_prints_one_object_or_a_table(content: Made, tmp_path: Path) -> None:
    path = write_recipe(tmp_path / "r.yaml", {**content, "out": str(tmp_path / "out")})
    done = CliRunner().invoke(app, ["plan", str(path), "--json"])
    assert done.exit_code == 0, done.output
    assert "plan: tiny" in done.stderr.splitlines()[0]
    told = json.loads(done.stdout)
    assert {"name", "folder", "dense", "plans", "stages"} <= told.keys()
    assert {"seconds", "memory_mb", "disk_mb"} <= told["cost"].keys() and not told["cost"]["stages"]["prune"]["done"]
    assert list(told["cost"]["stages"]) == ["split", "discover", "moments", "prune", "evaluate", "export", "report"]
    keys = {"budget", "keep", "nats", "params", "macs", "macs_ratio", "params_ratio", "bytes", "bytes_ratio", "blocks"}
    assert keys <= told["plans"][0].keys()
    assert {"block", "heads", "dim", "units", "nats", "gone", "dense"} <= told["plans"][0]["blocks"][0].keys()
    shown = CliRunner().invoke(app, ["plan", str(path)]).stdout
    assert "what the run costs" in shown and "total" in shown and "done" in shown  # the split and the curves are there
    assert "macs 0.5" in shown and "predicted loss" in shown and "model.safetensors" in shown
    missing = CliRunner().invoke(app, ["plan", str(tmp_path / "none.yaml")])
    assert isinstance(missing.exception, UserError)


def test_the_cost_alone_works_out_and_writes_nothing(content: Made, tmp_path: Path) -> None:
    path = write_recipe(tmp_path / "r.yaml", {**content, "out": str(tmp_path / "out")})
    done = CliRunner().invoke(app, ["plan", str(path), "--cost", "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["plans"] == [] and told["no_plans"] is None and told["cost"]["seconds"] > 0
    assert not (tmp_path / "out").exists()


def test_curves_are_computed_once(content: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = recipe(content, tmp_path)
    first = planning.outlook(asked)
    monkeypatch.setattr(Images, "batches", None)  # nothing is computed without images
    again = planning.outlook(asked)
    assert again["plans"] == first["plans"] and all(stage["skipped"] for stage in again["stages"])
    planning.outlook(recipe(content, tmp_path, budget={"macs": 0.7}))
