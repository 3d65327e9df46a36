"""The benchmarks' own parts that a wrong table could come from: the null, the means over seeds, what is read from files."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small import image_folder, model_folder, recipe_dict

from vitprune.core.progress import Reporter
from vitprune.exam.metrics import mcnemar
from vitprune.recipe.recipe import Recipe
from vitprune.runs import pipeline
from vitprune.runs.stages.prune import refit_index
from vitprune.runs.state.run import Run

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(name="script")
def importing(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


def hits(right: list[bool]) -> dict[str, Any]:
    found = np.array(right)
    return {"top1": float(found.mean()), "kept": 0.1, "n": len(found), "hits": np.packbits(found).tobytes().hex()}


def test_the_null_scores_and_repairs_with_images_of_every_class(script: Any, tmp_path: Path) -> None:
    """A class set gets probe images of all classes; the test split keeps the labels it has."""
    content = recipe_dict(model_folder(tmp_path / "model"), image_folder(tmp_path / "images", 20), tmp_path / "out")
    made = Recipe.model_validate({**content, "groups": {"one": ["circle"], "two": ["cross", "square"]}})
    with Run.open(made, "cpu", Reporter(quiet=True)) as run:
        pipeline.advance(run, "split")
        target, true = run.classes.sets()["one"], run.source.class_of.copy()
        labels, test, probe = run.images.labels.copy(), run.split.test, run.split.probe
        before = refit_index(run, target)
        assert set(true[before]) == {run.source.classes.index("circle")}
        script("groups").shuffle_probe_labels(run, 0)
        after = refit_index(run, target)
        assert len(after) == len(before) and set(true[after]) == {0, 1, 2}
        assert sorted(run.source.class_of[probe]) == sorted(true[probe])
        np.testing.assert_array_equal(run.images.labels[test], labels[test])


def test_means_over_the_seeds_and_the_test_on_the_first(script: Any) -> None:
    budget = script("budget")
    dense, ours, other = [True] * 8, [True] * 7 + [False], [True] * 5 + [False] * 3
    rows = {"fisher-obs+layerwise": hits(ours), "variance+affine": hits(other)}
    second = {"fisher-obs+layerwise": hits([True] * 6 + [False] * 2), "variance+affine": hits([True] * 8)}
    seeds = [{"dense": hits(dense), "0.05": rows}, {"dense": hits(dense), "0.05": second}]
    made = budget.summary(seeds, {"0.5": (1.0, "not asked")})
    row = made["budgets"]["0.05"]
    assert made["dense_top1"] == 1 and set(made["budgets"]) == {"0.05"}
    assert row["top1"] == pytest.approx((7 / 8 + 6 / 8) / 2) and row["loss_points"] == pytest.approx(18.75)
    assert row["best_baseline"] == "variance+affine" and row["best_baseline_top1"] == pytest.approx(13 / 16)
    assert row["mcnemar_p"] == mcnemar(np.array(ours), np.array(other)) and "source" not in row
    trained = budget.summary(seeds, {"0.05": (0.99, "a file")})["budgets"]["0.05"]
    assert trained["best_baseline"] == "vit-slim" and trained["mcnemar_p"] is None
    assert trained["source"] == {"vit-slim": "a file"}


def test_a_specialist_stands_beside_what_dense_would_show(script: Any) -> None:
    right = [True] * 9 + [False]
    row = {"key": "x", "dense_head_mask": [True] * 10, "generic": [True] * 2 + [False] * 8,
           "generic_mask_group_refit": right, "specialist": right}  # fmt: skip
    made = script("budget").specialists([{"a": {"0.05": row}}, {"a": {"0.05": row | {"specialist": [False] * 10}}}])
    assert made["a"]["0.05"] == {
        "specialist_top1": pytest.approx(0.45), "dense_head_mask_top1": 1.0, "generic_top1": 0.2, "n": 10,
        "generic_mask_group_refit_top1": 0.9, "mcnemar_p": 2 * 0.5**7, "dense_against_generic_p": 2 * 0.5**8,
    }  # fmt: skip


def test_vit_slim_is_read_for_the_seeds_asked(script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    budget = script("budget")
    row = {"criterion": "vit-slim", "keep": 0.05, "recovery": "affine", "top1_of_seeds": [0.5, 0.7, 0.9]}
    better = row | {"recovery": "layerwise", "top1_of_seeds": [0.6, 0.6, 0.6]}
    other = row | {"criterion": "obs", "top1_of_seeds": [1, 1, 1]}
    table = {"allocation": "global", "seeds": [0, 1, 2], "table": [row, better, other]}
    (tmp_path / "compare-x-bundled.json").write_text(json.dumps(table))
    monkeypatch.setattr(budget, "RESULTS", tmp_path)
    assert budget.vit_slim("bundled", [0])["0.05"] == (0.6, "compare-x-bundled.json: layerwise, global, 1 seeds")
    assert budget.vit_slim("bundled", [0, 1, 2])["0.05"][0] == pytest.approx(0.7)
    assert budget.vit_slim("bundled", [3]) == {} == budget.vit_slim("another", [0])


@pytest.mark.parametrize("model", ["bundled", "dinov2_small_fashion"])
def test_the_committed_budget_is_the_object_that_is_promised(script: Any, model: str) -> None:
    made = json.loads((FOLDER / "results" / f"budget-{model}.json").read_text())
    made = made if model == "bundled" else made["pretrained"]
    keeps = ["0.5", "0.125", "0.05", "0.02"] if model == "bundled" else ["0.5", "0.25", "0.125", "0.05"]
    assert list(made["budgets"]) == keeps and made["seeds"] == [0, 1, 2]
    for row in made["budgets"].values():
        assert {"top1", "loss_points", "best_baseline", "best_baseline_top1"} <= set(row)
        assert row["loss_points"] == pytest.approx(100 * (made["dense_top1"] - row["top1"]))
        assert row["best_baseline_top1"] == max(row["baselines"].values())
    for name, budgets in made.get("specialists", {}).items():
        assert name in script("budget").GROUPS and list(budgets) == ["0.05", "0.02"]
        for row in budgets.values():
            assert {"specialist_top1", "dense_head_mask_top1", "generic_top1", "generic_mask_group_refit_top1",
                    "mcnemar_p"} <= set(row)  # fmt: skip


def test_a_loss_is_told_as_chosen_and_as_it_came_out(script: Any) -> None:
    tried = [{"macs": 0.5, "within": True}]
    chosen = {
        "macs": 0.5,
        "within": True,
        "loss_points": 0.4,
        "bound_points": 0.9,
        "n": 80,
        "tried": tried,
        "group": None,
    }
    dense = {"criterion": "dense", "top1": 0.9, "macs": 200, "mcnemar_p": 0.25}
    slim = {"criterion": "fisher-obs", "top1": 0.88, "macs": 98, "n": 50, "top1_change_points": -2.0}
    made = script("losses").figures({"losses": [chosen], "rows": [dense, slim], "result": slim})
    assert made["probe"] == {name: x for name, x in chosen.items() if name != "group"} and made["macs_ratio"] == 0.49
    assert made["test"] == {"dense_top1": 0.9, "top1": 0.88, "loss_points": 2.0, "n": 50, "mcnemar_p": 0.25}


def test_exponents_of_growth_are_the_slopes_between_the_largest(script: Any) -> None:
    """Quadratic in classes, linear in images, flat in width; what is under the floor is flat."""
    growth = script("growth")
    asked = growth.sizes(quick=False)

    def made(classes: int, images: int, units: int) -> dict[str, Any]:
        return {"seconds": {"one": images * classes**2 * 1.0, "none": 1e-6 * images}, "memory": {"one": 0.0}}

    found = {axis: [made(*size) for size in every] for axis, every in asked.items()}
    slopes = growth.exponents(found, asked, "seconds")
    assert slopes["one"] == {"images": 1.0, "classes": 2.0, "width": 0.0}
    assert all(abs(slope) < 0.1 for slope in slopes["none"].values())
    assert growth.exponents(found, asked, "memory") == {"one": {"images": 0.0, "classes": 0.0, "width": 0.0}}
    assert all(
        images % classes == 0 and images // classes >= 4 for every in asked.values() for classes, images, _ in every
    )


def test_runs_are_held_against_each_other_without_their_times(script: Any, tmp_path: Path) -> None:
    """What two engines left is the same but for what is measured; a byte of a file, or a file, is not."""
    scale = script("scale")
    for name, seconds in (("one", 1.5), ("two", 2.5)):
        root = tmp_path / name / "run"
        (root / "stages").mkdir(parents=True)
        (root / "rows.json").write_text(json.dumps({"rows": [{"top1": 0.5, "seconds": seconds}]}))
        (root / "model.safetensors").write_bytes(b"weights")
        (root / "stages" / "stage.json").write_text(json.dumps({"inputs": name}))
        (root / "recipe.yaml").write_text(f"out: {tmp_path / name}")
    one, two = (scale.bits(tmp_path / name / "run") for name in ("one", "two"))
    assert scale.apart(one, two) == [] and set(one) == {"rows.json", "model.safetensors", "recipe.yaml"}
    (tmp_path / "two" / "run" / "model.safetensors").write_bytes(b"weightz")
    (tmp_path / "two" / "run" / "more.json").write_text("{}")
    assert scale.apart(one, scale.bits(tmp_path / "two" / "run")) == ["model.safetensors", "more.json"]


def test_files_of_single_seeds_make_the_mean_of_all(script: Any) -> None:
    whole = script("whole")

    def of(seed: int, kl: float) -> dict[str, Any]:
        row = {"top1": kl, "kl": kl, "ffn_only_kl": None, "loss_points_ci95": [[seed, seed]], "kl_sd": None}
        return {
            "model": "m",
            "seeds": [seed],
            "dense_top1": kl,
            "budgets": {"0.5": row},
            "speedup_batch32": {"0.5": seed},
        }

    made = whole.combined([of(0, 0.1), of(1, 0.2), of(2, 0.6)])
    row = made["budgets"]["0.5"]
    assert made["seeds"] == [0, 1, 2] and made["dense_top1"] == pytest.approx(0.3) and row["kl"] == pytest.approx(0.3)
    assert row["kl_sd"] == pytest.approx(np.std([0.1, 0.2, 0.6], ddof=1)) and row["ffn_only_kl"] is None
    assert row["loss_points_ci95"] == [[0, 0], [1, 1], [2, 2]] and made["speedup_batch32"] == {"0.5": 0}
    whole_again = whole.combined([whole.combined([of(0, 0.1), of(1, 0.2)]), of(2, 0.6)])
    assert whole_again["budgets"]["0.5"]["kl"] == pytest.approx(0.3) and whole_again["seeds"] == [0, 1, 2]


def printed_demo(jas: list[float], random: list[float]) -> dict[str, Any]:
    """What `benchmarks/demo.py run` leaves: oracle top-1 of jas at t = 1, 5, 10, and random's after the repair."""
    base = {"protocol": "honest", "recovery": "affine", "t": None, "seed": 0, "macs": 1, "mcnemar_p": 0.25}
    rows = [base | {"criterion": "dense", "recovery": "none", "top1": 0.92}]
    rows += [base | {"criterion": "jas", "recovery": r, "top1": x} for r, x in (("none", 0.8), ("affine", 0.9))]
    rows += [base | {"criterion": "random", "recovery": "none", "seed": s, "top1": 0.55} for s in range(3)]
    rows += [base | {"criterion": "random", "seed": s, "top1": x} for s, x in enumerate(random)]
    for t, x in zip((1, 5, 10), jas, strict=True):
        rows += [
            base | {"criterion": c, "protocol": "oracle", "t": t, "top1": y}
            for c, y in (("jas", x), ("activation", 0.9))
        ]
    whole = [base | {"criterion": "dense", "top1": 0.92}]
    whole += [
        base | {"criterion": "fisher-obs", "recovery": r, "top1": x}
        for r, x in (("none", 0.9), ("layerwise+head", 0.919))
    ]
    whole += [base | {"criterion": "random", "recovery": "layerwise+head", "top1": x} for x in (0.87, 0.88, 0.89)]
    macs = {"macs_dense": 36e6, "macs_slim": 12e6, "macs_exported": 9e6}
    made = {"seconds": 100.0, "stages": {}, "printed": ["a table", "Report: x"], "macs": macs}
    runs = {"demo": made | {"rows": rows}, "demo-whole": made | {"rows": whole}}
    machine = {"cores": 2, "cpu": "some"}
    return {"date": "2026-11-28", "seconds": 254.6, "other_cores": 0.1, "machine": machine, "runs": runs}


