"""`budget: {macs: [0.7, 0.5]}`: several models from one set of curves, each in a folder of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from small import contents, image_folder, leftovers, model_folder, quicken, recipe_dict

import vitprune
from vitprune.cli import tables
from vitprune.core.errors import UserError
from vitprune.deploy import bench
from vitprune.model import size
from vitprune.recipe.parts import Whole
from vitprune.recipe.recipe import Recipe
from vitprune.report.document import document
from vitprune.report.page.blocks import Figure, Table
from vitprune.report.reading.beside import Beside
from vitprune.report.reading.values import plain
from vitprune.runs import pipeline
from vitprune.runs.results import planning
from vitprune.runs.stages import order

Made = dict[str, Any]
FOLDERS = ("macs-0.7", "macs-0.5")
FILES = {
    "model.safetensors",
    "config.json",
    "masks.safetensors",
    "split.json",
    "recipe.yaml",
    "report.json",
    "README.md",
}


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        quicken(patch)
        yield


@pytest.fixture(scope="module", name="content")
def small_recipe(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("frontier")
    made = recipe_dict(model_folder(folder / "model"), image_folder(folder / "images", 20), folder / "out")
    for key in ("keep", "recovery", "criterion"):
        del made[key]
    given = {"criterion": {"probe_per_class": 100}, "budget": {"macs": [0.5, 0.7]}, "baselines": ["random"]}
    return made | given | {"export": {"latency_batches": [1]}}


def run(content: Made, out: Path, until: str = "run", **changed: Any) -> Made:
    return pipeline.run(Recipe.model_validate({**content, "out": str(out), **changed}), until)


@pytest.fixture(scope="module", name="both")
def both_fixture(content: Made, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Made]:
    out = tmp_path_factory.mktemp("both")
    return out / "tiny", run(content, out)


def test_every_budget_has_a_full_folder_of_its_own(both: tuple[Path, Made]) -> None:
    root, made = both
    for folder, limit in zip(FOLDERS, (0.7, 0.5), strict=True):
        here = root / folder
        assert {path.name for path in here.iterdir()} >= FILES | {"model.onnx"}
        told = json.loads((here / "config.json").read_text())["vitprune"]
        assert told["budget"] == {"macs": limit}
        assert json.loads((here / "report.json").read_text())["complete"]
    larger, smaller = (size.macs(vitprune.load(root / folder)) for folder in FOLDERS)
    assert smaller < larger <= made["model"]["macs_dense"]
    assert not (root / "model.safetensors").exists() and not (root / "model.onnx").exists()
    assert made["complete"] and all(check["passed"] for check in made["checks"]), made["checks"]
    parity = [check["name"] for check in made["checks"] if "ONNX parity at batch" in check["name"]]
    assert parity == [f"ONNX parity at batch {n} ({folder})" for folder in FOLDERS for n in (1, 2, 7)]
    assert {file["path"] for file in made["files"]} >= {
        f"{f}/{n}" for f in FOLDERS for n in ("config.json", "model.onnx")
    }
    assert not leftovers(root)


def test_the_record_has_the_rows_of_all_budgets(both: tuple[Path, Made]) -> None:
    root, made = both
    assert made == json.loads((root / "report.json").read_text()) | {"created": made["created"]}
    pruned = [row for row in made["rows"] if row["criterion"] != "dense"]
    assert len(made["rows"]) - len(pruned) == 1
    assert [row["budget"] for row in pruned] == [{"macs": 0.7}] * 4 + [{"macs": 0.5}] * 4
    lines = made["frontier"]
    assert [line["budget"] for line in lines] == [{"macs": 0.7}, {"macs": 0.5}]
    for line in lines:
        own = json.loads((root / line["folder"] / "report.json").read_text())
        dense, result = own["rows"][0], own["result"]
        assert (line["top1"], line["macs"], line["latency_ratio"]) == tuple(
            result[key] for key in ("top1", "macs", "latency_ratio")
        )
        assert line["mcnemar_p"] == dense["mcnemar_p"] and line["only_right"] == dense["only_right"]
        assert line["macs_ratio_checkpoint"] == result["macs"] / dense["macs"] >= line["macs_ratio"] and line["onnx"]
        assert line["bytes"] == (root / line["folder"] / "model.safetensors").stat().st_size
    assert made["result"]["macs"] == lines[1]["macs"], "the headline is the smallest model's"
    assert (root / made["predictions"][""]).is_file()
    assert all((root / row["thumbnail"]).is_file() for row in made["worst"][""])


def test_a_budget_of_a_frontier_is_the_run_of_that_budget(
    content: Made, both: tuple[Path, Made], tmp_path: Path
) -> None:
    root, _ = both
    run(content, tmp_path, "prune", budget={"macs": 0.5})
    alone, inside = (contents(folder) for folder in (tmp_path / "tiny", root / "macs-0.5"))
    for name in ("model.safetensors", "config.json", "masks.safetensors", "split.json"):
        assert alone[name] == inside[name]
    assert not (root / "macs-0.5/stages/discover").exists() and not (root / "macs-0.5/stages/moments").exists()


def test_the_same_command_does_nothing_and_another_budget_more_is_made_of_the_same_curves(
    content: Made, tmp_path: Path
) -> None:
    run(content, tmp_path, "evaluate", budget={"macs": [0.7]})
    made = run(content, tmp_path, "evaluate")
    skipped = {stage["name"]: stage["skipped"] for stage in made["stages"]}
    assert skipped == {
        "split": True, "discover": True, "moments": True, "prune macs-0.7": True, "evaluate macs-0.7": True,
        "prune macs-0.5": False, "evaluate macs-0.5": False,
    }  # fmt: skip
    again = run(content, tmp_path, "evaluate")
    assert all(stage["skipped"] for stage in again["stages"]) and again["rows"] == made["rows"]


def test_an_interrupted_frontier_goes_on(content: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prune = next(stage for stage in order.STAGES if stage.name == "prune").work
    seen: list[str] = []

    def stopped(opened: Any) -> Any:
        seen.append(opened.folder.root.name)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return prune(opened)

    stages = tuple(
        order.Stage(s.name, stopped if s.name == "prune" else s.work, s.inputs, s.after) for s in order.STAGES
    )
    monkeypatch.setattr(pipeline, "STAGES", stages)
    with pytest.raises(KeyboardInterrupt):
        run(content, tmp_path, "prune")
    run(content, tmp_path, "prune")
    assert seen == ["macs-0.7", "macs-0.5", "macs-0.5"]
    assert (tmp_path / "tiny/macs-0.5/model.safetensors").is_file()


def test_the_one_that_is_named_is_exported_and_stands_in_the_runs_own_folder(content: Made, tmp_path: Path) -> None:
    root = tmp_path / "tiny"
    export = {"latency_batches": [1], "budget": 0.7}
    made = run(content, tmp_path, export=export)
    assert [line["onnx"] for line in made["frontier"]] == [True, False] and made["complete"]
    assert made["result"]["macs"] == made["frontier"][0]["macs"]
    for name in ("model.safetensors", "config.json", "masks.safetensors", "split.json", "model.onnx"):
        assert (root / name).read_bytes() == (root / "macs-0.7" / name).read_bytes()
    assert (root / "README.md").is_file() and not (root / "macs-0.5" / "model.onnx").exists()
    assert size.macs(vitprune.load(root)) == made["result"]["macs"]
    assert list(bench.find([root])) == ["dense", "model"], "what `vitprune bench` times"
    before = (root / "model.onnx").stat().st_mtime_ns
    run(content, tmp_path, export=export)
    assert (root / "model.onnx").stat().st_mtime_ns == before
    inner = json.loads((root / "macs-0.5/report.json").read_text())
    assert inner["complete"] and not inner["missing"], "an export that is not asked for is not missing"
    single = run(content, tmp_path, "export", budget={"macs": 0.6}, export={"onnx": False})
    assert not (root / "model.onnx").exists(), "of another model than the one beside it"
    assert size.macs(vitprune.load(root)) <= 0.6 * made["model"]["macs_dense"] and single["missing"] == ["evaluate"]
    run(content, tmp_path, "prune")
    assert not (root / "model.safetensors").exists() and (root / "macs-0.5/model.safetensors").exists()


def test_a_file_of_somebody_else_where_a_model_would_go_is_not_replaced(content: Made, tmp_path: Path) -> None:
    run(content, tmp_path, "split")
    (tmp_path / "tiny/macs-0.5").mkdir()
    (tmp_path / "tiny/macs-0.5/README.md").write_text("mine")
    with pytest.raises(UserError, match=r"macs-0.5/README.md: was not made by vitprune"):
        run(content, tmp_path, "prune")
    assert (tmp_path / "tiny/macs-0.5/README.md").read_text() == "mine"


def test_a_plan_of_a_frontier_tells_every_budget(content: Made, both: tuple[Path, Made], tmp_path: Path) -> None:
    told = planning.outlook(Recipe.model_validate({**content, "out": str(tmp_path)}))["plans"]
    assert [one["budget"] for one in told] == [{"macs": 0.7}, {"macs": 0.5}]
    assert [one["macs"] for one in told] == [line["macs"] for line in both[1]["frontier"]]
    assert told[0]["nats"] <= told[1]["nats"]
    assert not any((tmp_path / "tiny" / folder).exists() for folder in FOLDERS)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"groups": {"a": ["circle"], "b": ["cross"]}}, "a frontier .* is for one class set"),
        ({"export": {"budget": 0.3}}, "`export.budget: 0.3` names a budget of a frontier, one of 0.7, 0.5"),
        ({"export": {"budget": 0.5}, "budget": {"macs": 0.5}}, "there is none here"),
    ],
)
def test_what_does_not_go_with_a_frontier_is_refused(content: Made, changed: Made, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Recipe.model_validate(content | changed)


def test_folders_are_named_by_the_budget() -> None:
    assert [one.folder for one in Whole(size_mb=[8, 1.5]).each] == ["size_mb-8", "size_mb-1.5"]
    assert Whole(macs=[0.5]).several and not Whole(macs=0.5).several


def test_the_page_shows_every_budget_and_marks_the_headline(both: tuple[Path, Made]) -> None:
    root, made = both
    page = document(plain(made), Beside(root))
    own = next(section for section in page.sections if section.key == "frontier")
    models = next(block for block in own.blocks if isinstance(block, Table))
    assert [row.cells[0].text for row in models.rows] == ["macs 0.7", "macs 0.5"]
    first = page.sections[0]  # the verdict, which has the chart that most people look for
    drawn = [[block.caption.split(",")[0] for block in one.blocks if isinstance(block, Figure)] for one in (own, first)]
    assert drawn[0] == ["Top-1 against the multiply-adds that are left"]
    assert "Top-1 against the latency that is left in ONNX Runtime" in str(first.blocks)
    rows = next(block for s in page.sections if s.key == "comparison" for block in s.blocks if isinstance(block, Table))
    budget = [rows.title(i) for i in range(len(rows.columns))].index("Budget")
    assert [row.cells[budget].text for row in rows.rows if row.tag == "exported"] == ["macs 0.5"]
    beside = next(
        b
        for s in page.sections
        if s.key == "trust"
        for b in s.blocks
        if isinstance(b, Table) and "headline" in b.caption
    )
    assert [row.cells[3].sort for row in beside.rows] == [made["frontier"][1]["dense_top1"], made["result"]["top1"]]
    alone = {key: value for key, value in made.items() if key != "frontier"}
    assert "frontier" not in [section.key for section in document(plain(alone), Beside(root)).sections]
    schema = json.loads((Path(vitprune.__file__).parent / "report/schema.json").read_text("utf-8"))
    described = schema["properties"]["frontier"]["items"]["properties"]
    assert all(line.keys() <= described.keys() for line in made["frontier"])


def test_the_command_shows_every_budget(both: tuple[Path, Made], capsys: pytest.CaptureFixture[str]) -> None:
    tables.show(both[1], "run", both[0])
    shown = capsys.readouterr().out
    assert "Every budget's model" in shown and shown.count("macs 0.7") == 5 and shown.count("macs-0.5") >= 1
    assert tables.as_json(both[1], "run", both[0])["frontier"] == both[1]["frontier"]
