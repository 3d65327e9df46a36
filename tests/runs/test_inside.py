"""Runs inside runs, and the rows of the paper's protocol: shared by the run's workers, to the bits of one process; what a
worker has open stays open from one of them to the next. And who computes, as the recipe says it."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from small import image_folder, model_folder, quicken, recipe_dict

from vitprune.core.progress import Reporter
from vitprune.model.load import saving
from vitprune.pruning import surgery
from vitprune.pruning.plan import Plan
from vitprune.recipe import parse
from vitprune.recipe.recipe import Recipe
from vitprune.runs import pipeline
from vitprune.runs.choose import fold
from vitprune.runs.engine import opening
from vitprune.runs.engine.local import Local
from vitprune.runs.engine.opening import Crew
from vitprune.runs.engine.pool import Pool
from vitprune.runs.state.run import Run


@pytest.fixture
def setting(tmp_path: Path) -> dict[str, Any]:
    content = recipe_dict(model_folder(tmp_path / "m"), image_folder(tmp_path / "i", 12), tmp_path / "out")
    content |= {"criterion": {"name": "variance", "probe_per_class": 8}, "baselines": [], "recovery": "none"}
    return content | {"keep": 0.25, "rounds": 2, "paper_protocol": {"t": [2, 4], "nodes": 2, "probe_per_class": 4}}


def results(out: Path) -> dict[str, bytes]:
    """The files that hold figures, and weights."""
    found = {p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*.safetensors")}
    return found | {"rows": (out / "tiny/stages/evaluate/rows.json").read_bytes()}


def refused(*_: object) -> None:
    raise AssertionError("a job of this run stayed in the first process")


def test_rounds_and_protocol_go_to_the_workers_that_the_recipe_asks_for(
    setting: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quicken(monkeypatch)
    pipeline.run(Recipe.model_validate(setting), "evaluate", device="cpu")
    alone = results(tmp_path / "out")
    monkeypatch.setattr(Local, "run", refused)
    pipeline.run(
        Recipe.model_validate(setting | {"workers": 2, "out": str(tmp_path / "two")}), "evaluate", device="cpu"
    )
    assert results(tmp_path / "two") == alone
    oracle = [row for row in json.loads(alone["rows"])["rows"] if row["protocol"] == "oracle"]
    assert [(row["criterion"], row["t"]) for row in oracle] == [(n, t) for n in ("jas", "activation") for t in (2, 4)]
    assert all(row["exported"] is False for row in oracle)
    assert not list((tmp_path / "two").rglob("round-1-*"))


def opened(setting: dict[str, Any]) -> Run:
    run = Run.join(Recipe.model_validate(setting), "cpu", Reporter(quiet=True), 2)
    run.adapt()
    return run


def there(run: Run) -> Run:
    """The run as a worker has it."""
    return pickle.loads(pickle.dumps(run))  # type: ignore[no-any-return]


def test_what_two_runs_have_in_common_is_opened_once(setting: dict[str, Any], tmp_path: Path) -> None:
    pipeline.run(Recipe.model_validate(setting), "split", device="cpu")
    first = opened(setting)
    outer = there(first)
    known = {name: getattr(outer, name) for name in ("loaded", "sites", "source", "images", "model_digest")}
    inner = there(fold(first, ["variance", "obs"]))  # in a folder below, of another split
    assert inner is not outer and inner.split_record != outer.split_record
    assert all(inner.__dict__[name] is value for name, value in known.items())
    beside = there(opened(setting | {"out": str(tmp_path / "beside")}))  # decoded images may lie in the other's folder
    assert beside.__dict__["loaded"] is outer.loaded and "images" not in beside.__dict__
    other = there(opened(setting | {"model": {"name": f"local-dir:{model_folder(tmp_path / 'other')}"}}))
    assert not known.keys() & other.__dict__.keys()


def test_a_slim_model_inside_a_run_is_read_from_its_folder(setting: dict[str, Any], tmp_path: Path) -> None:
    pipeline.run(Recipe.model_validate(setting), "split", device="cpu")
    run = opened(setting)
    keep = {site.name: torch.arange(site.size) < site.size // 2 for site in run.sites}
    slim = surgery.slim(run.loaded.model, Plan(keep, tuple(run.classes.every())))
    saving.save(tmp_path / "out/tiny/slim", run.loaded, slim, {})
    inner = run.inside(run.folder.root, run.recipe, model=slim, shared=True, slim=tmp_path / "out/tiny/slim")
    found = there(inner)
    assert found.slim == inner.slim and found.model_digest == inner.model_digest
    assert there(run).slim is None


# ---- who computes


def test_a_flag_goes_before_the_recipe() -> None:
    made = parse.parse("{name: x, engine: ray, workers: 3, address: 'ray://head:1'}")
    plain = parse.parse("name: x")

    def of(given: Any, recipe: Recipe) -> tuple[Any, ...]:
        team = Crew.of(given, recipe)
        return team.workers, team.engine, team.address

    assert of(1, plain) == of(Crew(), plain) == (1, "local", None)
    assert of(1, made) == of(Crew(), made) == (3, "ray", "ray://head:1")
    assert of(4, made) == (4, "ray", "ray://head:1")
    assert of(Crew(1, "local"), made) == (1, "local", None)
    assert of(Crew(address="auto"), made) == (3, "ray", "auto")
    assert opening.NAMES == ("local", "ray")


def test_nothing_that_a_run_leaves_says_who_computed_it(setting: dict[str, Any]) -> None:
    one = Recipe.model_validate(setting)
    two = Recipe.model_validate(setting | {"workers": 3, "engine": "ray", "address": "auto"})
    assert parse.dump(one) == parse.dump(two) and one.fingerprint() == two.fingerprint()
    assert one.model_dump() == two.model_dump()


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("engine: dask", "engine"),
        ("workers: 0", "workers"),
        ("address: auto", "`address` is of a Ray cluster: add `engine: ray`"),
        ("{engine: local, address: auto}", "add `engine: ray`"),
    ],
)
def test_what_does_not_go_together_is_one_line(text: str, line: str) -> None:
    with pytest.raises(Exception, match=line) as refused:
        parse.parse("name: x\n" + text if not text.startswith("{") else "{name: x, " + text[1:])
    assert "\n" not in str(refused.value)


def test_workers_begin_before_the_first_job() -> None:
    pool = Pool(2, print)
    pool.start()
    pool.start()
    assert len(pool._crew) == 2
    pool.close()
    assert not pool._crew
