"""A budget of the whole model by other criteria than the default, and beside them at the same sizes; sums in parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small import image_folder, model_folder, quicken, recipe_dict

import vitprune
from vitprune.core.progress import Reporter
from vitprune.criteria.catalog import CRITERIA
from vitprune.criteria.scores import Scores
from vitprune.model import size
from vitprune.model.load import opening
from vitprune.model.sites.base import names
from vitprune.recipe.recipe import Recipe
from vitprune.runs import contenders, pipeline
from vitprune.runs.contenders import Contender
from vitprune.runs.results import attention
from vitprune.runs.stages import score, sums
from vitprune.runs.stages.prune import exported_mask
from vitprune.runs.state.batching import Batching
from vitprune.runs.state.run import Run


@pytest.fixture(scope="module", name="content")
def small_recipe(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("criteria")
    made = recipe_dict(model_folder(folder / "model"), image_folder(folder / "images", 16), folder / "out")
    del made["keep"]
    return made | {"budget": {"macs": 0.5}, "criterion": {"probe_per_class": 12}, "random_draws": 2}


def run(content: dict[str, Any], out: Path, until: str, workers: int = 1, **changed: Any) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        quicken(patch)
        recipe = Recipe.model_validate({**content, "out": str(out), **changed})
        return pipeline.run(recipe, until, device="cpu", workers=workers)


@pytest.mark.parametrize("name", ["obs", "random"])
def test_a_run_by_another_criterion(content: dict[str, Any], tmp_path: Path, name: str) -> None:
    """Its rows, and baselines of its sizes with their own heads, dimensions and units."""
    criterion, others = {"name": name, "probe_per_class": 12}, ["random", "magnitude-l2", "mean-activation"]
    made = run(content, tmp_path, "evaluate", criterion=criterion, baselines=others)
    slim, dense = vitprune.load(tmp_path / "tiny"), opening.open_model(Recipe.model_validate(content).model).model
    assert 0.35 < size.macs(slim) / size.macs(dense) <= 0.5
    assert {row["macs"] for row in made["rows"] if row["criterion"] != "dense"} == {size.macs(slim)}
    recipe = Recipe.model_validate({**content, "out": str(tmp_path), "criterion": criterion, "baselines": others})
    with Run.open(recipe, "cpu", Reporter(quiet=True)) as opened:
        ours = exported_mask(opened, None, opened.classes.every())
        assert ours.attention
        plans = {
            other: contenders.make(opened, Contender(other, None, "none", 5, None, ("macs", 0.5))).plan
            for other in others
        }
    for other, plan in plans.items():
        assert plan is not None and plan.widths == ours.widths
        for site, cut in plan.attention.items():
            own = ours.attention[site]
            assert (cut.heads, cut.dim) == (own.heads, own.dim)
            same = torch.equal(cut.curve.queries, own.curve.queries)
            assert same == (other == "mean-activation")  # of hidden units alone: attention is the exported one


SUMMED = [name for name, row in CRITERIA.items() if row.sums(True) is not row.summed]


def results(out: Path) -> dict[str, bytes]:
    found = {path.name: path.read_bytes() for path in out.glob("tiny/stages/discover/*.safetensors")}
    assert len(found) == 2 * len(SUMMED) and not list(out.glob("tiny/stages/*/parts"))
    return found


@pytest.fixture(name="setting")
def summed_setting(content: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(Batching, "batch", 5)
    return content | {"criterion": {"name": "fisher-obs", "probe_per_class": 12}, "baselines": SUMMED[:-1]}


@pytest.mark.parametrize("workers", [2, 3])
@pytest.mark.sample(1)
def test_workers_leave_no_trace_in_sums_of_attention(setting: dict[str, Any], tmp_path: Path, workers: int) -> None:
    """One pass over all batches is what the parts are held to."""
    run(setting, tmp_path / "alone", "discover")
    alone = results(tmp_path / "alone")
    opened = Run.join(Recipe.model_validate(setting | {"out": str(tmp_path / "alone")}), "cpu", Reporter(quiet=True))
    model, sites, index = opened.loaded.model, opened.sites, score._mixed(opened, opened.classes.every())
    for name in SUMMED:
        how, summed = opened.recipe.criterion.how(name), CRITERIA[name].sums(True)
        assert summed is not None
        batches = lambda: opened.images.batches(index, 5)  # noqa: E731
        found = summed.sums(model, sites, batches, classes=[0, 1, 2], how=how, first=None)
        of_ffns = summed.scores(model, sites, found, how=how)
        assert Scores.whole(name, names(sites), of_ffns).to_bytes() == alone[f"{name}-of-all.safetensors"], name
        before = attention.file_of(opened, name, None).read_bytes()
        of = CRITERIA[name].attention
        assert of is not None
        attention.write(opened, name, None, [one.tensors() for one in of.curves(model, batches, found, how=how)])
        assert attention.file_of(opened, name, None).read_bytes() == before, name
    run(setting, tmp_path / "together", "discover", workers=workers)
    assert results(tmp_path / "together") == alone


def test_sums_of_attention_go_on_where_they_stopped(
    setting: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(setting, tmp_path / "whole", "discover")
    work, made = sums._work, list[Any]()

    def stops(run: Run, asked: sums.Asked, first: Any, item: list[int]) -> Any:
        made.append((asked.summed.name, item[0]))
        if len(made) == 3:
            raise KeyboardInterrupt
        return work(run, asked, first, item)

    monkeypatch.setattr(sums, "_work", stops)
    with pytest.raises(KeyboardInterrupt):
        run(setting, tmp_path / "stopped", "discover")
    run(setting, tmp_path / "stopped", "discover")
    assert made[2] == made[3] and len(made) == 1 + 2 * 8 and len(set(made)) == len(made) - 1
    assert results(tmp_path / "stopped") == results(tmp_path / "whole")
