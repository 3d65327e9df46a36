"""A new criterion is one file and one row: a toy, made here, goes the whole road, and nothing else knows its name."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import field, make_dataclass
from pathlib import Path

import pytest
from small import image_folder, model_folder, recipe_dict

import vitprune
from vitprune.api import scoring
from vitprune.criteria import catalog
from vitprune.criteria.signatures import Row
from vitprune.recipe import parse
from vitprune.recipe.criterion import section

FILE = '''
"""Criterion `toy`: how large a hidden unit is on average."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from vitprune.criteria.settings import About


@dataclass(frozen=True, slots=True)
class Toy:
    """The power of the mean."""

    power: Annotated[float, Field(gt=0, le=8), About("toy: what |a| is raised to")] = 2.0


def toy(model, sites, images, labels, *, ts, how: Toy):
    """Mean |a|^power of every hidden unit over all tokens, per block [B, N]."""
    from vitprune.model.inside import hooks

    seen = []
    with hooks.hidden_units(model, sites, lambda _, hidden: seen.append(hidden.abs().pow(how.power).mean(1))):
        model(images)
    return dict.fromkeys(ts, seen)
'''
ROW = 'Row("a toy", of("toy", "toy"), settings=named("toy", "Toy"), needs=("images",), ranks_by="mean")'
ROAD = f"""
import contextlib, io, json, sys
from pathlib import Path

import vitprune.criteria
vitprune.criteria.__path__.append(sys.argv[1])  # where the one file is
from vitprune.criteria.catalog import CRITERIA, Row, named, of
CRITERIA["toy"] = {ROW}

from vitprune.cli.app import app
from vitprune.core.errors import UserError
from vitprune.recipe import parse
from vitprune.recipe.recipe import Recipe

found = {{}}
content = json.loads(sys.argv[2])
known = Recipe.model_validate(content)
found["others"] = [known.fingerprint(), parse.dump(known)]
made = {{}}
for key, criterion in (("two", {{}}), ("three", {{"power": 3}}), ("again", {{"power": 3.0}})):
    criterion |= {{"name": "toy", "probe_per_class": 4}}
    made[key] = Recipe.model_validate(content | {{"name": "toy", "criterion": criterion}})
found["hashes"] = {{key: recipe.fingerprint() for key, recipe in made.items()}}
assert parse.parse(parse.dump(made["three"])) == made["three"] and "power: 3.0" in parse.dump(made["three"])
assert "power: 2.0" in parse.dump(made["two"])
found["errors"] = []
for given in ("{{name: toy, power: 9}}", "{{name: toy, powr: 3}}", "{{name: toi}}"):
    try:
        parse.parse("name: a\\ncriterion: " + given)
    except UserError as error:
        found["errors"].append(str(error))
found["schema"] = Recipe.model_json_schema()["$defs"]["Criterion"]["properties"]["power"]
assert "torch" not in sys.modules

import torch
import vitprune
from vitprune.runs import pipeline

with contextlib.redirect_stdout(io.StringIO()) as said:
    app(["criteria"], standalone_mode=False)
found["listed"] = "a toy" in said.getvalue()
done = lambda key: [s["name"] for s in pipeline.run(made[key], "export", device="cpu")["stages"] if not s["skipped"]]
found["done"] = [done("two"), done("two"), done("three"), done("again")]
folder = Path(content["out"]) / "toy"
notes = [json.loads(path.read_text()) for path in sorted(folder.rglob("toy-*.json"))]
found["notes"] = [note["settings"] for note in notes]
slim = vitprune.load(folder)
found["widths"] = [block.mlp.fc1.out_features for block in slim.blocks]
dense = vitprune.load(content["model"]["name"].removeprefix("local-dir:"))
assert found["widths"] == [block.mlp.fc1.out_features // 2 for block in dense.blocks]
size = dense.patch_embed.img_size
images, labels = torch.randn(6, 1, *size, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 2
scores = {{p: vitprune.discover(dense, images, labels, criterion="toy", power=p) for p in (1, 3)}}
seen = []
hook = dense.blocks[0].mlp.act.register_forward_hook(lambda module, inputs, output: seen.append(output))
dense(images)
hook.remove()
for p, scored in scores.items():
    torch.testing.assert_close(scored.rows[0][1], seen[0][labels == 1].abs().pow(p).mean((0, 1)), rtol=1e-4, atol=1e-6)
again = vitprune.prune(dense, scores[3], keep=0.5, recovery="none")
assert again.blocks[0].mlp.fc1.out_features == dense.blocks[0].mlp.fc1.out_features // 2
print(json.dumps(found))
"""


def test_one_file_and_one_row_go_the_whole_road(tmp_path: Path) -> None:
    """Recipe, its errors, its schema and its hash, the list of criteria, discovery, prune, save, load, the library.

    In an interpreter of its own: the row is in the table before anything has read it, as it would be in the file.
    """
    own = tmp_path / "own"
    own.mkdir()
    (own / "toy.py").write_text(FILE)
    content = recipe_dict(model_folder(tmp_path / "model"), image_folder(tmp_path / "images"), tmp_path / "out")
    content |= {"baselines": []}
    env = os.environ | {"PYTHONPATH": str(Path(vitprune.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", ROAD, str(own), json.dumps(content)]
    got = subprocess.run(command, capture_output=True, text=True, timeout=300, env=env)
    assert got.returncode == 0, got.stderr
    found = json.loads(got.stdout.splitlines()[-1])

    known = vitprune.Recipe.model_validate(content)  # here there is no toy: the runs of others are what they were
    assert found["others"] == [known.fingerprint(), parse.dump(known)]
    assert found["hashes"]["two"] != found["hashes"]["three"] == found["hashes"]["again"]
    bound, unknown, name = found["errors"]
    assert re.search(r"line 2: `criterion.power`: .*less than or equal to 8 \(given: '9'\)", bound)
    assert "unknown key `criterion.powr`; did you mean `power`?" in unknown
    assert "`criterion.name`" in name and "did you mean `toy`?" in name
    assert found["schema"]["default"] == 2.0 and found["schema"]["description"] == "toy: what |a| is raised to"
    assert found["listed"]
    two, same, three, again = found["done"]
    assert {"discover", "prune", "export"} <= set(two) & set(three) and same == again == []
    assert found["notes"] == [{"criterion": "toy", "per_class": 4, "power": 3.0}]


def row(**types: type) -> Row:
    """A row whose settings have these types, and 1 as their default."""
    told = [(name, kind, field(default=1)) for name, kind in types.items()]
    return Row("a toy", settings=make_dataclass("Made", told, frozen=True))


def test_a_setting_has_one_meaning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two criteria share a setting, or it has two names; and it does not take the name of a key of the section."""
    monkeypatch.setitem(catalog.CRITERIA, "toy", row(nodes=int))
    with pytest.raises(ValueError, match="`toy`: its setting `nodes` is told otherwise"):
        section()
    monkeypatch.setitem(catalog.CRITERIA, "toy", row(t=int))
    with pytest.raises(ValueError, match="`t` has the name of a key"):
        section()


def test_a_row_of_the_moment_has_settings_in_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is put into the table by a script is checked like the others, and no other criterion stands in for it."""
    monkeypatch.setitem(catalog.CRITERIA, "toy", row(width=int))
    assert section()(name="toy", width=3).how("toy").width == 3  # type: ignore[call-arg]
    with pytest.raises(vitprune.UserError, match="discover: `width`"):
        scoring._how("toy", 1, 0, {"width": "wide"})
    with pytest.raises(vitprune.UserError, match="discover: `wdth`"):
        scoring._how("toy", 1, 0, {"wdth": 3})
