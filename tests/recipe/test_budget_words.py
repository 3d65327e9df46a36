"""What a recipe's words for the budget mean, and which of them the written recipe has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from vitprune.cli import app
from vitprune.core.errors import UserError
from vitprune.criteria.catalog import CRITERIA, covers_attention
from vitprune.recipe import check, parse
from vitprune.recipe.parts import Whole
from vitprune.recipe.recipe import Recipe

HALF, QUARTER = {"budget": {"macs": 0.5}}, {"keep": 0.25}


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("", HALF),
        ("classes: [bag]", HALF),
        ("groups: {auto: 2}", HALF),
        ("prune: [ffn]", HALF),
        ("round_to: 8\nfloor: 2", HALF),
        ("recovery: none", HALF),
        ("compare: {budget: [{macs: 0.4}], criteria: [fisher-obs, random]}", HALF),
        ("criterion: {name: jas}", QUARTER),
        ("criterion: {name: activation}", QUARTER),
        ("criterion: {name: auto}", QUARTER),
        ("rounds: 2", QUARTER),
        ("allocation: uniform", QUARTER),
        ("allocation: global", QUARTER),
        ("allocation: budgeted", QUARTER),
        ("budget: parameters", QUARTER),
        ("compare: {}", QUARTER),
        ("paper: {}", QUARTER),
        ("paper_protocol: {}", QUARTER),
    ],
)
def test_what_neither_keep_nor_a_mapping_means(text: str, meant: dict[str, Any]) -> None:
    made = parse.parse(f"name: a\n{text}\n")
    assert {key: made.written()[key] for key in meant} == meant
    assert (made.whole is None) == ("keep" in meant) and made.prunes_attention == (meant is HALF and "ffn" not in text)
    assert parse.parse(parse.dump(made)) == made


@pytest.mark.parametrize("name", sorted(CRITERIA))
def test_a_criterion_that_prices_attention_goes_by_the_whole_model_and_others_by_keep(name: str) -> None:
    made = Recipe.model_validate({"name": "a", "criterion": {"name": name}})
    assert (
        (made.whole is not None) == covers_attention(name) == (name == "random" or CRITERIA[name].attention is not None)
    )
    if not covers_attention(name):
        with pytest.raises(ValueError, match=f"`{name}` scores hidden units alone and goes with `keep`"):
            Recipe.model_validate({"name": "a", "criterion": {"name": name}, "budget": {"macs": 0.5}})


@pytest.mark.parametrize(
    ("text", "there"),
    [
        ("", {"budget": {"macs": 0.5}, "prune": ["ffn", "attention"]}),
        ("budget: {params: 0.25}\nprune: [ffn]", {"budget": {"params": 0.25}, "prune": ["ffn"]}),
        ("budget: {macs: [0.5, 0.25]}", {"budget": {"macs": [0.5, 0.25]}, "prune": ["ffn", "attention"]}),
        ("budget: {loss_points: 1.0}", {"budget": {"loss_points": 1.0}, "prune": ["ffn", "attention"]}),
        ("whole: {macs: 0.5}\nkeep: null\nbudget: flops", {"budget": {"macs": 0.5}, "prune": ["ffn", "attention"]}),
        ("keep: 25%", {"keep": 0.25, "allocation": "auto", "rounds": 1}),
        ("keep: 25 units\nprune: [ffn]", {"keep": "25 units", "prune": ["ffn"], "allocation": "auto", "rounds": 1}),
        ("allocation: budgeted", {"keep": 0.25, "allocation": "budgeted", "budget": "flops", "rounds": 1}),
    ],
)
def test_the_written_recipe_has_the_words_that_apply(text: str, there: dict[str, Any]) -> None:
    made = parse.parse(f"name: a\n{text}\n")
    words = {"whole", "budget", "keep", "prune", "allocation", "rounds"}
    assert {key: part for key, part in yaml.safe_load(parse.dump(made)).items() if key in words} == there
    assert parse.parse(parse.dump(made)) == made
    assert set(made.written()) - {"budget"} <= set(Recipe.model_fields)


@pytest.mark.parametrize(
    ("text", "keep", "budget"),
    [
        ("keep: 0.5\ncompare: {}", [0.5, 0.25, 0.125], None),
        ("budget: {params: 0.3}\ncompare: {}", None, [{"macs": 0.5}, {"macs": 0.25}]),
        ("budget: {macs: 0.3}\ncompare: {keep: [0.5]}", [0.5], None),
        ("budget: {macs: 0.3}\ncompare: {criteria: [auto, jas, obs]}", [0.5, 0.25, 0.125], None),
        ("keep: 0.5\ncompare: {budget: [{macs: 0.4}, {params: 0.3}]}", None, [{"macs": 0.4}, {"params": 0.3}]),
    ],
)
def test_a_comparison_is_of_shares_or_of_mappings(text: str, keep: Any, budget: Any) -> None:
    made = parse.parse(f"name: a\n{text}\n")
    assert made.compare is not None and made.compare.keep == keep
    assert (made.compare.budget and [one.spelled for one in made.compare.budget]) == budget
    section = made.written()["compare"]
    assert (section.get("keep"), section.get("budget")) == (keep, budget) and len(
        {"keep", "budget"} & set(section)
    ) == 1
    assert parse.parse(parse.dump(made)) == made


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("budget: 0.25", "line 2: `budget`: is a mapping of one word, such as `{macs: 0.25}`"),
        ("budget: macs", "line 2: `budget`: is a mapping of one word"),
        ("budget: [0.5]", "line 2: `budget`: is a mapping of one word"),
        ("budget: {flops: 0.5}", "unknown key `budget.flops`; known keys here: macs, params"),
        ("budget: {macs: 0.5}\nallocation: uniform", "`allocation` does not go with a budget of the whole model"),
        ("budget: {macs: 0.5}\nallocation: budgeted", "`allocation` does not go with a budget of the whole model"),
        ("budget: {macs: 0.5}\nrounds: 2", "`rounds` does not go with a budget of the whole model"),
        ("keep: 0.5\nprune: [ffn, attention]", "`prune: attention` goes with a budget of the whole model"),
        ("compare: {keep: [0.5], budget: [{macs: 0.5}]}", "give `keep` or `budget`, not both"),
        ("compare: {keep: null}", "give `keep` or `budget`, a list of one or the other"),
        ("compare: {budget: [{macs: [0.5, 0.4]}]}", "a list of mappings of one amount each"),
        ("compare: {budget: [{loss_points: 1}]}", "a list of mappings of one amount each"),
        ("compare: {budget: [{macs: 0.5}, {macs: 0.5}]}", "`budget` names one of its values twice"),
        ("compare: {budget: [{flops: 0.5}]}", "unknown key `compare.budget.0.flops`; known keys here: macs"),
        ("compare: {budget: [{macs: 0.5}], criteria: [auto, jas, obs]}", "`auto` chooses by shares of FFN units"),
    ],
)
def test_what_does_not_go_together_is_one_line_in_the_users_words(text: str, told: str) -> None:
    with pytest.raises(UserError) as caught:
        parse.parse(f"name: a\n{text}\n", "r.yaml")
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_a_comparison_of_budgets_needs_a_criterion_that_prices_attention() -> None:
    ffn = [name for name in CRITERIA if not covers_attention(name)][:2]
    content = {"name": "a", "criterion": {"name": "jas"}, "compare": {"budget": [{"macs": 0.5}], "criteria": ffn}}
    with pytest.raises(UserError, match=r"budgets of the whole model need one of .*`fisher-obs`"):
        check.exclusive(Recipe.model_validate(content))
    content["criterion"] = {"name": "fisher-obs"}
    check.exclusive(Recipe.model_validate(content))


def test_old_words_are_read_with_one_line_of_advice(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("name: a\nkeep: 0.5\nallocation: budgeted\nbudget: parameters\n")
    made = parse.load(path)
    assert made.budget == "parameters" and made.keep == 0.5 and made.whole is None
    said = CliRunner().invoke(app.app, ["recipe", "check", str(path)])
    assert said.exit_code == 0 and said.stderr.count("`budget: parameters` counts the FFNs alone") == 1
    path.write_text("name: a\nkeep: 0.5\nbudget: flops\n")  # as every recipe of before was written
    said = CliRunner().invoke(app.app, ["recipe", "check", str(path)])
    assert said.exit_code == 0 and said.stderr == ""


def test_an_editor_knows_the_mapping() -> None:
    kinds = Recipe.model_json_schema()["properties"]["budget"]["anyOf"]
    assert set(kinds[0]["properties"]) == set(Whole.model_fields) and kinds[1]["enum"] == [
        "parameters",
        "flops",
        "latency",
    ]
