"""The road of a vision-language model on the command line: what is written, what is said, what is not done twice."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
import yaml
from typer.testing import CliRunner
from vlms import folder, pairs, tiny

from vitprune.api.vlm import recipe as recipes
from vitprune.api.vlm import record, road, tables
from vitprune.cli.app import app
from vitprune.core.errors import UserError
from vitprune.exam import by_modality
from vitprune.model.vlm import opening, sites
from vitprune.model.vlm.pairs import images_of
from vitprune.model.vlm.preparing import Preparer
from vitprune.pruning.vlm import costs
from vitprune.see.types import typing
from vitprune.see.types.rules import TYPES

CLI = CliRunner()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and 24 pairs."""
    made = tmp_path_factory.mktemp("vlm")
    folder(made / "model")
    pairs(made / "data", 24)
    return made


def written(place: Path, name: str, **keys: Any) -> Path:
    """A recipe beside the model."""
    content = {"name": name, "model": {"name": "transformers:model"}, "data": {"pairs": "data/pairs.jsonl"}} | keys
    path = place / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content | {"out": str(place / "out")}))
    return path


def test_see_types_on_the_command_line(place: Path) -> None:
    done = CLI.invoke(app, ["see", str(written(place, "seen"))])
    assert done.exit_code == 0, done.output
    assert "Types of 144 language units by 12 pairs" in done.output
    assert "vision block 2 is dead" in done.output and "192 vision units are visual" in done.output
    made = place / "out" / "seen" / "see"
    rows = list(csv.DictReader((made / "types.csv").open()))
    assert len(rows) == 144 and tuple(rows[0]) == tables.COLUMNS
    found = json.loads((made / "types.json").read_text())
    assert found["dead_vision_blocks"] == [2] and found["samples"] == 12
    for rule in found["rules"]:
        assert sum(found["rules"][rule]["shares"].values()) == pytest.approx(1, abs=1e-3)
    counted = [sum(row["type"] == word for row in rows) / 144 for word in TYPES]
    assert counted == pytest.approx(list(found["rules"]["test"]["shares"].values()), abs=1e-4)
    for row in rows[:5]:
        assert sum(float(row[f"p_{word}"]) for word in TYPES) == pytest.approx(1, abs=1e-3)
    again = CLI.invoke(app, ["see", str(place / "out" / "seen"), "--json"])  # a run's folder
    assert again.exit_code == 0, again.output
    told = json.loads(again.stdout)
    assert told.pop("shown") == json.loads((made / "units.json").read_text()) and told == found
    assert (made / "types.svg").read_text().count("<rect") == 4 + 3 * 3 * 4


