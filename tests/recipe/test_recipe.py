"""Recipes: every default, every refusal in one line with file and line, and no file that hurts the reader."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from pydantic import ValidationError

from vitprune.core.errors import UserError
from vitprune.criteria.statistics.random import random
from vitprune.images.split import split_per_class
from vitprune.model.sites.ffn import FfnSite
from vitprune.recipe import parse, recipe
from vitprune.recipe.exports import Export, told_batch
from vitprune.recipe.parts import Whole

BUNDLED = sorted(path.stem for path in parse.bundled_folder().glob("*.yaml"))


def refusal(text: str) -> str:
    """The one line with which `text` is refused."""
    with pytest.raises(UserError) as caught:
        parse.parse(text, "some.yaml")
    line = str(caught.value)
    assert "\n" not in line and "\r" not in line
    assert line.startswith("some.yaml")
    assert "pydantic" not in line and "Traceback" not in line
    return line


def test_every_default() -> None:
    made = parse.parse("name: plain").model_dump()
    assert made == {
        "version": 1,
        "name": "plain",
        "model": {
            "name": "bundled",
            "pretrained": False,
            "checkpoint": None,
            "checkpoint_key": None,
            "args": {},
            "preprocess": None,
        },
        "data": {
            "source": "bundled",
            "path": None,
            "dataset": None,
            "dataset_split": "validation",
            "probe": None,
            "test": None,
            "labels": None,
            "attributes": None,
            "masks": None,
            "on_corrupt": "fail",
            "workers": None,
            "limit_per_class": None,
        },
        "split": {"seed": 0, "probe": 0.8},
        "classes": None,
        "groups": None,
        "clusters": None,
        "head": None,
        "rounds": 1,
        "criterion": {
            "name": "fisher-obs",
            "among": ["fisher-obs", "obs", "variance", "mean-activation", "fisher", "taylor", "joint-gates", "jas"],
            "probe_per_class": 40,
            "exact_per_class": None,
            "formula": "jas",
            "candidates": "parallel",
            "shortlist": None,
            "quadrature": None,
            "nodes": None,
            "tokens": "cls",
            "objective": "probability",
            "reference": False,
            "precision": "float32",
            "low": 0.0,
            "form": "signed",
            "labels": "true",
            "seed": 0,
            "epochs": 10,
            "rate": 5e-4,
            "pressure": 1e-4,
            "train_weights": False,
        },
        "whole": {"macs": 0.5, "params": None, "latency": None, "size_mb": None, "loss_points": None},
        "prune": ["ffn", "attention"],
        "attention_dims": "equal",
        "keep": None,
        "allocation": "auto",
        "budget": "flops",
        "floor": 1,
        "round_to": None,
        "recovery": "auto",
        "ridge": None,
        "refit_images": 8000,
        "distill_epochs": 3,
        "precision": "float32",
        "baselines": ["activation", "random"],
        "random_draws": 3,
        "paper_protocol": None,
        "compare": None,
        "paper": None,
        "export": {
            "onnx": True,
            "precisions": ["fp32"],
            "int8_floor_points": 0.5,
            "budget": None,
            "latency_batches": [1, 8, 32],
            "shortcut": True,
        },
        "see": None,
        "track": None,
        "out": Path("exported"),
    }


def test_recipes_do_not_share_their_defaults() -> None:
    first, second = parse.parse("name: a"), parse.parse("name: b")
    first.baselines.clear()
    first.model.args["x"] = 1
    assert second.baselines == ["activation", "random"] and second.model.args == {}
    assert parse.parse("name: c").baselines == ["activation", "random"]


def test_values_do_not_change_after_loading() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        parse.parse("name: a").keep = 0.5  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "line", "key", "nearest"),
    [
        ("name: a\nkepe: 0.5\n", 2, "kepe", "keep"),
        ("kriterion: {}\nname: a\n", 1, "kriterion", "criterion"),
        ("name: a\nmodel:\n  nam: bundled\n", 3, "model.nam", "name"),
        ("name: a\ndata:\n  source: bundled\n  on_corupt: skip\n", 4, "data.on_corupt", "on_corrupt"),
        ("name: a\ncriterion: {t: 5, node: 20}\n", 2, "criterion.node", "nodes"),
        ("name: a\npaper_protocol:\n  probe_perclass: 3\n", 3, "paper_protocol.probe_perclass", "probe_per_class"),
        ("name: a\nexport:\n  latency_batch: [1]\n", 3, "export.latency_batch", "latency_batches"),
        ("name: a\nbasline: [random]\nkeep: 7.5\n", 2, "basline", "baselines"),
    ],
)
def test_unknown_key(text: str, line: int, key: str, nearest: str) -> None:
    message = refusal(text)
    assert message.startswith(f"some.yaml, line {line}: unknown key `{key}`")
    assert f"did you mean `{nearest}`?" in message


def test_unknown_key_unlike_any_lists_the_known_ones() -> None:
    assert "known keys here: seed, probe" in refusal("name: a\nsplit: {zzzzzzzz: 1}\n")


@pytest.mark.parametrize(
    ("text", "line", "key"),
    [
        ("name: a\nversion: 2\n", 2, "version"),
        ("name: a\nversion: 1.5\n", 2, "version"),
        ("name: [a]\n", 1, "name"),
        ("name: 7\n", 1, "name"),
        ("name: a\nmodel: bundled\n", 2, "model"),
        ("name: a\nmodel: {pretrained: perhaps}\n", 2, "model.pretrained"),
        ("name: a\nmodel: {args: [1]}\n", 2, "model.args"),
        ("name: a\nsplit:\n  seed: 1.0\n", 3, "split.seed"),
        ("name: a\nsplit:\n  seed: true\n", 3, "split.seed"),
        ("name: a\nsplit: {probe: 1.0}\n", 2, "split.probe"),
        ("name: a\nsplit: {probe: 0}\n", 2, "split.probe"),
        ("name: a\nsplit: {probe: .nan}\n", 2, "split.probe"),
        ("name: a\ncriterion: {t: 0}\n", 2, "criterion.t"),
        ("name: a\ncriterion: {t: all}\n", 2, "criterion.t"),
        ("name: a\ncriterion: {t: true}\n", 2, "criterion.t"),
        ("name: a\ncriterion: {t: 5.0}\n", 2, "criterion.t"),
        ('name: a\ncriterion: {t: "5"}\n', 2, "criterion.t"),
        ("name: a\ncriterion: {nodes: 1001}\n", 2, "criterion.nodes"),
        ("name: a\ncriterion: {probe_per_class: 0}\n", 2, "criterion.probe_per_class"),
        ("name: a\ncriterion: {name: magic}\n", 2, "criterion.name"),
        ("name: a\nallocation: clever\n", 2, "allocation"),
        ("name: a\nround_to: 0\n", 2, "round_to"),
        ("name: a\nrecovery: pray\n", 2, "recovery"),
        ("name: a\nrecovery: no\n", 2, "recovery"),
        ("name: a\nbaselines: [magic]\n", 2, "baselines"),
        ("name: a\nrandom_draws: 0\n", 2, "random_draws"),
        ("name: a\npaper_protocol: {t: []}\n", 2, "paper_protocol.t"),
        ("name: a\npaper_protocol: {t: [0]}\n", 2, "paper_protocol.t"),
        ("name: a\nexport: {latency_batches: [0]}\n", 2, "export.latency_batches"),
        ("name: a\nexport: {latency_batches: [5000]}\n", 2, "export.latency_batches"),
        ("name: a\nclasses: []\n", 2, "classes"),
        ("name: a\nclasses: boot\n", 2, "classes"),
        ("name: a\nclasses: [yes]\n", 2, "classes"),
        ("name: a\ngroups: {}\n", 2, "groups"),
        ("name: a\ngroups: {shoes: []}\n", 2, "groups"),
        ("name: a\ndata: {source: imagenet}\n", 2, "data.source"),
        ("name: a\ndata: {path: x, limit_per_class: 1}\n", 2, "data.limit_per_class"),
    ],
)
def test_wrong_values_are_refused_with_their_line(text: str, line: int, key: str) -> None:
    message = refusal(text)
    assert f", line {line}: `{key}" in message


@pytest.mark.parametrize("seed", [-1, -(1 << 63) - 1, 1 << 64, 1 << 200])
def test_a_seed_that_a_recipe_may_hold_works(seed: int) -> None:
    with contextlib.suppress(UserError):
        made = parse.parse(f"name: a\nsplit: {{seed: {seed}}}\n")
        split_per_class(np.array([0, 0]), ["a"], seed=made.split.seed, probe=0.5)
    with contextlib.suppress(UserError):
        made = parse.parse(f"name: a\ncriterion: {{seed: {seed}}}\n")
        random([FfnSite(0, "", "", "", 4)], seed=made.criterion.seed)


@pytest.mark.parametrize(
    "keep", ["0", "-1", "0.0", "-0.5", "1.0001", "2.0", ".nan", ".inf", "-.inf", "true", "false", '"0.5"', "[0.5]", ""]
)
def test_keep_out_of_range(keep: str) -> None:
    assert "line 2: `keep`" in refusal(f"name: a\nkeep: {keep}\n")


@pytest.mark.parametrize(
    ("text", "value", "kind"), [("1", 1, int), ("1.0", 1.0, float), ("96 units", 96, int), ("400", 400, int)]
)
def test_a_count_and_a_ratio_stay_what_they_are(text: str, value: Any, kind: type) -> None:
    made = parse.parse(f"name: a\nkeep: {text}")
    again = parse.parse(parse.dump(made))
    assert made.keep == again.keep == value and type(made.keep) is type(again.keep) is kind


def test_classes_and_groups_exclude_each_other() -> None:
    assert "`classes` or `groups`, not both" in refusal("name: a\nclasses: [bag]\ngroups: {shoes: [boot]}\n")


@pytest.mark.parametrize("text", ["data: {source: bundled, path: x}", "data: {}", "data: {on_corrupt: skip}"])
def test_exactly_one_place_of_images(text: str) -> None:
    assert "`data`: give either `source: bundled` or `path: FOLDER`" in refusal(f"name: a\n{text}\n")


BAD_NAMES = ["../up", "/root", "a/b", "..", ".hidden", "", "a b", "-flag", "x" * 65, "a\\b", "ä", "a\n", "a\0b"]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_leave_the_folder(name: str) -> None:
    assert "`name`" in refusal(yaml.safe_dump({"name": name}))
    assert "group" in refusal(yaml.safe_dump({"name": "a", "groups": {name: ["boot"]}}))


@pytest.mark.parametrize("name", ["a", "A.b_c-9", "x" * 64, "9"])
def test_names_that_make_folders(name: str) -> None:
    text = yaml.safe_dump({"name": name, "groups": {name: ["boot"]}})
    assert parse.parse(text).class_sets() == {name: ["boot"]}


@pytest.mark.parametrize("name", ["stages", "report.json", "report.html", "model.onnx", "recipe.yaml", "config.json"])
def test_a_group_may_not_take_a_place_that_the_run_needs(name: str) -> None:
    assert name in refusal(f"name: a\ngroups: {{{name}: [boot]}}\n")


CHAIN = "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    "text",
    ["classes: &n [a]\nbaselines: *n\n", "x: &x {name: a}\n<<: *x\n", "a: &a [x]\n" + CHAIN, "a: &a [*a]\n"],
    ids=["alias", "merge", "bomb", "circle"],
)
def test_anchors_and_bombs(text: str) -> None:
    line = refusal(text)
    assert "anchors are not accepted" in line or "alias" in line


def test_a_deep_document_is_refused() -> None:
    refusal("name: a\nmodel: {args: {x: " + "[" * 1100 + "]" * 1100 + "}}\n")


@pytest.mark.parametrize(
    "text",
    [
        "", "# nothing\n", "just text", "- a\n- b\n", "3", "null", "[name, a]", "name: a\n---\nname: b\n", "name: 'a",
        "name: a\n\tkeep: 1\n", "name: !!python/object/apply:os.system ['true']\n", "name: \0a\n", "{? [a, b] : c}",
        "1: 2\nname: a\n", "name: a\nkeep: " + "9" * 5000 + "\n", "name: a\nkeep: !!int x\n", "name: a\ndata: !!set {x}\n",
        "name: a\nout: !!timestamp 9\n", "name: a\nmodel: !!omap {a: b}\n", "%YAML 9.9\n---\nname: a\n",
    ],
)  # fmt: skip
def test_what_is_no_recipe(text: str) -> None:
    refusal(text)


@pytest.mark.parametrize("text", ['"ke\\nep": 1\nname: a\n', 'name: a\nmodel: {"na\\r\\nme": 1}\n'])
def test_a_key_with_a_line_break_still_gives_one_line(text: str) -> None:
    refusal(text)


def test_a_key_said_twice_is_refused() -> None:
    assert "keep" in refusal("name: a\nkeep: 0.5\nkeep: 0.25\n")


def test_a_syntax_error_names_its_line() -> None:
    assert refusal("name: a\nmodel: {name: b\nkeep: 1\n").startswith("some.yaml, line 3: not valid YAML")


def test_a_large_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "large.yaml"
    path.write_text("name: a\n" + "#" * 2_000_000)
    with pytest.raises(UserError, match=r"large\.yaml: 2,000,008 bytes is no recipe"):
        parse.load(path)


def test_files_that_cannot_be_recipes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder"):
        parse.load(tmp_path)
    with pytest.raises(UserError, match=r"no such recipe; bundled ones are .*demo"):
        parse.load(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes("name: ä".encode("latin-1"))
    with pytest.raises(UserError, match="cannot be read"):
        parse.load(tmp_path / "latin.yaml")
    with pytest.raises(UserError):
        parse.load(tmp_path / "latin.yaml" / "below.yaml")


def test_a_name_too_long_for_the_disk_is_no_recipe() -> None:
    with pytest.raises(UserError):
        parse.load("x" * 300)


def test_an_error_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("name: a\n\nkep: 1\n")
    with pytest.raises(UserError, match=r"mine\.yaml, line 3: unknown key `kep`; did you mean `keep`\?"):
        parse.load(tmp_path / "mine.yaml")


def test_the_bundled_recipes_are_there() -> None:
    assert {"demo", "imagenet-vit-b16", "imagenet-vit-b32"} <= set(BUNDLED)


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_recipes_are_valid_and_named_as_their_file(name: str) -> None:
    made = parse.load(name)
    assert made.name == name
    assert made == parse.load(parse.bundled_folder() / f"{name}.yaml")
    text = (parse.bundled_folder() / f"{name}.yaml").read_text()
    assert text.startswith(("# vitprune run ", "# vitprune compare ")) and "Cost" in text.replace("Expect", "Cost")


@pytest.mark.parametrize("name", [n for n in BUNDLED if n.startswith("imagenet")])
def test_imagenet_recipes_name_real_timm_models(name: str) -> None:
    timm = pytest.importorskip("timm")
    made = parse.load(name)
    assert timm.models.get_pretrained_cfg(made.model.name) is not None
    assert made.model.pretrained and made.data.path is not None
    assert (made.paper_protocol is None) == (
        not name.endswith("-paper")
    )  # weeks on a processor: only where it is named


def test_a_folder_of_the_same_name_does_not_hide_a_bundled_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "demo").mkdir()
    monkeypatch.chdir(tmp_path)
    assert parse.load("demo").name == "demo"


def test_the_schema_is_json_and_knows_every_key() -> None:
    schema = json.loads(json.dumps(recipe.Recipe.model_json_schema()))
    assert set(schema["properties"]) == set(recipe.Recipe.model_fields)
    assert schema["additionalProperties"] is False and schema["required"] == ["name"]


def test_the_template_parses_and_shows_every_section() -> None:
    made = parse.parse(parse.TEMPLATE)
    assert made.name == "my-model" and made.keep is None and made.round_to is None
    assert made.whole == Whole(macs=0.5) and made.prune == ["ffn", "attention"]


@pytest.mark.parametrize(
    "text",
    [
        "name: a",
        "name: a\nkeep: 3 units\nclasses: [b, ä]\nround_to: 8\nout: some/where\npaper_protocol: {t: [1]}\n",
        "name: a\ngroups: {x: [b], y: [c, d]}\nmodel: {name: vit, args: {img_size: 28}, checkpoint: w.pth}\n"
        "data: {path: p, limit_per_class: 4}\n",
        parse.TEMPLATE,
    ],
)
def test_dump_and_parse_go_round(text: str) -> None:
    made = parse.parse(text)
    assert parse.parse(parse.dump(made)) == made


def test_class_sets() -> None:
    assert parse.parse("name: a").class_sets() == {None: None}
    assert parse.parse("name: a\nclasses: [b]").class_sets() == {None: ["b"]}
    assert parse.parse("name: a\ngroups: {x: [b], y: [c]}").class_sets() == {"x": ["b"], "y": ["c"]}


@pytest.mark.parametrize(
    ("given", "rule", "nodes"),
    [
        ("{}", "gauss-legendre", 5),
        ("{nodes: 6}", "gauss-legendre", 6),
        ("{quadrature: right}", "right", 20),
        ("{quadrature: midpoint, nodes: 7}", "midpoint", 7),
        ("{reference: true}", "left", 20),
        ("{reference: true, quadrature: right, nodes: 3}", "right", 3),
    ],
)
def test_what_integrates_by_default(given: str, rule: str, nodes: int) -> None:
    how = parse.parse(f"name: a\ncriterion: {given}").criterion.how("jas")
    assert (how.quadrature, how.nodes) == (rule, nodes)


def test_every_setting_reaches_the_engine() -> None:
    text = "name: a\ncriterion: {formula: joint-ig, candidates: each, shortlist: 3, tokens: all, objective: logit, "
    made = parse.parse(text + "low: 0.5, form: squared, labels: sampled, seed: 4}").criterion
    how, gates = made.how("jas"), made.how("joint-gates")
    assert (how.formula, how.candidates, how.shortlist, how.tokens) == ("joint-ig", "each", 3, "all")
    assert (gates.objective, gates.low, gates.form, gates.labels, gates.seed) == ("logit", 0.5, "squared", "sampled", 4)
    assert how.objective == "logit" and not hasattr(how, "low") and not hasattr(gates, "formula")


@pytest.mark.parametrize(
    "given", ["shortlist: 3", "reference: true, candidates: each", "reference: true, formula: joint-ig", "low: 1.5"]
)
def test_settings_that_do_not_go_together_are_refused(given: str) -> None:
    with pytest.raises(UserError, match=r"line 2: `criterion"):
        parse.parse(f"name: a\ncriterion: {{name: jas, {given}}}")


@pytest.mark.parametrize(("batches", "told"), [([1, 8, 32], 32), ([1], 1), ([8, 64], 64), ([], 32)])
def test_the_one_figure_of_latency_is_of_a_batch_that_was_asked_for(batches: list[int], told: int) -> None:
    assert told_batch(Export(latency_batches=batches)) == told
