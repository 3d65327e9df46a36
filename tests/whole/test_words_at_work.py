"""The budget's words at work on a tiny model: widths, refusals before any work, rows, comparisons."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small import image_folder, model_folder, quicken, recipe_dict, tiny_model, write_recipe
from typer.testing import CliRunner

import vitprune
from vitprune.api import slimming
from vitprune.cli import app
from vitprune.core.errors import UserError
from vitprune.core.progress import Reporter
from vitprune.exam import metrics
from vitprune.model import families, size
from vitprune.model.sites.attention import attention_sites
from vitprune.pruning.whole import reach
from vitprune.recipe.recipe import Recipe
from vitprune.report.reading.beside import Beside
from vitprune.report.sections.comparing.over_splits import splits_blocks
from vitprune.runs import compare, pipeline
from vitprune.runs.results.row import Row
from vitprune.runs.state import defaults
from vitprune.runs.state.run import Run


@pytest.fixture(scope="module", name="content")
def small_recipe(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("words")
    made = recipe_dict(model_folder(folder / "model"), image_folder(folder / "images", 20), folder / "out")
    for key in ("keep", "recovery", "criterion"):
        del made[key]
    return made | {"criterion": {"probe_per_class": 8}, "baselines": []}


def run(content: dict[str, Any], out: Path, until: str, **changed: Any) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        quicken(patch)
        return pipeline.run(Recipe.model_validate({**content, "out": str(out), **changed}), until, device="cpu")


def test_the_default_run_widths_and_floor(content: dict[str, Any], tmp_path: Path) -> None:
    """No budget named: half of the multiply-adds, attention with the FFNs, whose widths are multiples of `round_to`."""
    run(content, tmp_path, "prune", round_to=8, floor=12)
    slim, folder = vitprune.load(tmp_path / "tiny"), tmp_path / "tiny"
    widths = [site.size for site in families.ffn_sites(slim)]
    assert all(width % 8 == 0 and width >= 16 for width in widths), widths
    assert size.macs(slim) <= 0.5 * size.macs(tiny_model())
    assert json.loads((folder / "config.json").read_text())["vitprune"]["budget"] == {"macs": 0.5}
    written = (folder / "recipe.yaml").read_text()
    assert "\nbudget:\n  macs: 0.5\n" in written and "keep" not in written and "whole" not in written


@pytest.mark.parametrize("given", [{"budget": {"macs": 0.05}}, {"budget": {"params": 0.2}, "round_to": 32}])
def test_a_budget_that_no_sites_reach_is_refused_before_anything(
    content: dict[str, Any], tmp_path: Path, given: dict[str, Any]
) -> None:
    with pytest.raises(UserError, match=r"is below what is left .* when every site is as small as it may be, 0\.\d+;"):
        run(content, tmp_path, "prune", **given)
    assert not (tmp_path / "tiny" / "stages").exists()
    path = write_recipe(tmp_path / "r.yaml", {**content, **given})
    said = CliRunner().invoke(app.app, ["recipe", "check", "--model", str(path)])
    assert said.exit_code != 0 and "is below what is left" in str(said.exception or said.stderr)


def test_the_library_refuses_before_it_looks_at_images(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = tiny_model(), torch.randn(12, 1, 28, 28)
    scores = vitprune.discover(model, images, torch.arange(12) % 3)
    monkeypatch.setattr(slimming, "statistics", lambda *_: pytest.fail("statistics were worked out"))
    with pytest.raises(UserError, match=r"is below what is left .* 0\.\d+; raise it"):
        vitprune.prune(model, scores, budget={"macs": 0.02}, images=images)
    said = {"macs": "one amount of what is left", "loss_points": "needs labels", "latency": "needs a run"}
    for budget in ({"macs": [0.5, 0.4]}, {"loss_points": 1.0}, {"latency": 0.5}):
        with pytest.raises(UserError, match=said[next(iter(budget))]):
            vitprune.prune(model, scores, budget=budget, images=images)  # type: ignore[arg-type]


def test_the_smallest_model_is_what_its_sites_cost(content: dict[str, Any]) -> None:
    """Replica: everything that stays, plus one head of the fewest dimensions and one unit in every block."""
    model = tiny_model()
    ffns, attentions = families.ffn_sites(model), attention_sites(model)
    for word in ("macs", "params"):
        prices = reach.priced(word, model)
        expected = prices.total
        for a in attentions:
            expected -= prices.attention(a, a.heads, a.dim) - prices.attention(a, 1, min(a.dims))
        for site in ffns:
            expected -= float(np.diff(prices.ffn(site, np.array([1, site.size])))[0])
        assert reach.least(model, attentions, prices) == pytest.approx(expected, rel=1e-12)
    assert reach.priced("latency", model) is None


def test_a_default_that_the_model_cannot_reach_gives_way(content: dict[str, Any]) -> None:
    model = tiny_model()
    made = Recipe.model_validate({**content, "prune": ["ffn"], "round_to": 64})
    adapted, notes = defaults.adapted(made, model, families.ffn_sites(model))
    assert (adapted.whole, adapted.keep, adapted.prunes_attention) == (None, 0.25, False)
    assert [note for note in notes if note.startswith("keep: 25% and not budget: {macs: 0.5}")]
    asked = Recipe.model_validate({**content, "prune": ["ffn"], "round_to": 64, "budget": {"macs": 0.5}})
    assert defaults.adapted(asked, model, families.ffn_sites(model))[0].keep is None


def slow_kl(dense: np.ndarray, other: np.ndarray) -> float:
    """Mean over rows of Σ p·log(p/q), one image and one output at a time."""
    total = 0.0
    for a, b in zip(dense.astype(np.float64).tolist(), other.astype(np.float64).tolist(), strict=True):
        za, zb = math.fsum(math.exp(x) for x in a), math.fsum(math.exp(x) for x in b)
        total += math.fsum(
            math.exp(x) / za * (math.log(math.exp(x) / za) - math.log(math.exp(y) / zb))
            for x, y in zip(a, b, strict=True)
        )
    return total / len(dense)


def test_divergence_is_what_a_slow_sum_gives() -> None:
    draw = np.random.default_rng(0)
    dense, other = draw.normal(size=(9, 5)).astype(np.float32), draw.normal(size=(9, 5)).astype(np.float32)
    assert metrics.kl(dense, other) == pytest.approx(slow_kl(dense, other), rel=1e-12)
    assert metrics.kl(dense, other, [3, 1]) == pytest.approx(slow_kl(dense[:, [3, 1]], other[:, [3, 1]]), rel=1e-12)
    assert metrics.kl(dense, dense) == 0.0 and metrics.kl(dense + 1000, dense - 1000) == pytest.approx(0.0, abs=1e-9)


def test_rows_tell_sites_budget_ratio_and_divergence(content: dict[str, Any], tmp_path: Path) -> None:
    made = run(content, tmp_path, "evaluate", classes=["circle", "cross"], baselines=["random"], head="own")
    rows, folder = made["rows"], tmp_path / "tiny"
    recipe = Recipe.model_validate({**content, "out": str(tmp_path), "classes": ["circle", "cross"], "head": "own"})
    with Run.open(recipe, "cpu", Reporter(quiet=True)) as opened:
        targets = opened.classes.every()
        index = opened.split.test[np.isin(opened.images.labels[opened.split.test], targets)]
        x = torch.cat([part for part, _ in opened.images.batches(index, 8)])
        dense, slim = opened.loaded.model(x).numpy(), vitprune.load(folder)(x).numpy()
        ratio = size.macs(vitprune.load(folder)) / size.macs(opened.loaded.model)
    own = next(row for row in made["rows"] if (row["criterion"], row["recovery"]) == ("fisher-obs", "layerwise+head"))
    assert own["head"] == "masked" and slim.shape[1] == len(targets)
    assert own["kl"] == pytest.approx(slow_kl(dense[:, targets], slim), rel=1e-5)
    assert own["macs_ratio_checkpoint"] == pytest.approx(ratio) and own["macs_ratio"] <= 0.5
    for row in rows:
        pruned = row["criterion"] != "dense"
        assert row["sites"] == (["ffn", "attention"] if pruned else [])
        assert row["budget"] == ({"macs": 0.5} if pruned else None) and (row["keep"] is None) == pruned
        assert (row["kl"] > 0) == pruned and (row["macs_ratio"] < 1) == pruned
    assert {row["head"] for row in rows if row["criterion"] == "dense"} == {"all", "masked"}


def test_rows_of_before_are_still_read(content: dict[str, Any], tmp_path: Path) -> None:
    made = run(content, tmp_path, "evaluate", keep=0.5, criterion={"name": "magnitude-l2"}, recovery="none")
    for row in made["rows"]:
        again = Row.from_json(row)
        assert again.as_json().items() <= row.items()
        assert row["sites"] == ([] if row["criterion"] == "dense" else ["ffn"]) and row["budget"] is None
        old = Row.from_json(
            {k: v for k, v in row.items() if k not in ("sites", "budget", "macs_ratio", "macs_ratio_checkpoint", "kl")}
        )
        assert (old.sites, old.budget, old.macs_ratio, old.kl) == (None, None, None, None)
        assert Row.from_json(old.as_json()) == old


def test_a_comparison_under_budgets(content: dict[str, Any], tmp_path: Path) -> None:
    """Criteria of FFN units alone have as many of each FFN as the first that prices attention, and its attention."""
    spec = {"criteria": ["variance-weight", "fisher-obs", "random"], "budget": [{"macs": 0.6}, {"params": 0.7}]}
    spec |= {"recovery": ["layerwise"], "seeds": [0]}
    made = compare.compare(
        Recipe.model_validate({**content, "out": str(tmp_path), "budget": {"macs": 0.3}, "compare": spec}), device="cpu"
    )
    assert [(line["keep"], line["budget"]) for line in made["table"]] == [
        (None, budget) for budget in spec["budget"] for _ in spec["criteria"]
    ]
    dense = made["dense"]
    for budget, word in ((spec["budget"][0], "macs"), (spec["budget"][1], "params")):
        rows = [row for row in made["rows"] if row["budget"] == budget]
        assert len(rows) == 3 and all(row[word] <= budget[word] * dense[word] for row in rows)
        assert len({(row["macs"], row["params"], row["kept"]) for row in rows}) == 1
        assert len({row["kl"] for row in rows}) == 3 and all(row["allocation"] == "whole" for row in rows)
    text = (tmp_path / "tiny" / "compare.md").read_text()
    assert (
        text.count("| macs 0.6 |") == 3 and text.count("| params 0.7 |") == 3 and "budgets of the whole model" in text
    )
    assert "multiply-adds left" in (tmp_path / "tiny" / "compare.svg").read_text()
    blocks = splits_blocks({"compare": "compare.json"}, Beside(tmp_path / "tiny"))
    assert repr(blocks).count("macs 0.6 (") == 3 and "against the multiply-adds left" in repr(blocks)
    again = compare.compare(
        Recipe.model_validate({**content, "out": str(tmp_path), "budget": {"macs": 0.3}, "compare": spec}), device="cpu"
    )
    assert again["table"] == made["table"]
    low = {**spec, "budget": [{"macs": 0.6}, {"macs": 0.05}]}
    wrong = Recipe.model_validate({**content, "out": str(tmp_path / "b"), "compare": low})
    with pytest.raises(UserError, match=r"macs: 0\.05 is below what is left"):
        compare.compare(wrong, device="cpu")
    assert not (tmp_path / "b" / "tiny" / "compare" / "seed-0" / "stages" / "discover").exists()