def test_run_prunes_examines_and_saves(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(place, "typed", keep=0.5, criterion={"name": "modality-types"}, drop_dead=True)
    done = CLI.invoke(app, ["run", str(path), "--json"])
    assert done.exit_code == 0, done.output
    record = json.loads(done.stdout)
    dense, slim, control = record["exam"]
    assert [dense["model"], slim["model"], control["model"]] == ["dense", "modality-types", "random 0"]
    assert set(slim["kept"].values()) == {24} and sum(slim["kept_by_type"].values()) == 72
    assert slim["parameters"] == control["parameters"] < dense["parameters"]  # the dead block is gone from both
    units, block = 3 * 24 * 3 * 32, 4 * (32 * 32 + 32) + 2 * 32 * 64 + 64 + 32 + 4 * 32
    assert dense["parameters"] - slim["parameters"] == units + block
    assert slim["plain_from_pretrained"] is True
    for row in record["exam"]:
        assert row["nll"]["reliance"] == pytest.approx(row["nll"]["shuffled"] - row["nll"]["right"])
    theirs: Any = hf.LlavaForConditionalGeneration.from_pretrained(place / "out" / "typed" / "model")
    assert {s.size for s in sites.ffns(theirs, "language")} == {24} and len(sites.ffns(theirs, "vision")) == 2
    assert "random" in record["said"] or "beat" in record["said"]
    text = "".join(p.read_text(errors="ignore") for p in (place / "out" / "typed").rglob("*") if p.is_file())
    assert str(place) not in text  # no path of this machine in what is handed on

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("a finished step was done again")

    for where, name in ((typing, "types_of"), (costs, "fisher_obs"), (by_modality, "examine")):
        monkeypatch.setattr(where, name, never)
    again = CLI.invoke(app, ["run", str(path), "--json"])
    assert again.exit_code == 0 and json.loads(again.stdout) == record


def test_keep_types_gives_widths_of_their_own(place: Path) -> None:
    path = written(
        place,
        "shared",
        keep_types={"visual": 0.9, "text": 0.4, "unknown": 0.1},
        controls=0,
        recovery="affine",
        see={"types": {"rule": "counts"}},
    )
    done = CLI.invoke(app, ["run", str(path)])
    assert done.exit_code == 0, done.output
    assert "no claim" in done.output
    record = json.loads((place / "out" / "shared" / "report.json").read_text())
    assert len(set(record["exam"][1]["kept"].values())) > 1
    again = opening.open_vlm(place / "out" / "shared" / "model")
    assert {s.name: s.size for s in sites.ffns(again.model, "language")} == record["exam"][1]["kept"]


BAD = {
    "unknown key": ({"see": {"types": {"delt": 1}}}, "see.types.delt: is not known.*did you mean delta"),
    "two budgets": ({"keep": 0.5, "keep_types": {"text": 0.1}}, "keep or keep_types, not both"),
    "types of vision": ({"keep_types": {"text": 0.1}, "prune": ["vision"]}, "types are of language units"),
    "no type": ({"keep_types": {"pictures": 0.1}}, "keep_types"),
    "share": ({"keep_types": {"text": 1.5}}, "lies between 0 and 1"),
    "pairs": ({"data": {"pairs": "none.jsonl"}}, "data.pairs: there is no none.jsonl"),
    "model": ({"model": {"name": "transformers:none"}}, "model.name: there is no none"),
    "timm": ({"model": {"name": "vit_tiny"}}, "is given as transformers:FOLDER"),
    "name": ({"name": "../x"}, "name"),
}


@pytest.mark.parametrize(("keys", "said"), BAD.values(), ids=BAD)
def test_bad_recipes_are_one_line(keys: dict[str, Any], said: str, place: Path) -> None:
    path = written(place, "bad")
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | keys))
    with pytest.raises(UserError, match=said):
        recipes.load(path)


def test_other_verbs_and_foreign_folders(place: Path) -> None:
    path = written(place, "other")
    done = CLI.invoke(app, ["discover", str(path)])
    assert isinstance(done.exception, UserError) and "`vitprune see` and `vitprune run` take" in str(done.exception)
    done = CLI.invoke(app, ["recipe", "check", str(path)])
    assert isinstance(done.exception, UserError) and "`vitprune see` and `vitprune run` take" in str(done.exception)
    done = CLI.invoke(app, ["see", str(path), "--unit", "0:1"])
    assert isinstance(done.exception, UserError) and "--unit: does not go" in str(done.exception)
    (place / "out" / "other").mkdir(parents=True)
    (place / "out" / "other" / "mine.txt").write_text("mine")
    done = CLI.invoke(app, ["see", str(path)])
    assert isinstance(done.exception, UserError) and "files that vitprune did not make" in str(done.exception)
    text = written(place, "no_vlm")
    (place / "classifier").mkdir()
    (place / "classifier" / "config.json").write_text('{"architectures": ["ViTForImageClassification"]}')
    text.write_text(yaml.safe_dump(yaml.safe_load(text.read_text()) | {"model": {"name": "transformers:classifier"}}))
    done = CLI.invoke(app, ["see", str(text)])
    assert isinstance(done.exception, UserError) and "not known as a vision-language model" in str(done.exception)


def test_no_pair_of_one_image_on_both_sides(place: Path, tmp_path: Path) -> None:
    lines = (place / "data" / "pairs.jsonl").read_text().splitlines()
    twice = place / "data" / "twice.jsonl"
    twice.write_text("\n".join([*lines, *lines]) + "\n")
    made = road.Road(recipes.load(written(place, "twice", data={"pairs": "data/twice.jsonl"})))
    probe, exam = made.split
    assert len(probe) == len(exam) == 24
    assert not {p.image for p in probe} & {p.image for p in exam}


