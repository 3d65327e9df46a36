"""Defaults give way where a family does not allow them, and a note says so; what is asked for is refused by its name."""

from __future__ import annotations

import functools
import json
import pickle
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small import image_folder, quicken
from test_families import FAMILY_OF, NAMES, PLAIN, ROWS, TINY

from vitprune.core.errors import UserError
from vitprune.core.progress import Reporter
from vitprune.criteria.catalog import CRITERIA
from vitprune.model import families
from vitprune.model.load import opening
from vitprune.model.load.loaded import Loaded
from vitprune.paper import tables
from vitprune.recipe import experiments, inputs, parse
from vitprune.recipe.recipe import Recipe
from vitprune.report import grid
from vitprune.runs import compare, pipeline
from vitprune.runs.state import defaults, skeleton
from vitprune.runs.state.run import Run

pytestmark = pytest.mark.usefixtures("quick")
CLASS_TOKEN, NONE, STAGES = "vit_tiny_patch16_224", "eva02_tiny_patch14_224", "swin_tiny_patch4_window7_224"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_folder(tmp_path_factory.mktemp("images") / "images", 6, "RGB")


def minimal(name: str, images: Path, **changed: Any) -> Recipe:
    """Model, images, keep: nothing else is said."""
    args = TINY.get(name, PLAIN) | {"num_classes": 3}
    made = {"name": "tiny", "model": {"name": name, "args": args}, "data": {"path": str(images)}, "keep": "50%"}
    return Recipe.model_validate(made | {"out": str(images.parent / "out")} | changed)


@functools.cache
def opened(spec: str) -> Loaded:
    return skeleton.opened(inputs.Model.model_validate_json(spec))


def ready(made: Recipe, reporter: Reporter | None = None) -> Run:
    """The run's run with the model on the meta device."""
    if made.model.name.startswith("transformers:"):
        pytest.importorskip("transformers", reason="the extra `transformers` is not installed")
    run = Run.join(made, "cpu", reporter or Reporter(quiet=True))
    run.__dict__["loaded"] = opened(made.model.model_dump_json())
    return run


def settled(made: Recipe) -> tuple[Recipe, list[str]]:
    run = ready(made)
    run.preflight()
    return run.recipe, run.notes


def refusal(made: Recipe) -> str:
    with pytest.raises(UserError) as caught:
        settled(made)
    return str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_the_minimal_recipe_passes_for_every_family(name: str, images: Path) -> None:
    made, notes = settled(minimal(name, images))
    row = ROWS[FAMILY_OF[name]]
    said = "\n".join(notes)
    classes = row["tokens"] == "class"
    assert made.baselines == (["activation", "random"] if classes else ["mean-activation", "random"])
    assert ("baselines: `mean-activation` in the place of `activation`" in said) == (not classes)
    assert ("recovery: affine" in said) == ("layerwise" not in row["repairs"]) and made.recovery == "auto"
    assert made.criterion.t == "auto" and "criterion.t" not in said
    assert (made.criterion.name, made.allocation, made.export.precisions) == ("fisher-obs", "auto", ["fp32"])
    again, more = settled(parse.parse(parse.dump(made)))  # what was settled is itself a recipe that passes
    assert again == made and set(more) <= {note for note in notes if note.startswith("recovery")}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("criterion", [*CRITERIA, "random", "auto"])
@pytest.mark.sample(96)
def test_every_criterion_asked_for_finds_defaults_that_fit_or_is_refused(
    name: str, criterion: str, images: Path
) -> None:
    row = ROWS[FAMILY_OF[name]]
    made = minimal(name, images, criterion={"name": criterion})
    if criterion in row["criteria"] + row["all_tokens_only"] + ["auto"]:
        found, notes = settled(made)
        assert found.criterion.name == criterion
        adapted = criterion in row["all_tokens_only"] or (criterion == "auto" and row["tokens"] != "class")
        assert any(note.startswith("criterion.tokens: all") for note in notes) == adapted
        assert found.criterion.tokens == ("all" if adapted else "cls")
    else:
        assert f"criterion `{criterion}`: " in refusal(made)


def test_what_is_asked_for_is_refused_by_name(images: Path) -> None:
    asked: list[tuple[dict[str, Any], str]] = [
        ({"baselines": ["activation"]}, "criterion `activation`: scores the class token"),
        ({"baselines": ["influence-pattern"]}, "criterion `influence-pattern`: "),
        ({"criterion": {"name": "activation"}}, "criterion `activation`: "),
        ({"criterion": {"name": "jas", "tokens": "cls"}}, "criterion `jas`: scores the class token.*take tokens: all"),
        ({"baselines": ["jas"], "criterion": {"tokens": "cls"}}, "criterion `jas`: "),
        ({"paper_protocol": {"t": [1]}}, "paper_protocol"),
        ({"groups": {"auto": 2}, "criterion": {"tokens": "cls"}}, "criterion `jas`: "),
        ({"criterion": {"t": 43}}, "t: 43 units per block are asked for"),
        ({"paper_protocol": {"t": [43]}}, "paper_protocol"),
        ({"keep": "43 units"}, "keep: 43 units"),
    ]
    for changed, said in asked:
        assert re.search(said, refusal(minimal(NONE, images, **changed))), changed
    assert "needs blocks of one FFN after attention" in refusal(minimal(STAGES, images, baselines=["class-alignment"]))
    assert "t: 65" in refusal(minimal(CLASS_TOKEN, images, paper_protocol={"t": [65]}))


