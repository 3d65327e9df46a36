"""compare: the same models as a run, examined on the same images; a test that means something; auto without the test split."""

from __future__ import annotations

import dataclasses
import json
import xml.etree.ElementTree as ElementTree
from itertools import product
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small import image_folder, leftovers, model_folder, quicken, recipe_dict
from typer.testing import CliRunner

from vitprune.cli import app
from vitprune.core import progress
from vitprune.core.errors import UserError
from vitprune.criteria.catalog import CRITERIA
from vitprune.exam import metrics
from vitprune.recipe import parse, recipe
from vitprune.runs import choose, compare, contenders, pipeline
from vitprune.runs.state.run import Run

SPEC = {
    "criteria": ["jas", "magnitude-l2", "variance", "random", "auto"],
    "keep": [0.5, "8 units"],
    "recovery": ["none", "affine"],
    "seeds": [0, 3],
}


@pytest.fixture
def content(tmp_path: Path) -> dict[str, Any]:
    made = recipe_dict(model_folder(tmp_path / "m"), image_folder(tmp_path / "i", 20), tmp_path / "out")
    return made | {"compare": SPEC}


def run(content: dict[str, Any], **options: Any) -> dict[str, Any]:
    return compare.compare(recipe.Recipe.model_validate(content), device="cpu", **options)


@pytest.mark.slow
def test_every_cell_is_there_once(content: dict[str, Any], tmp_path: Path) -> None:
    made = run(content)
    table = [(r["criterion"], r["keep"], r["recovery"]) for r in made["table"]]
    assert sorted(table, key=str) == sorted(product(SPEC["criteria"], [0.5, 8], SPEC["recovery"]), key=str)
    rows = [(r["criterion"], r["keep"], r["recovery"], r["seed"]) for r in made["rows"]]
    assert len(set(rows)) == len(rows) == (5 * 2 * 2 + 1) * 2
    root = tmp_path / "out" / "tiny"
    assert json.loads((root / "compare.json").read_text()) == made
    assert leftovers(tmp_path / "out") == []
    text = (root / "compare.md").read_text()
    assert all(f"| {name} |" in text for name in SPEC["criteria"]) and text.count("Criterion `auto` took") == 8
    plot = ElementTree.fromstring((root / "compare.svg").read_text())
    assert plot.tag.endswith("svg") and "script" not in (root / "compare.svg").read_text()