def test_an_image_under_two_names_is_one(place: Path) -> None:
    data = place / "data"
    (data / "sub").mkdir(exist_ok=True)
    lines = [json.loads(line) for line in (data / "pairs.jsonl").read_text().splitlines()]
    for n in range(24):
        if not (link := data / "sub" / f"link{n}.png").exists():
            link.symlink_to(data / f"{n}.png")
    other = [one | {"image": f"sub/../{one['image']}"} for one in lines]
    linked = [one | {"image": f"sub/link{one['image']}"} for one in lines]
    (data / "named.jsonl").write_text("\n".join(json.dumps(one) for one in [*lines, *other, *linked]) + "\n")
    made = road.Road(recipes.load(written(place, "named", data={"pairs": "data/named.jsonl"})))
    probe, exam = made.split
    assert len(probe) == len(exam) == 36
    assert not {p.image.resolve() for p in probe} & {p.image.resolve() for p in exam}
    assert {p.image for p in [*probe, *exam]} == {data / f"{n}.png" for n in range(24)}  # as it is first named
    assert images_of(exam) == list(range(12)) * 3
    for pair, i in zip(exam, by_modality.derangement(exam, 0), strict=True):
        assert exam[i].image.resolve() != pair.image.resolve()
    few = [{**one, "image": "0.png" if n % 2 else "1.png"} for n, one in enumerate(lines)]
    (data / "named.jsonl").write_text("\n".join(json.dumps(one) for one in few) + "\n")
    with pytest.raises(UserError, match="pairs of 1 images to choose with and of 1 for the exam are too few"):
        _ = road.Road(recipes.load(written(place, "named", data={"pairs": "data/named.jsonl"}))).split


def test_the_verdict_has_as_many_digits_as_tell_two_numbers_apart() -> None:
    rows = [
        {"model": name, "nll": {"right": x}} for name, x in (("dense", 1.0), ("ours", 1.23451), ("random", 1.23454))
    ]
    assert "(1.23451 nats) is ahead of" in record.verdict(rows) and "(best 1.23454)" in record.verdict(rows)
    rows[2]["nll"] = {"right": 1.2}
    assert "(1.235 nats) does not beat" in record.verdict(rows) and "(best 1.200)" in record.verdict(rows)


def test_the_logits_of_texts_are_those_of_the_whole() -> None:
    from vlms import FAMILIES, samples

    from vitprune.model.vlm import tokens

    for family in FAMILIES:
        model = tiny(family)
        batch = tokens.collate([*samples(family, 2), *samples(family, 1, seed=3, text=3)], model.config)
        logits, said = tokens.text_logits(model, batch)
        text = batch.kinds.text[:, 1:]
        torch.testing.assert_close(logits, tokens.call(model, batch)[:, :-1][text])
        assert torch.equal(said, batch.inputs["input_ids"][:, 1:][text]) and len(said) == 13


def test_nothing_is_chosen_on_pairs_of_the_exam(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Types, costs and repair see probe pairs alone; the exam sees the others alone."""
    made = road.Road(recipes.load(written(place, "honest", keep=0.5, controls=1)))
    probe, exam = made.split
    seen: list[str] = []
    before = Preparer.sample

    def sample(self: Any, pair: Any, image: Path | None = None) -> Any:
        seen.extend([str(pair.image), *([str(image)] if image else [])])
        return before(self, pair, image)

    monkeypatch.setattr(Preparer, "sample", sample)
    made.see()
    made.made(made.plan())
    assert set(seen) == {str(pair.image) for pair in probe}
    seen.clear()
    made.run()
    assert set(seen) == {str(pair.image) for pair in exam}


def test_the_usual_place_for_results(place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A smaller model is written where the recipe says nothing of `out`, which is a folder of the working folder."""
    content = yaml.safe_load(written(place, "usual", keep=0.5, controls=0, recovery="none").read_text())
    content |= {
        "model": {"name": f"transformers:{place / 'model'}"},
        "data": {"pairs": str(place / "data/pairs.jsonl")},
    }
    content |= {"see": {"units": {"per_type": 0}}}
    content.pop("out")
    (tmp_path / "usual.yaml").write_text(yaml.safe_dump(content))
    monkeypatch.chdir(tmp_path)
    done = CLI.invoke(app, ["run", "usual.yaml"])
    assert done.exit_code == 0, done.exception or done.output
    assert (tmp_path / "exported" / "usual" / "model" / "config.json").is_file()
    step = json.loads((tmp_path / "exported" / "usual" / "steps" / "pruned.json").read_text())
    assert "model/model.safetensors" in step["files"] and not any(name.startswith("/") for name in step["files"])