def test_other_defaults_that_give_way(images: Path) -> None:
    small = minimal("torchvision:vit_b_16", images, paper_protocol={"nodes": 2})
    args = small.model.args | {"mlp_dim": 8}
    model = small.model.model_copy(update={"args": args})
    made, notes = settled(small.model_copy(update={"model": model}))
    assert made.paper_protocol is not None and made.paper_protocol.t == [1, 5] and made.criterion.t == "auto"
    assert any(note.startswith("paper_protocol.t: 1, 5,") for note in notes)
    made, notes = settled(minimal(CLASS_TOKEN, images, criterion={"name": "vit-slim", "train_weights": True}))
    assert made.recovery == "none" and any(note.startswith("recovery: none") for note in notes)
    with pytest.raises(ValueError, match="recovery: none"):
        minimal(CLASS_TOKEN, images, criterion={"name": "vit-slim", "train_weights": True}, recovery="affine")
    made, notes = settled(minimal(NONE, images, groups={"auto": 2}))
    assert made.criterion.tokens == "all" and any("`jas`" in note for note in notes)


def test_a_default_criterion_that_does_not_apply_gives_way(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CRITERIA, "fisher-obs", replace(CRITERIA["fisher-obs"], class_token=True))
    made, notes = settled(minimal(NONE, images))
    assert made.criterion.name == "obs" and any(
        "criterion: `obs` in the place of `fisher-obs`" in note for note in notes
    )
    assert "criterion `fisher-obs`: " in refusal(minimal(NONE, images, criterion={"name": "fisher-obs"}))


def test_notes_are_told_once_on_the_terminal(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = ready(minimal(STAGES, images), Reporter())
    run.preflight()
    run.preflight()
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert len(lines) == len(set(lines)) == len(run.notes) == 2


def test_a_worker_is_told_what_was_settled(images: Path) -> None:
    run = ready(minimal(NONE, images, criterion={"name": "jas"}))
    run.preflight()
    there = pickle.loads(pickle.dumps(run))
    assert there is not run and there.recipe == settled(minimal(NONE, images, criterion={"name": "jas"}))[0]


@pytest.mark.parametrize("name", [NONE, STAGES])
def test_a_whole_run_says_what_gave_way(
    name: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quicken(monkeypatch)
    changed = {"out": str(tmp_path), "export": {"onnx": False}, "random_draws": 1, "refit_images": 9}
    made = pipeline.run(minimal(name, images, **changed), "run", device="cpu")
    notes = [note for note in made["notes"] if note.startswith("Default ")]
    assert any("`mean-activation` in the place of `activation`" in note for note in notes)
    assert {row["criterion"] for row in made["rows"]} == {"dense", "fisher-obs", "mean-activation", "random"}
    assert json.loads((tmp_path / "tiny" / "report.json").read_text())["notes"] == made["notes"]
    again = parse.load(tmp_path / "tiny" / "recipe.yaml")
    assert again.baselines == made["recipe"]["baselines"] == ["mean-activation", "random"]


def test_compare_and_paper_have_defaults_that_fit(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = {"keep": [0.5], "recovery": ["none"], "seeds": [0]}
    changed = {"criterion": {"nodes": 1, "probe_per_class": 2}, "out": str(tmp_path)}
    made = compare.compare(minimal(NONE, images, compare=spec, **changed), device="cpu", reporter=Reporter())
    assert [row["criterion"] for row in made["table"]] == ["jas", "mean-activation", "taylor", "variance", "random"]
    assert any("`mean-activation` in the place of `activation`" in note for note in made["notes"])
    assert any("criterion.tokens: all for `jas`" in note for note in made["notes"])
    assert all(f"Default {note}" in grid.markdown(made) for note in made["notes"])
    assert "note: compare.criteria: " in capsys.readouterr().err
    asked = minimal(NONE, images, compare=spec | {"criteria": ["activation", "variance"]}, **changed)
    with pytest.raises(UserError, match="criterion `activation`: "):
        compare.compare(asked, device="cpu")
    facts = defaults.Facts(class_token=True, halves=False, smallest=8)
    found, notes = defaults.table(experiments.Paper(), minimal(CLASS_TOKEN, images), facts)
    assert found.criteria == ["activation", "influence-gradient", "jas"]
    assert notes == ["paper.criteria: without `influence-pattern` (needs blocks of one FFN after attention)."]
    slim = minimal(CLASS_TOKEN, images, criterion={"name": "vit-slim", "train_weights": True})
    criteria = experiments.Compare(criteria=["vit-slim", "variance"])
    assert defaults.comparison(criteria, slim, facts)[0].recovery == ["none"]


def test_the_papers_table_of_a_model_without_halves(images: Path, tmp_path: Path) -> None:
    changed = {"paper": {"images_per_class": 1}, "criterion": {"nodes": 1, "t": 2}, "out": str(tmp_path)}
    made = tables.run(minimal("torchvision:vit_b_16", images, **changed), device="cpu")
    assert {row["criterion"] for row in made["rows"]} == {"activation", "influence-gradient", "jas"}


def test_the_facts_of_a_skeleton_are_those_of_the_model(images: Path) -> None:
    for name in (CLASS_TOKEN, NONE, STAGES, "torchvision:vit_b_16"):
        spec = minimal(name, images).model
        whole = opening.open_model(spec)
        assert skeleton.facts(spec) == defaults.Facts.of(whole.model, families.ffn_sites(whole.model))
        bare = skeleton.opened(spec)
        assert (bare.labels, bare.widths, bare.data_config) == (whole.labels, whole.widths, whole.data_config)
        assert {p.device.type for p in bare.model.parameters()} == {"meta"}