def test_rows_are_those_of_a_report_and_more(content: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The same criterion, budget, repair and split: a row of the comparison equals the row of a run."""
    quicken(monkeypatch)
    made = run(content)
    plain = {k: v for k, v in content.items() if k != "compare"} | {"name": "plain", "baselines": ["random"]}
    report = pipeline.run(recipe.Recipe.model_validate(plain | {"split": {"seed": 3, "probe": 0.8}}), device="cpu")
    own = next(r for r in report["rows"] if (r["criterion"], r["recovery"]) == ("jas", "affine"))
    row = next(
        r for r in made["rows"] if (r["criterion"], r["recovery"], r["keep"], r["seed"]) == ("jas", "affine", 0.5, 3)
    )
    of_a_run = {"mcnemar_p", "only_right", "dense_p", "dense_only_right"}  # against its exported and its dense model
    assert set(own) - of_a_run <= set(row)
    assert {"seconds", "peak_memory_mb", "seed"} <= set(row)
    for key in (
        "top1",
        "top1_ci95",
        "mean_true_probability",
        "params",
        "macs",
        "n",
        "kept",
        "per_class_top1",
        "head",
        "top1_change_points",
    ):
        assert row[key] == own[key], key
    assert "hits" not in row and row["seconds"] > 0


def test_a_specialist_is_also_shown_with_its_head_masked(content: dict[str, Any], tmp_path: Path) -> None:
    spec = {
        "criteria": ["variance", "random", "magnitude-l1", "auto"],
        "keep": [0.25],
        "recovery": ["affine"],
        "seeds": [1],
    }
    made = run(content | {"classes": ["circle", "square"], "compare": spec})
    heads = [(r["criterion"], r["head"]) for r in made["rows"]]
    assert sorted(heads) == sorted(product(["dense", *spec["criteria"]], ["all", "masked"]))
    top1 = {pair: r["top1"] for pair, r in zip(heads, made["rows"], strict=True)}
    assert all(top1[name, "masked"] >= top1[name, "all"] for name in ("dense", *spec["criteria"]))
    assert made["dense"]["top1_masked_head"] == top1["dense", "masked"]
    assert (tmp_path / "out" / "tiny" / "compare.md").read_text().count("with the head masked") == 5


def test_means_and_deviations(content: dict[str, Any]) -> None:
    made = run(content)
    for line in made["table"]:
        key = ("criterion", "keep", "recovery")
        own = [r["top1"] for r in made["rows"] if all(r[k] == line[k] for k in key)]
        dense = [r["top1"] for r in made["rows"] if r["criterion"] == "dense"]
        assert line["top1"] == pytest.approx(np.mean(own)) and line["top1_sd"] == pytest.approx(np.std(own, ddof=1))
        losses = 100 * (np.array(dense) - np.array(own))
        assert line["loss_points"] == pytest.approx(losses.mean()) and line["loss_points_sd"] == pytest.approx(
            losses.std(ddof=1)
        )
        others = [x for x in made["table"] if x["criterion"] not in (line["criterion"], "auto")]
        others = [x for x in others if (x["keep"], x["recovery"]) == (line["keep"], line["recovery"])]
        assert line["ahead_points"] == pytest.approx(100 * (line["top1"] - max(x["top1"] for x in others)))
        assert line["mcnemar_p"] == max(line["mcnemar_p_of_seeds"]) and len(line["mcnemar_p_of_seeds"]) == 2


def test_one_seed_has_no_deviation(content: dict[str, Any]) -> None:
    made = run(content | {"compare": SPEC | {"seeds": [4]}})
    assert all(line["top1_sd"] is None and line["loss_points_sd"] is None for line in made["table"])


def test_mcnemar_is_the_exact_binomial_test() -> None:
    generator = np.random.default_rng(0)
    for n in (4, 9, 30):
        one, other = generator.random(n) < 0.7, generator.random(n) < 0.5
        b, c = int((one & ~other).sum()), int((~one & other).sum())
        total = b + c
        likely = [comb(total, k) / 2**total for k in range(total + 1)]
        expected = min(1.0, sum(p for p in likely if p <= likely[b] * (1 + 1e-9))) if total else 1.0
        assert metrics.mcnemar(one, other) == pytest.approx(expected)
        assert metrics.mcnemar(one, other) == metrics.mcnemar(other, one)
    assert metrics.mcnemar(np.ones(5, bool), np.ones(5, bool)) == 1.0


def test_hits_survive_their_packing(content: dict[str, Any]) -> None:
    made = recipe.Recipe.model_validate({k: v for k, v in content.items() if k != "compare"} | {"baselines": []})
    with Run.open(made, "cpu", progress.Reporter(quiet=True)) as run:
        pipeline.advance(run, "moments")
        contender = contenders.Contender("jas", 0.5, "affine", 0)
        made, cell = contenders.examine(run, contender), contenders.Cell.of(run, contender)
    assert len(cell.hits) == cell.whole.n == 12 and cell.hits.mean() == pytest.approx(cell.whole.top1)
    np.testing.assert_array_equal(cell.hits, made.logits.argmax(1) == made.labels)
    kept = json.loads(json.dumps(cell.as_json()))
    read = contenders.Cell.from_json(kept)
    assert read == cell and read.as_json() == kept
    np.testing.assert_array_equal(read.hits, cell.hits)


def test_what_is_done_is_not_done_again(content: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped in the middle, the same call goes on; afterwards it reads; another budget costs only its own cells."""
    calls: list[str] = []
    original = metrics.metrics
    stop_at: int | None = 6

    def counted(*args: Any, **options: Any) -> Any:
        if stop_at is not None and len(calls) == stop_at:
            raise KeyboardInterrupt
        calls.append("x")
        return original(*args, **options)

    monkeypatch.setattr(metrics, "metrics", counted)
    with pytest.raises(KeyboardInterrupt):
        run(content)
    stop_at = None
    first = run(content)
    cells_of_seed, fold_of_seed = 1 + 4 * 2 * 2, 3 * 2 * 2
    assert len(calls) == 2 * (cells_of_seed + fold_of_seed)
    calls.clear()
    again = run(content)
    assert calls == [] and again["table"] == first["table"]
    run(content | {"compare": SPEC | {"keep": [0.5, "8 units", 0.25]}})
    assert len(calls) == 2 * (4 * 2 + 3 * 2)


def cells(out: Path) -> dict[str, bytes]:
    """Every cell, and nothing else beside it."""
    found = {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("cells/**/*") if path.is_file()}
    assert found and all(name.endswith(".json") for name in found)
    return found


@pytest.mark.sample(1)
@pytest.mark.parametrize("workers", [2, 3])
def test_workers_leave_no_trace_in_a_comparison(content: dict[str, Any], tmp_path: Path, workers: int) -> None:
    content |= {"compare": SPEC | {"keep": [0.5], "recovery": ["none", "sequential"], "seeds": [0]}}
    alone = run(content | {"out": str(tmp_path / "alone")})
    made = run(content, workers=workers)
    assert cells(tmp_path / "out") == cells(tmp_path / "alone")
    assert made["table"] == alone["table"] and made["choices"] == alone["choices"]


def test_a_damaged_cell_is_examined_again(content: dict[str, Any], tmp_path: Path) -> None:
    first = run(content)
    files = sorted((tmp_path / "out").rglob("cells/*.json"))
    for path, text in zip(files, ["", "{}", "[]", '{"key": "x", "hits": ""}'], strict=False):
        path.write_text(text)
    assert run(content)["table"] == first["table"]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"keep": [0.5, 0.5]}, "twice"),
        ({"keep": [0]}, "at least 1"),
        ({"keep": [1.5]}, "ratio"),
        ({"criteria": ["jas"]}, "criteria"),
        ({"criteria": ["jas", "jaz"]}, "criteria"),
        ({"seeds": []}, "seeds"),
        ({"kepe": [1]}, "kepe"),
        ({"among": ["jas"]}, "among"),
        ({"among": ["jas", "random"]}, "among"),
        ({"among": ["jas", "jas"]}, "among"),
        ({"among": ["jas", "taylor"]}, "among"),
        ({"among": ["jas", "variance"], "criteria": ["jas", "variance"]}, "among"),
    ],
)
def test_a_wrong_comparison_is_one_line(content: dict[str, Any], wrong: dict[str, Any], said: str) -> None:
    text = json.dumps({k: str(v) if isinstance(v, Path) else v for k, v in content.items()} | {"compare": SPEC | wrong})
    with pytest.raises(UserError, match=said):
        parse.parse(text)