def test_the_page_of_the_demo_says_what_was_printed(script: Any) -> None:
    """Its words follow the figures, whichever way they fall; and the page that is there is the committed file's."""
    demo = script("demo")
    text = demo.text(printed_demo([0.91, 0.93, 0.92], [0.91, 0.905, 0.912])).replace("\n", " ")
    assert "took 4 min 15 s (1 min 40 s and 1 min 40 s of it the halves; 2026-11-28, 2 cores of some, of which" in text
    assert "```text a table Report: x ```" in text and "ahead of activation at every t, by 1.0 to 3.0 points" in text
    assert (
        "it loses 2.0 points" in text
        and "25 points behind it before" in text
        and "after it 0.5 to 1.2 ahead (p = 0.25" in text
    )
    assert "(12.0 M of 36.0 M multiply-adds in the checkpoint, 25 % of them in" in text and "| **91.90** |" in text
    assert "88.00 ± 1.00" in text
    text = demo.text(printed_demo([0.91, 0.9, 0.88], [0.89, 0.88, 0.885])).replace("\n", " ")
    assert "ahead of activation at 1 of 3 t, by 1.0 points" in text and "after it 1.0 to 2.0 behind" in text
    made = json.loads(demo.RESULT.read_text()) if demo.RESULT.is_file() else None
    assert demo.text(made) in demo.PAGE.read_text()