def test_what_only_shows_at_work_is_one_line_too(content: dict[str, Any]) -> None:
    for changed in (
        {"compare": SPEC | {"keep": [400]}},
        {"compare": SPEC | {"criteria": ["jas", "auto"]}},
        {"groups": {"a": ["circle"]}},
    ):
        with pytest.raises(UserError):
            run(content | changed)


# ---- auto


def test_auto_takes_the_best_on_the_fold_and_says_so(content: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    quicken(monkeypatch)
    among = ["variance", "magnitude-l2", "jas"]
    plain = {k: v for k, v in content.items() if k != "compare"} | {"baselines": ["random"]}
    auto = plain | {"criterion": content["criterion"] | {"name": "auto", "among": among}}
    made = pipeline.run(recipe.Recipe.model_validate(auto), device="cpu")
    found = made["choice"]["top1"]
    assert list(found) == among == list(made["choice"]["mean_true_probability"])
    assert made["choice"]["chosen"] in among
    assert made["recipe"]["criterion"]["name"] == made["choice"]["chosen"] == made["result"]["criterion"]
    assert any("Criterion `auto` took" in note for note in made["notes"])
    named = plain | {"name": "named", "criterion": content["criterion"] | {"name": made["choice"]["chosen"]}}
    own = pipeline.run(recipe.Recipe.model_validate(named), device="cpu")
    assert own["result"]["top1"] == made["result"]["top1"] and own["result"]["kept"] == made["result"]["kept"]


def test_what_top1_does_not_settle_the_probability_does() -> None:
    draw = np.random.default_rng(0)
    base = draw.random(400) < 0.8
    close, far = base.copy(), base.copy()
    close[np.flatnonzero(base)[:3]] = False  # 3 images behind of 3 that differ: 3 <= 2 * sqrt(3)
    far[np.flatnonzero(base)[:5]] = False  # 5 > 2 * sqrt(5)
    hits = {"base": base, "close": close, "far": far}
    assert choose.decide(hits, {"base": 0.7, "close": 0.71, "far": 0.9}) == "close"
    assert choose.decide(hits, {"base": 0.7, "close": 0.6, "far": 0.9}) == "base"
    assert choose.decide({"a": base, "b": base.copy()}, {"a": 0.5, "b": 0.5}) == "a"


def test_auto_can_be_kept_to_some_of_the_criteria(content: dict[str, Any]) -> None:
    among = ["magnitude-l2", "variance"]
    made = run(
        content | {"compare": SPEC | {"among": among, "keep": ["8 units"], "recovery": ["affine"], "seeds": [0]}}
    )
    assert [sorted(why["top1"]) for why in made["choices"]] == [among]
    everything = run(content | {"compare": SPEC | {"keep": ["8 units"], "recovery": ["affine"], "seeds": [0]}})
    assert [sorted(why["top1"]) for why in everything["choices"]] == [["jas", *among]]


@pytest.mark.slow
def test_what_runs_every_unit_alone_may_look_at_fewer_images(content: dict[str, Any]) -> None:
    few = content["criterion"] | {"exact_per_class": 2}
    names = ["knowledge-attribution", "jas"]
    made = run(content | {"criterion": few, "compare": SPEC | {"criteria": names, "seeds": [0]}})
    images = {cost["criterion"]: cost["images"] for cost in made["costs"]}
    assert images == {"knowledge-attribution": 2 * 3, "jas": few["probe_per_class"] * 3}
    plain = {k: v for k, v in content.items() if k != "compare"} | {"baselines": []}
    for own in ({"probe_per_class": 2}, {"exact_per_class": 2}):
        criterion = content["criterion"] | {"name": "knowledge-attribution"} | own
        report = pipeline.run(recipe.Recipe.model_validate(plain | {"criterion": criterion}), device="cpu")
        assert [d["images"] for d in report["discoveries"]] == [6]


def test_the_fold_lies_inside_the_probe_split(content: dict[str, Any]) -> None:
    made = recipe.Recipe.model_validate({k: v for k, v in content.items() if k != "compare"} | {"baselines": []})
    with Run.open(made, "cpu", progress.Reporter(quiet=True)) as run:
        pipeline.advance(run, "discover")
        inner = choose.fold(run, ["jas", "variance"])
        assert set(inner.split.probe) | set(inner.split.test) == set(run.split.probe)
        assert not set(inner.split.probe) & set(inner.split.test) and len(inner.split.test) == 12
        assert set(inner.images.labels[inner.split.test]) == {0, 1, 2}


def test_the_choice_does_not_look_at_the_test_split(content: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Other labels on the test images change nothing about the choice."""
    plain = {k: v for k, v in content.items() if k != "compare"} | {"baselines": []}
    auto = plain | {"criterion": content["criterion"] | {"name": "auto", "among": ["variance", "magnitude-l1", "jas"]}}
    made = recipe.Recipe.model_validate(auto)
    seen: set[int] = set()
    with Run.open(made, "cpu", progress.Reporter(quiet=True)) as run:
        plain_one = made.model_copy(update={"criterion": made.criterion.model_copy(update={"name": "jas"})})
        pipeline.advance(dataclasses.replace(run, recipe=plain_one), "discover")
        ask = type(run.images)._ask

        def watched(images: Any, part: np.ndarray) -> Any:
            seen.update(part.tolist())
            return ask(images, part)

        monkeypatch.setattr(type(run.images), "_ask", watched)
        choose.choose(run)
        assert seen and not seen & set(run.split.test.tolist())


def test_auto_needs_two_probe_images_a_class(content: dict[str, Any], tmp_path: Path) -> None:
    images = image_folder(tmp_path / "few", 2)
    few = {k: v for k, v in content.items() if k != "compare"}
    few |= {"data": {"path": str(images)}, "criterion": {"name": "auto", "t": 3}, "baselines": []}
    with pytest.raises(UserError, match="fold inside the probe split"):
        pipeline.run(recipe.Recipe.model_validate(few), device="cpu")


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ({"criterion": {"name": "auto", "among": ["jas"]}}, "among"),
        ({"criterion": {"name": "auto", "among": ["jas", "random"]}}, "among"),
        ({"baselines": ["auto"]}, "baseline"),
    ],
)
def test_a_choice_among_nothing_is_refused(part: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        parse.parse(json.dumps({"name": "a"} | part))


# ---- the command line


def test_the_verbs(content: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    small = content | {
        "compare": {"criteria": ["magnitude-l1", "random"], "keep": [0.5], "recovery": ["none"], "seeds": [0]}
    }
    path.write_text(json.dumps(small))
    done = CliRunner().invoke(app.app, ["compare", str(path), "--device", "cpu", "--json"])
    assert done.exit_code == 0 and [r["criterion"] for r in json.loads(done.stdout)["table"]] == [
        "magnitude-l1",
        "random",
    ]
    done = CliRunner().invoke(app.app, ["compare", str(path), "--device", "cpu"])
    assert done.exit_code == 0 and "| magnitude-l1 |" in done.stdout and "compare.svg" in done.stdout
    done = CliRunner().invoke(app.app, ["criteria", "--json"])
    rows = json.loads(done.stdout)
    assert {r["name"] for r in rows} == {*CRITERIA, "random"} and all(r["source"] for r in rows)
    assert {"labels", "gradients", "training"} <= {need for r in rows for need in r["needs"]}
    assert len(CliRunner().invoke(app.app, ["criteria"]).stdout.splitlines()) == len(rows)


def test_the_bundled_comparisons_are_in_order() -> None:
    for name in ("compare-demo", "compare-full"):
        made = parse.load(name)
        assert made.compare is not None and "auto" in made.compare.criteria and len(made.compare.seeds) == 3
    full = parse.load("compare-full").compare
    assert full is not None and set(full.criteria) == {*CRITERIA, "random", "auto"}
